"""`--dry-run`: what a planned run would do, and what it would cost on this device."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ..joint_task import JointTask
from .header import header
from .interruption import World
from .planning import Plan
from .runs import check_output, check_place
from .signals import Stop
from .steps import Steps
from .trackers import check_tracker


def dry_run(config: Any, plan: Callable[..., Plan]) -> str:
    """Plan a run and check everything but what its images hold, the place of its output too if it is given one.

    Returns:
        The plan and, from a few steps on this device, its cost.

    Raises:
        SFTeacherError: As the run itself would before its first step.
    """
    if config.output:
        check_output(config)
    planned = plan(config, decode=False)
    if config.output:
        check_place(planned)
    check_tracker(planned.config)
    return _described(planned)


def _described(plan: Plan) -> str:
    lines = [str(plan.task), header(plan)] if hasattr(plan.task, 'branches') else [header(plan)]
    seconds, steps = _seconds_a_step(plan), plan.config.epochs * len(plan.train_loader)
    return '\n'.join([*lines, f'measured: {seconds:.3g} s a step on {plan.task.device}, {seconds * steps / 3600:.3g} '
                      f'hours for all epochs, without loading and validation'])


def _seconds_a_step(plan: Plan) -> float:
    """The fastest of three batches through the steps of a run, so with its precision, layout, compilation and EMA."""
    images = torch.randn(plan.config.batch_size, *plan.config.input_size, device=plan.task.device)
    target = torch.randint(plan.config.num_classes, (len(images),), device=plan.task.device)
    batch: tuple[torch.Tensor, ...] = images, target
    if isinstance(plan.task, JointTask):
        plan.task.set_epoch(0, plan.config.epochs)
        if plan.task.method.needs_index:
            batch = images, target, torch.arange(len(images), device=plan.task.device)
    steps, times = Steps(plan.task, [batch], plan.config, World.current(), Stop()), []
    steps.wrap()
    for _ in range(4):      # the first one compiles
        began = time.perf_counter()
        steps.train_epoch(0, None)
        if plan.task.device.type == 'cuda':
            torch.cuda.synchronize(plan.task.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
