"""What our tasks have in common: a `JointModel` is trained, its plain model is evaluated, saved and exported."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self, TypeGuard

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .joint import JointModel
from .methods.base import Method, Progress, Step, weighted_sum


class JointTask(TrainingTask):
    """A task that trains a plain model and a method's module.

    What is evaluated is the plain model; a checkpoint has its weights under ``state_dict``, and the module's under
    ``extra`` in the task's own state.
    """
    criterion: Any
    num_classes: int

    def join(self, model: nn.Module, extra: nn.Module | None, method: Method) -> None:
        """Make the module that is trained; to be called once, at the end of a constructor."""
        if extra is not None:
            # not .to(), which makes complex numbers real
            extra._apply(lambda t: t.to(self.device, self.dtype if t.is_floating_point() else t.dtype))
            extra.train(model.training)
        self.progress = Progress()
        self.trainable_module: Any = JointModel(model, extra, method, self.progress, self.num_classes)
        self.training = self.trainable_module.training = model.training

    @property
    def joint(self) -> JointModel:
        """What is trained, without the wrappers of compilation and distributed training."""
        return unwrap_model(self.trainable_module)

    @property
    def method(self) -> Method:
        """The method, for which the branches were built: another one is another task."""
        return self.joint.method

    def set_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Tell the method which epoch begins, as samplers are told; `fit` does. Call it on every process.

        Args:
            epoch: From 0.
            epochs: Epochs in all, where it is known.
        """
        self.progress.epoch, self.progress.epochs = epoch, epochs
        self.method.set_epoch(self.joint.extra, self.progress)

    def run(self, *inputs: torch.Tensor) -> Any:
        """Plain model and the method's module in one forward, see `JointModel`."""
        return self.trainable_module(*inputs)

    def losses(
            self,
            input: torch.Tensor,
            target: torch.Tensor,
            reference: torch.Tensor | None = None,
            index: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """One forward: ``"loss"``, ``"output"`` (logits [B, K]), ``"branch_output"`` (by name), and every term."""
        logits, maps, output = self.run(input, *(() if reference is None else (reference,)))
        step: Step = self.joint.step(input, logits, maps, output, target, self.criterion, reference, index)
        terms = self.method.terms(step)
        loss = weighted_sum(terms, self.method.weights(self.progress))
        self.progress.step += self.joint.training
        return {'loss': loss, **terms, 'output': logits, 'branch_output': self.method.branch_logits(step)}

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> Self:
        """Wrap what is trained in DistributedDataParallel; after `compile` where there is one.

        Args:
            device_ids: As in DistributedDataParallel, e.g. ``[local_rank]``; leave it out on the CPU.
            **ddp_kwargs: Further arguments of DistributedDataParallel.

        Returns:
            The task itself.
        """
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(    # type: ignore[override]  # as timm's tasks
            self,
            backend: str = 'inductor',
            mode: str | None = None,
            **compile_kwargs: Any,
    ) -> nn.Module:
        """Compile what is trained, and the plain model for evaluation.

        Call it before `prepare_distributed`, as with every task of timm.

        Args:
            backend: As in `torch.compile`.
            mode: As in `torch.compile`.
            **compile_kwargs: Further arguments of `torch.compile`.

        Returns:
            The compiled plain model, which shares its weights with the task's.
        """
        compiled: Any = torch.compile(self.joint.model, backend=backend, mode=mode, **compile_kwargs)
        self.eval_model = compiled
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        return compiled

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The plain model (compiled if the task is), or its EMA."""
        module = super().get_eval_model(module, ema)
        inner = unwrap_model(module) if module is not None else None
        return inner.model if isinstance(inner, JointModel) else module

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The method's module, which a checkpoint keeps beside the plain model's ``state_dict``, and the progress."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            return {}
        extra = unwrap_model(module).extra
        state = {'extra': {} if extra is None else extra.state_dict(), 'progress': asdict(self.progress)}
        memory = getattr(extra, 'memory', None)
        return state if not memory or extra is not self.joint.extra else {**state, 'memory': memory}     # EMA: none

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        """Load the method's module of a checkpoint."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if not state or module is None:
            return
        extra = unwrap_model(module).extra
        if extra is not None:
            extra.load_state_dict(state['extra'], strict=strict)
            if 'memory' in state:
                extra.memory = dict(state['memory'])
        for name, value in state['progress'].items():
            setattr(self.progress, name, value)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the model and the students exclude from weight decay, by their names in the task."""
        names = self.joint.no_weight_decay()
        excluded = {id(p) for name, p in self.joint.named_parameters() if name in names}
        return {name for name, p in self.named_parameters() if id(p) in excluded}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float, ...]]:
        """Layers for layer-wise learning rates by the names in the task, see `JointModel.group_matcher`."""
        matcher = self.joint.group_matcher(coarse)
        own = {id(p): name for name, p in self.joint.named_parameters()}
        names = {name: own.get(id(p), '') for name, p in self.named_parameters()}
        return lambda name: matcher(names.get(name, ''))


def needs_index(task: TrainingTask) -> TypeGuard[JointTask]:
    """Whether a step of the task needs the numbers of its images in the data set."""
    return isinstance(task, JointTask) and task.method.needs_index
