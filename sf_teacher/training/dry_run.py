"""`--dry-run`: what a planned run would do, and what it would cost on this device."""
from __future__ import annotations

import time
from typing import Any

import torch
from timm.task import TrainingTask

from ..joint_task import JointTask
from .components import eval_model
from .interruption import World
from .loop import Loop
from .planning import Plan
from .signals import Stop


def describe(plan: Plan) -> str:
    """The plan and, from a few steps on this device, its cost; the task is not fit for training afterwards."""
    config, loader = plan.config, plan.train_loader
    steps, world = len(loader), World.current()
    lines = [
        str(plan.task) if hasattr(plan.task, 'branches') else _outline(plan.task),
        f'data: {config.data or config.dataset}, {config.num_classes} classes, input {_joined(config.input_size)}, '
        f'mean {_joined(config.mean, " ")}, std {_joined(config.std, " ")}',
        f'training: {config.epochs} epochs of {steps} batches of {config.batch_size}'
        + (f' on each of {world.size} processes' if world.size > 1 else '')
        + f', {config.opt} lr {config.lr:g}, {config.sched}',
        f'output: {config.output or "none"}',
    ]
    seconds = _seconds_a_step(plan)
    total = seconds * steps * config.epochs
    lines.append(f'cost: {seconds:.3g} s a step on {plan.task.device}, {total / 3600:.3g} hours for all epochs, '
                 f'without loading and validation')
    return '\n'.join(lines)


def _outline(task: TrainingTask) -> str:
    models = {'trained': eval_model(task), 'teacher': getattr(task, 'teacher', None)}
    return f'{type(task).__name__}: ' + ', '.join(
        f'{role} {type(getattr(m, "model", m)).__name__}, {sum(p.numel() for p in m.parameters()) / 1e6:.2f} M '
        f'parameters' for role, m in models.items() if m is not None)


def _seconds_a_step(plan: Plan) -> float:
    """The fastest of three batches through the loop itself, so with its precision, layout, compilation and EMA."""
    images = torch.randn(plan.config.batch_size, *plan.config.input_size, device=plan.task.device)
    target = torch.randint(plan.config.num_classes, (len(images),), device=plan.task.device)
    batch: tuple[torch.Tensor, ...] = images, target
    if isinstance(plan.task, JointTask):
        plan.task.set_epoch(0, plan.config.epochs)
        if plan.task.method.needs_index:
            batch = images, target, torch.arange(len(images), device=plan.task.device)
    loop, times = Loop(plan.task, [batch], None, plan.config, World.current(), None, Stop()), []
    for _ in range(4):      # the first one compiles
        began = time.perf_counter()
        loop.train_epoch(0, None)
        if plan.task.device.type == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _joined(values: Any, separator: str = 'x') -> str:
    return separator.join(f'{v:g}' for v in values)
