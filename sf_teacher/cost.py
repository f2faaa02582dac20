"""What a training step costs, counted before anything is trained."""
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from .task import StudentFriendlyTask


def flop_counter() -> FlopCounterMode:
    """PyTorch's, mended: as of torch 2.14 it counts a grouped convolution's weight gradient once for each group."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _conv_backward_flops})


def _conv_backward_flops(
        out_gradient: Any,
        x: Any,
        weight: Any,
        bias: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        transposed: bool,
        output_padding: Any,
        groups: int,
        wanted: Sequence[bool],
        **kwargs: Any,
) -> int:
    """Each gradient, of the images and of the weight, takes as many as the convolution itself; arguments are shapes."""
    return conv_flop_count(x, weight, out_gradient, transposed=transposed) * sum(wanted[:2])


def step_cost(
        model: nn.Module,
        size: Sequence[int],
        loss: Callable[[torch.Tensor], torch.Tensor],
        batch: int = 2,
) -> dict[str, float]:
    """FLOPs and kept activations of one training step, per image, in the mode that the model is in.

    Args:
        model: What is trained, on the meta device where it allows that; its weights, statistics and modes are left as
            they were, its gradients are not kept.
        size: (C, H, W).
        loss: From images to the loss that is minimised.
        batch: Images in the step; batch norm in train mode needs more than one.
    """
    modes = [(m, m.training) for m in model.modules()]
    device = next(model.parameters()).device
    x = torch.zeros(batch, *size, device=device)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(t)
        return t

    alive: list[torch.Tensor] = []
    state = None if device.type == 'meta' else {k: v.clone() for k, v in model.state_dict().items()}
    with flop_counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            value = loss(x)
        value.backward()
    model.zero_grad(set_to_none=True)
    if state is not None:
        model.load_state_dict(state)
    for m, training in modes:
        m.training = training
    return {'gflops_per_image': counter.get_total_flops() / batch / 1e9,
            'activation_mb_per_image': sum(kept.values()) / batch / 2 ** 20}


def joint_cost(task: StudentFriendlyTask) -> dict[str, float]:
    """The same for a task that has not begun: the mean over the branches where a method draws one of them a step."""
    batch = 2 if getattr(task.method, 'branch_share', 1.) == 1 else 20      # so that a share of it is whole images
    draws = len(task.branches.branches) if getattr(task.method, 'sample_branch', False) else 1
    target = torch.zeros(batch, dtype=torch.long, device=task.device)
    index = None if task.device.type == 'meta' else torch.arange(batch, device=task.device)     # memory is looked up
    each = [step_cost(task, task.input_size, lambda x: task.losses(x, target, index=index)['loss'], batch)
            for _ in range(draws)]
    return {name: sum(cost[name] for cost in each) / draws for name in each[0]}


def step_ratio(task: StudentFriendlyTask, epochs: int) -> float:
    """FLOPs of a step of the first epoch over those of plain training; a copy is counted, without memory of its own
    unless the teacher looks at values.
    """
    try:
        return _counted(_on_meta(task), epochs)
    except (NotImplementedError, RuntimeError):
        return _counted(copy.deepcopy(task), epochs)


def _counted(task: StudentFriendlyTask, epochs: int) -> float:
    task.train()
    task.criterion = nn.CrossEntropyLoss()      # the loss of mixed targets costs the same: nothing
    task.set_epoch(0, epochs)
    task.progress.step = 0
    plain = step_cost(task.teacher, task.input_size, lambda x: task.teacher(x).sum())
    return joint_cost(task)['gflops_per_image'] / plain['gflops_per_image']


def _on_meta(task: StudentFriendlyTask) -> StudentFriendlyTask:
    """A copy whose weights have shapes and no values, made without a copy of the values."""
    memo: dict[int, torch.Tensor] = {}
    for tensor in (*task.parameters(), *task.buffers()):
        empty = torch.empty_like(tensor, device='meta')
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    copied = copy.deepcopy(task, memo)
    copied.device = torch.device('meta')
    return copied
