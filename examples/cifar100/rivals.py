"""Student-side rivals: losses that claim to make a better student of the same standard teacher."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask


def decoupled(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """DKD: Decoupled Knowledge Distillation (Zhao et al., CVPR 2022), with its weights 1 and 8 of CIFAR-100.

    Without labels the teacher's own prediction takes the target's place (ours), see `RivalTask`.
    """
    s, t = (F.log_softmax(z.float() / temperature, 1) for z in (student, teacher))
    of_target = F.one_hot(target, s.shape[1]).bool()
    binary = [torch.stack([z[of_target], torch.logsumexp(z.masked_fill(of_target, -torch.inf), 1)], 1) for z in (s, t)]
    others = [F.log_softmax(z[~of_target].view(len(z), -1), 1) for z in (s, t)]
    parts = [F.kl_div(a, b, reduction='batchmean', log_target=True) for a, b in (binary, others)]
    return (parts[0] + 8 * parts[1]) * temperature ** 2


def standardised(
        student: torch.Tensor,
        teacher: torch.Tensor,
        target: torch.Tensor,
        temperature: float,
) -> torch.Tensor:
    """Logit standardisation (Sun et al., CVPR 2024): plain distillation of each sample's z-scores."""
    s, t = ((z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)
            for z in (student.float(), teacher.float()))
    return F.kl_div(F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1), reduction='batchmean',
                    log_target=True) * temperature ** 2


LOSSES = {'dkd': decoupled, 'logit_standardisation': standardised}


class RivalTask(LogitDistillationTask):
    """Distillation with one of `LOSSES` in the place of the plain divergence.

    Args:
        loss: Its name.
        unlabelled: Whether the targets say nothing.
    """

    def __init__(self, *args: Any, loss: str, unlabelled: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss, self.unlabelled = LOSSES[loss], unlabelled

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        student = self.trainable_module(input)
        with torch.no_grad():
            teacher = self.teacher(input)
        task_loss = self.criterion(student, target)
        said = teacher.argmax(1) if self.unlabelled else target
        distill_loss = self.loss(student, teacher, said, self.temperature)
        return {'loss': self.task_loss_weight * task_loss + self.distill_loss_weight * distill_loss,
                'output': student, 'task_loss': task_loss, 'distill_loss': distill_loss}
