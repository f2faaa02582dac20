"""Student-friendly KD: a simplifier turns a frozen teacher's logits into targets for the student."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ._simplifier import Simplifier
from .base import Context, Method, Progress, Step, is_number
from .registry import register_method


@register_method
@dataclass(frozen=True)
class StudentFriendlyKD(Method):
    """Student-friendly knowledge distillation (Yuan, Lang and Quan 2023, arXiv 2305.10893), after the abstract.

    task_loss_weight * CE(z_S, y) + distill_loss_weight * tau^2 KL(simplifier(z_T) || z_S), both softened by tau. The
    form of the loss is that of plain distillation [abstract]; the simplifier is ours in its details, see `Simplifier`.

    Args:
        temperature: tau, of the loss and of the simplifier (default ours).
        task_loss_weight: Weight of the cross entropy (default ours).
        distill_loss_weight: Weight of the distillation loss (default ours).
        dim: Width of the simplifier's attention; by default the number of classes (ours).
        simplifier_lr: Learning rate of the simplifier, as a fraction of the student's (default ours, see
            examples/cifar100: at 0.02 the targets lost most of their accuracy).
    """
    key: ClassVar[str] = 'student_friendly_kd'
    phase: ClassVar[str] = 'student'
    extra_name: ClassVar[str] = 'simplifier'
    title: ClassVar[str] = 'Student-friendly knowledge distillation (Yuan, Lang and Quan 2023, arXiv 2305.10893)'

    temperature: float = 4.
    task_loss_weight: float = 0.1
    distill_loss_weight: float = 0.9
    dim: int | None = None
    simplifier_lr: float = 0.0005

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(is_number(self.temperature) and self.temperature > 0, 'temperature', 'a finite number > 0')
        self._require_weights('task_loss_weight', 'distill_loss_weight')
        self._require(is_number(self.simplifier_lr) and 0 < self.simplifier_lr <= 1, 'simplifier_lr',
                      'a fraction of the learning rate, above 0 and at most 1')

    def build(self, context: Context) -> Simplifier:
        return Simplifier(context.num_classes, self.temperature, self.dim)

    def run(self, step: Step) -> torch.Tensor:
        return step.extra(step.reference)

    def terms(self, step: Step) -> dict[str, torch.Tensor]:
        """``"task_loss"``, ``"kd_loss"``; of the targets ``"target_top1"`` (%) and ``"target_entropy"`` (nats)."""
        task_loss = step.task_loss()
        log_q = F.log_softmax(step.logits / self.temperature, dim=-1)
        log_p = F.log_softmax(step.output / self.temperature, dim=-1)
        kd_loss = F.kl_div(log_q, log_p, reduction='batchmean', log_target=True) * (self.temperature ** 2)
        extra = step.extra
        of_targets = extra.watch.update(step.reference, step.output, step.target, self.temperature, extra.training)
        return {'task_loss': task_loss, 'kd_loss': kd_loss, **of_targets}

    def weights(self, progress: Progress) -> Mapping[str, float]:
        return {'task_loss': self.task_loss_weight, 'kd_loss': self.distill_loss_weight}
