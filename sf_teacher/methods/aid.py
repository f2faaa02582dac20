"""AID: a trained teacher is fine-tuned towards the predictions of a trained student."""
from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..checks import logits_of
from ..errors import SFTeacherError
from ..functional import kl_divergence
from ..split.boundaries import Size
from ..split.whole import copy_whole
from ..validation import option
from .base import Context, Method, Progress, Step
from .registry import register_method

_logger = logging.getLogger(__name__)


@register_method
@dataclass(frozen=True)
class AID(Method):
    """AID (ICCV 2025), as widely reported: a trained teacher is fine-tuned towards a trained student's predictions.

    teacher_weight * CE(z_T, y) + kl_weight * tau^2 KL(p_S || p_T) with a trained student of the target's architecture,
    or of a similar size, frozen and in eval mode [reported]; for a few epochs [reported], after which any
    distillation uses the teacher. Whether the cross entropy stays in is not settled: teacher_weight=0 leaves it out.
    The control that it needs is the student itself as the teacher.

    Where the student was trained on images of another mean and standard deviation than the teacher (by their
    `pretrained_cfg`), it gets them as it knows them, as in timm's distillation.
    """
    key: ClassVar[str] = 'aid'
    takes_students: ClassVar[bool] = True
    trained_teacher: ClassVar[bool] = True
    trained_students: ClassVar[bool] = True
    title: ClassVar[str] = 'AID, a teacher fine-tuned towards a trained student (ICCV 2025)'

    teacher_weight: float = option(1., 'weight of the task loss; 0 leaves it out', source='ours', low=0)
    kl_weight: float = option(1., 'lambda, weight of the divergence from the trained student', source='ours', low=0)
    temperature: float = option(4., 'tau of the divergence', source='ours', above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.teacher_weight > 0 or self.kl_weight > 0, 'teacher_weight',
                      'above 0 where kl_weight is 0, as nothing else trains the teacher')

    @property
    def active(self) -> bool:
        return bool(self.kl_weight)

    def build(self, context: Context) -> FrozenStudent:
        if len(context.students) != 1:
            raise SFTeacherError(f'AID needs one trained student, got {len(context.students)}: wrap(teacher, '
                                 f'"local-dir:FOLDER", method="aid"), or a module with its weights')
        return FrozenStudent(context.model, context.students[0], context.num_classes, context.input_size)

    def run(self, step: Step) -> torch.Tensor:
        with torch.no_grad():
            return step.extra(step.input)

    def terms(self, step: Step) -> dict[str, torch.Tensor]:
        """``"teacher_ce"``, ``"student_kl"``."""
        terms = {'teacher_ce': step.task_loss()}
        if step.output is not None:
            terms['student_kl'] = kl_divergence(step.output, step.logits, self.temperature)
        return terms

    def weights(self, progress: Progress) -> Mapping[str, float]:
        return {'teacher_ce': self.teacher_weight, 'student_kl': self.kl_weight}

    def branch_logits(self, step: Step) -> dict[str, torch.Tensor]:
        return {} if step.output is None else {'student': step.output}


class FrozenStudent(nn.Module):
    """A copy of a trained student, frozen and in eval mode whatever happens around it.

    Args:
        teacher: The model whose images it gets.
        student: The trained student.
        num_classes: K.
        input_size: (C, H, W).

    Raises:
        SFTeacherError: The student does not run on these images, or has other classes.

    Shape:
        - input: images [B, C, H, W], normalised for the teacher.
        - output: logits [B, K].
    """

    scale: torch.Tensor | None
    shift: torch.Tensor | None

    def __init__(self, teacher: nn.Module, student: nn.Module, num_classes: int, input_size: Size) -> None:
        super().__init__()
        self.student = copy_whole(student, input_size, num_classes).requires_grad_(False)
        scale, shift = _renormalisation(teacher, student, input_size[0])
        self.register_buffer('scale', scale, persistent=False)
        self.register_buffer('shift', shift, persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenStudent:
        """Nothing is set: the student stays in eval mode."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        return logits_of(self.student, self.student(images))

    def describe(self) -> list[str]:
        converted = '' if self.scale is None else ', whose images have a mean and standard deviation of their own'
        return [f'frozen student {type(self.student).__name__}{converted}']


def _renormalisation(teacher: Any, student: Any, channels: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Factor and summand [1, C, 1, 1] that turn the teacher's images into the student's; None where both are alike."""
    cfgs = [getattr(m, 'pretrained_cfg', None) or {} for m in (teacher, student)]
    if not all(cfg.get(name) for cfg in cfgs for name in ('mean', 'std')):
        return None, None
    # timm's configurations are of colour images, whatever the model takes
    cfgs = [{n: cfg[n] if len(cfg[n]) == channels else (statistics.fmean(cfg[n]),) * channels for n in ('mean', 'std')}
            for cfg in cfgs]
    (mean_t, std_t), (mean_s, std_s) = ([torch.tensor(cfg[n]) for n in ('mean', 'std')] for cfg in cfgs)
    if torch.equal(mean_t, mean_s) and torch.equal(std_t, std_s):
        return None, None
    _logger.warning('The student was trained on images of mean %s and standard deviation %s, the teacher gets %s and '
                    '%s: each gets its own', *(tuple(cfg[n]) for cfg in reversed(cfgs) for n in ('mean', 'std')))
    return (std_t / std_s).view(1, -1, 1, 1), ((mean_t - mean_s) / std_s).view(1, -1, 1, 1)
