"""The student's phase: kinds of distillation, and the settings that they take."""
from __future__ import annotations

from typing import Any

import torch
from timm.task import LogitDistillationTask, TrainingTask
from torch import nn

from ..data.settings import NO_SPLIT
from ..errors import SettingError
from ..functional import kl_divergence
from ..kd_task import StudentFriendlyKDTask, teacher_logits
from ..validation import setting
from .settings import StudentRun

KD_SETTINGS = ('kd', 'kd_temperature', 'simplifier_lr', 'task_loss_weight', 'distill_loss_weight')


class PlainKDTask(LogitDistillationTask):
    """timm's task with its divergence in float32: on CPUs autocast leaves logarithms in bfloat16, too coarse for it."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """As timm's, to the bit where logits are not in half precision."""
        output = self.trainable_module(input)
        task_loss = self.criterion(output, target)
        kd_loss = kl_divergence(teacher_logits(self, input), output, self.temperature)
        return {'loss': self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss, 'output': output,
                'task_loss': task_loss, 'kd_loss': kd_loss}


def check_settings(config: StudentRun) -> None:
    """Refuse settings of a distillation that do not go together."""
    if (idle := config.given(*KD_SETTINGS)) and not config.teacher:
        raise SettingError(f'{", ".join(map(setting, idle))}: without a teacher the student learns alone, and this has '
                           f'no effect: leave it out, or give a teacher')
    if config.kd == 'plain' and config.given('simplifier_lr'):
        raise SettingError(f'{setting("simplifier_lr", config.simplifier_lr)} has no effect with '
                           f'{setting("kd", "plain")}: give {setting("kd", "student_friendly")}, or leave it out')
    if config.teacher and not config.task_loss_weight and not config.distill_loss_weight:
        raise SettingError(f'{setting("task_loss_weight", 0.)} and {setting("distill_loss_weight", 0.)} leave nothing '
                           f'to learn: give at least one of them more')
    if config.teacher and config.smoothing and not config.task_loss_weight:
        raise SettingError(f'{setting("smoothing", config.smoothing)} has no effect with '
                           f'{setting("task_loss_weight", 0.)}: nothing is learned of labels; leave it out')
    if not config.unlabelled:
        return
    given = setting('unlabelled', config.unlabelled)
    if not config.teacher:
        raise SettingError(f'{given}: without a teacher there is nothing to learn of images without labels; give '
                           f'{setting("teacher")}')
    if config.mixes:
        raise SettingError(f'{given} does not go with mixup and cutmix, which mix labels too: leave them at 0')
    if not config.distill_loss_weight:
        raise SettingError(f'{given} has no effect with {setting("distill_loss_weight", 0.)}: nothing is learned of '
                           f'images without labels')
    for name in ('smoothing', 'task_loss_weight'):
        if config.train_split == NO_SPLIT and config.given(name) and getattr(config, name):
            raise SettingError(f'{setting(name, getattr(config, name))} has no effect with '
                               f'{setting("train_split", NO_SPLIT)}: nothing is learned of labels; leave it out')


def distillation_task(
        student: nn.Module,
        teacher: nn.Module,
        loss: nn.Module,
        config: StudentRun,
        device: torch.device,
) -> TrainingTask:
    """The task that distils as `kd` says."""
    common: dict[str, Any] = dict(
        criterion=loss, distill_loss_weight=config.distill_loss_weight, task_loss_weight=config.task_loss_weight,
        temperature=config.kd_temperature, device=device, verbose=False)
    if config.kd == 'plain':
        return PlainKDTask(student, teacher, **common)
    return StudentFriendlyKDTask(student, teacher, simplifier_lr=config.simplifier_lr, **common)
