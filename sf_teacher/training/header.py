"""What is said of a run before its first epoch, and by a dry run."""
from __future__ import annotations

from typing import Any

from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn

from ..cost import step_ratio
from ..task import StudentFriendlyTask
from .components import eval_model
from .interruption import World
from .planning import Plan


def header(plan: Plan) -> str:
    """Models, boundaries, device, threads, images and how they are normalised, steps, optimizer, what a step costs."""
    config, task, world = plan.config, plan.task, World.current()
    steps = len(plan.train_loader)
    device = f'{task.device}' + (f' with {config.threads} threads' if task.device.type == 'cpu' else '')
    size = 'x'.join(map(str, config.input_size))
    return '\n'.join([
        *_models(task, plan),
        f'device:   {device}' + (f', {world.size} processes' if world.size > 1 else '') + f', images {size}, mean '
        f'{_joined(config.mean)}, std {_joined(config.std)}',
        *(f'{"data:" if i == 0 else "":9} {line}' for i, line in enumerate(plan.data.contents)),
        f'steps:    {config.epochs} epochs of {steps} steps of {config.batch_size * world.size} images, '
        f'{config.epochs * steps} in all; {config.opt} lr {config.lr:g}, {config.sched}',
        *_cost(task, plan),
        f'output:   {config.output or "none"}',
    ])


def _models(task: TrainingTask, plan: Plan) -> list[str]:
    model = unwrap_model(eval_model(task))
    config, branches = plan.config, getattr(task, 'branches', None)
    lines = []
    for role, name, module in (('teacher', config.teacher, getattr(task, 'teacher', model)),
                               ('student', config.student, model)):
        if isinstance(name, str) and name:
            lines.append(f'{role + ":":9} {name}, {_millions(getattr(module, "model", module))} M parameters')
    if branches is not None:
        lines.append(f'students: {", ".join(config.student) or "none"}; branches {_millions(branches)} M parameters')
        names = getattr(branches, 'names', None)
        if names:
            lines.append(f'branches: at {", ".join(map(str, names))}')
    return lines


def _cost(task: TrainingTask, plan: Plan) -> list[str]:
    if not isinstance(task, StudentFriendlyTask):
        return []
    return [f'cost:     a step takes about {step_ratio(task, plan.config.epochs):.2f} x a plain step of the teacher '
            f'(FLOPs)']


def _joined(values: Any) -> str:
    return ' '.join(f'{v:g}' for v in values)


def _millions(module: Any) -> str:
    count = sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else 0
    return f'{count / 1e6:.2f}'
