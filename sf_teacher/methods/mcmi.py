"""MCMI: a trained teacher is fine-tuned so that its predictions tell more of an image than its class."""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ..validation import option
from .base import Context, Method, Progress, Step
from .registry import register_method

SMALLEST = 1e-25    # of a centroid's probability


@register_method
@dataclass(frozen=True)
class MCMI(Method):
    """Maximum conditional mutual information (Ye et al., ICLR 2024, arXiv 2401.08732): fine-tunes a trained teacher.

    CE(z, y) - cmi_weight * KL(p || Q_y), averaged over the batch, where Q_y, the centroid, is the mean of p over the
    training images of class y, augmented as they come and in train mode [code]. The mean of this divergence is the
    conditional mutual information of image and prediction, given the class; it is to rise.

    - Q is taken anew after every epoch, from the predictions of that epoch (ours; in the authors' code once, before the
      first). Until a class has one, its mean so far in the current epoch stands in, this batch included (ours).
    - Q is in single precision, over the images of all processes (ours), and at least 1e-25 (ours).
    - Soft targets: the divergences from all centroids in their shares, and a share of p in each centroid (ours).

    Authors' schedule [code]: 20 epochs from a teacher trained for 240 (CIFAR-100), SGD with lr 0.05 (0.005 for
    MobileNet and ShuffleNet) and cosine decay, batch 64, weight decay 5e-4.
    """
    key: ClassVar[str] = 'mcmi'
    trained_teacher: ClassVar[bool] = True
    title: ClassVar[str] = 'Maximum conditional mutual information (Ye et al., ICLR 2024, arXiv 2401.08732)'

    teacher_weight: float = option(1., 'weight of the task loss', source='code', low=0)
    cmi_weight: float = option(
        0.25, 'lambda; 0.1 to 0.25 by the architecture, 0.25 for VGG-11', source='code', low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.teacher_weight > 0 or self.cmi_weight > 0, 'teacher_weight',
                      'above 0 where cmi_weight is 0, as nothing else trains the teacher')

    @property
    def active(self) -> bool:
        return bool(self.cmi_weight)

    def build(self, context: Context) -> Centroids:
        return Centroids(context.num_classes)

    def terms(self, step: Step) -> dict[str, torch.Tensor]:
        """``"teacher_ce"`` and ``"cmi"``, the mean divergence in nats, which the loss subtracts."""
        terms = {'teacher_ce': step.task_loss()}
        if not self.active:
            return terms
        device = step.logits.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            logits = step.logits.to(torch.promote_types(step.logits.dtype, torch.float32))
            log_p = F.log_softmax(logits, dim=-1)
            share = step.target if step.target.is_floating_point() else F.one_hot(step.target.long(), logits.shape[-1])
            share = share.to(log_p.dtype)       # of each class in each image, [B, K]
            if step.extra.training:
                step.extra.update(share, log_p.detach().exp())
            log_q, known = step.extra.log_centroids(log_p)
            share = share * known
            divergence = log_p.exp() * (share.sum(-1, keepdim=True) * log_p - share @ log_q)
            terms['cmi'] = divergence.sum(-1).mean()
        return terms

    def weights(self, progress: Progress) -> Mapping[str, float]:
        return {'teacher_ce': self.teacher_weight, 'cmi': -self.cmi_weight}

    def set_epoch(self, extra: nn.Module | None, progress: Progress) -> None:
        if isinstance(extra, Centroids):
            extra.refresh()


class Centroids(nn.Module):
    """The mean prediction for each class: that of the epoch before, or of the current one where there is none.

    ``memory`` holds in single precision ``centroids`` [K, K], rows of zeros where a class has none yet, and of the
    current epoch on all processes ``sums`` [K, K] and ``counts`` [K].

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.memory = {'centroids': torch.zeros(num_classes, num_classes),
                       'sums': torch.zeros(num_classes, num_classes), 'counts': torch.zeros(num_classes)}

    @torch.no_grad()
    def update(self, share: torch.Tensor, p: torch.Tensor) -> None:
        """Take in a batch: the classes' shares [B, K] in its images, and its predictions [B, K]."""
        share, p = share.float(), p.float()
        batch = torch.cat([share.T @ p, share.sum(0)[:, None]], dim=1)      # [K, K + 1]
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(batch)
        self.memory = {name: held.to(batch.device) for name, held in self.memory.items()}
        self.memory['sums'] += batch[:, :-1]
        self.memory['counts'] += batch[:, -1]

    @torch.no_grad()
    def log_centroids(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log Q [K, K] by class, and whether each class has a centroid [K], as 1 or 0."""
        held = {name: value.to(like.device) for name, value in self.memory.items()}
        so_far = held['sums'] / held['counts'].clamp(min=SMALLEST)[:, None]
        before = held['centroids'].sum(-1) > 0
        q = torch.where(before[:, None], held['centroids'], so_far)
        return q.clamp(min=SMALLEST).log().to(like.dtype), (before | (held['counts'] > 0)).to(like.dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """Turn the sums of the epoch that has ended into centroids."""
        centroids, sums, counts = (self.memory[name] for name in ('centroids', 'sums', 'counts'))
        seen = counts > 0
        fresh = torch.where(seen[:, None], sums / counts.clamp(min=SMALLEST)[:, None], centroids)
        self.memory = {'centroids': fresh, 'sums': torch.zeros_like(sums), 'counts': torch.zeros_like(counts)}
