"""Formulas on tensors, each once: no models, no settings, no state."""
from __future__ import annotations

import torch
import torch.nn.functional as F


def kl_divergence(
        teacher: torch.Tensor,
        branch: torch.Tensor,
        temperature: float = 1.,
        direction: str = 'teacher||branch',
) -> torch.Tensor:
    """tau^2 * KL between two softened predictions, averaged over the batch.

    Args:
        teacher: Logits [B, K].
        branch: Logits [B, K].
        temperature: tau.
        direction: ``"teacher||branch"``, sum p_T log(p_T / p_b), or ``"branch||teacher"``.
    """
    p = F.log_softmax(teacher / temperature, dim=-1)
    q = F.log_softmax(branch / temperature, dim=-1)
    if direction == 'branch||teacher':
        p, q = q, p
    return temperature ** 2 * F.kl_div(q, p, reduction='batchmean', log_target=True)
