"""Formulas on tensors, each once: no models, no settings, no state."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def at_least_single(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 where they are in half precision, whose logarithms are too coarse to subtract."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


def kl_divergence(
        teacher: torch.Tensor,
        branch: torch.Tensor,
        temperature: float = 1.,
        direction: str = 'teacher||branch',
) -> torch.Tensor:
    """tau^2 * KL between two softened predictions, averaged over the batch; in nats for tau = 1.

    Args:
        teacher: Logits [B, K].
        branch: Logits [B, K].
        temperature: tau.
        direction: ``"teacher||branch"``, sum p_T log(p_T / p_b), or ``"branch||teacher"``.
    """
    p, q = (F.log_softmax(at_least_single(z) / temperature, dim=-1) for z in (teacher, branch))
    if direction == 'branch||teacher':
        p, q = q, p
    return temperature ** 2 * F.kl_div(q, p, reduction='batchmean', log_target=True)


def entropy(logits: torch.Tensor, temperature: float = 1.) -> torch.Tensor:
    """Mean entropy of softened predictions in nats.

    Args:
        logits: [..., B, K].
        temperature: tau.

    Returns:
        [...].
    """
    log_p = F.log_softmax(at_least_single(logits) / temperature, dim=-1)
    return -(log_p.exp() * log_p).sum(-1).mean(-1)


def top1(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Accuracy in percent.

    Args:
        logits: [..., B, K].
        labels: [B].

    Returns:
        [...].
    """
    return (logits.argmax(-1) == labels).float().mean(-1) * 100


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error (torchmetrics): confidence against accuracy in bins of equal width.

    Args:
        logits: [N, K].
        labels: [N].
        bins: Their number.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error(logits.softmax(-1), labels, num_classes=logits.shape[-1], n_bins=bins).item()


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same images (Kornblith et al. 2019).

    Args:
        x: [N, D1].
        y: [N, D2].

    Returns:
        0 to 1 (equal up to rotation and scale); nan where one of them is constant. It is biased upwards where there are
        not many more images than channels: unrelated features of 512 channels have 0.5 for 500 images.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    scale = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return (torch.linalg.matrix_norm(y.T @ x) ** 2 / scale).item() if scale > 0 else math.nan
