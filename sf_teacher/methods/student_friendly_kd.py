"""Student-friendly KD: a simplifier turns a frozen teacher's logits into targets for the student."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..functional import kl_divergence
from ..validation import option
from ._simplifier import Simplifier
from .base import Context, Method, Progress, Step
from .registry import register_method


@register_method
@dataclass(frozen=True)
class StudentFriendlyKD(Method):
    """Student-friendly knowledge distillation (Yuan, Lang and Quan 2023, arXiv 2305.10893), after the abstract.

    task_loss_weight * CE(z_S, y) + distill_loss_weight * tau^2 KL(simplifier(z_T) || z_S), both softened by tau. The
    form of the loss is that of plain distillation [abstract]; the simplifier is ours in its details, see `Simplifier`.
    """
    key: ClassVar[str] = 'student_friendly_kd'
    phase: ClassVar[str] = 'student'
    extra_name: ClassVar[str] = 'simplifier'
    title: ClassVar[str] = 'Student-friendly knowledge distillation (Yuan, Lang and Quan 2023, arXiv 2305.10893)'

    temperature: float = option(4., 'tau, of the loss and of the simplifier', source='ours', above=0)
    task_loss_weight: float = option(0.1, 'weight of the cross entropy', source='ours', low=0)
    distill_loss_weight: float = option(0.9, 'weight of the distillation loss', source='ours', low=0)
    dim: int | None = option(
        None, "width of the simplifier's attention; by default the number of classes", source='ours', low=1)
    simplifier_lr: float = option(
        0.0005, "learning rate of the simplifier, as a fraction of the student's; see examples/cifar100: at 0.02 the "
        'targets lost most of their accuracy', source='ours', above=0, high=1)

    def build(self, context: Context) -> Simplifier:
        return Simplifier(context.num_classes, self.temperature, self.dim)

    def run(self, step: Step) -> torch.Tensor:
        return step.extra(step.reference)

    def terms(self, step: Step) -> dict[str, torch.Tensor]:
        """``"task_loss"``, ``"kd_loss"``; of the targets ``"target_top1"`` (%) and ``"target_entropy"`` (nats)."""
        task_loss = step.task_loss()
        kd_loss = kl_divergence(step.output, step.logits, self.temperature)
        extra = step.extra
        of_targets = extra.watch.update(step.reference, step.output, step.target, self.temperature, extra.training)
        return {'task_loss': task_loss, 'kd_loss': kd_loss, **of_targets}

    def weights(self, progress: Progress) -> Mapping[str, float]:
        return {'task_loss': self.task_loss_weight, 'kd_loss': self.distill_loss_weight}
