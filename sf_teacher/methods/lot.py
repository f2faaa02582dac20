"""LoT: the teacher learns together with whole students, and is rewarded for what they find easy to imitate."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..checks import logits_of
from ..errors import SFTeacherError
from ..functional import kl_divergence
from ..split.clones import keep_in_eval, norms_in_eval
from ..split.whole import copy_whole
from ..validation import option
from .base import Context, Method, Progress, Step
from .registry import register_method


@register_method
@dataclass(frozen=True)
class LoT(Method):
    """Learning from Teaching (Jin et al., NeurIPS 2024, arXiv 2402.02769): whole students learn beside the teacher.

    Teacher: CE(z_T, y) + kl_weight * tau^2 KL(p_S || p_T). Each student: CE(z_S, y) + kl_weight * tau^2 KL(p_T || p_S).
    The first distribution of each divergence is detached [code], so that teacher and students learn only from their
    own terms. It is for the teacher's own accuracy; the students are thrown away.

    Ours: with several students the teacher's divergence is their mean (the released classification code has one);
    students take one step with each of the teacher's, with its optimizer, where the code can give them further steps
    on other images (2 for each of the teacher's in its CIFAR script).
    """
    key: ClassVar[str] = 'lot'
    takes_students: ClassVar[bool] = True
    title: ClassVar[str] = 'Learning from Teaching (Jin et al., NeurIPS 2024, arXiv 2402.02769)'

    teacher_weight: float = option(1., "weight of the teacher's task loss", source='code', low=0)
    student_weight: float = option(1., "weight of the students' task loss", source='code', low=0)
    kl_weight: float = option(0.5, 'a, weight of the divergences', source='code', low=0)
    temperature: float = option(1.5, 'tau of the divergences', source='code', above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.teacher_weight > 0 or self.kl_weight > 0, 'teacher_weight',
                      'above 0 where kl_weight is 0, as nothing else trains the teacher')

    @property
    def active(self) -> bool:
        return bool(self.student_weight or self.kl_weight)

    def build(self, context: Context) -> WholeStudents:
        return WholeStudents(context)

    def run(self, step: Step) -> dict[str, torch.Tensor]:
        return step.extra(step.input)

    def terms(self, step: Step) -> dict[str, torch.Tensor]:
        """``"teacher_ce"``, ``"teacher_kl"`` (mean over the students); ``"student_ce"``, ``"student_kl"`` (sums)."""
        terms = {'teacher_ce': step.task_loss()}
        if step.output is None:
            return terms
        students = list(step.output.values())
        if self.student_weight:
            terms['student_ce'] = torch.stack([step.criterion(z, step.target) for z in students]).sum()
        if self.kl_weight:
            z_t, tau = step.logits, self.temperature
            terms['teacher_kl'] = torch.stack([kl_divergence(z.detach(), z_t, tau) for z in students]).mean()
            terms['student_kl'] = torch.stack([kl_divergence(z_t.detach(), z, tau) for z in students]).sum()
        return terms

    def weights(self, progress: Progress) -> Mapping[str, float]:
        return {'teacher_ce': self.teacher_weight, 'student_ce': self.student_weight, 'teacher_kl': self.kl_weight,
                'student_kl': self.kl_weight}

    def branch_logits(self, step: Step) -> dict[str, torch.Tensor]:
        return {} if step.output is None else step.output


class WholeStudents(nn.Module):
    """Copies of whole students that learn on the teacher's images.

    Args:
        context: Teacher and students.

    Raises:
        SFTeacherError: There is no student, one is frozen, does not run on these images, or has other classes.

    Shape:
        - input: images [B, C, H, W].
        - output: logits [B, K] by name.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        if not context.students:
            raise SFTeacherError('LoT needs a student: wrap(teacher, "resnet18", method="lot"), a name or a module')
        for student in context.students:
            if not any(p.requires_grad for p in student.parameters()):
                raise SFTeacherError(f'student {type(student).__name__} is frozen (requires_grad is off), and LoT '
                                     f'trains its students: call student.requires_grad_() first')
        self.students = nn.ModuleList(
            copy_whole(s, context.input_size, context.num_classes) for s in context.students)
        self.norms_in_eval = [norms_in_eval(s) for s in context.students]

    def train(self, mode: bool = True) -> WholeStudents:
        """As `nn.Module.train`; batch norms that were in eval mode when a student was in train mode stay in it."""
        super().train(mode)
        for student, names in zip(self.students, self.norms_in_eval, strict=True):
            keep_in_eval(student, names)
        return self

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f'student{i}': logits_of(student, student(images)) for i, student in enumerate(self.students)}

    def describe(self) -> list[str]:
        return [f'student{i}: {type(student).__name__}, whole' for i, student in enumerate(self.students)]
