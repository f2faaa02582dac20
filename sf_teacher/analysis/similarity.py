"""How alike two models are on the same images, how calibrated one is, and how sure a mean is."""
from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..split.boundaries import Boundary
from ..split.teacher_taps import forward_with_maps

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


@dataclass
class Seen:
    """What a model says of images, on the CPU: logits [N, K], pooled features [N, C] by boundary, and labels [N]."""
    logits: torch.Tensor
    features: list[torch.Tensor]
    labels: torch.Tensor


@torch.inference_mode()
def see(model: nn.Module, loader: Iterable[Any], boundaries: Sequence[Boundary] = ()) -> Seen:
    """Run a model, in eval mode, over all batches (images, labels), with its features at these boundaries."""
    model.eval()
    device = next(model.parameters()).device
    logits, labels = [], []
    features: list[list[torch.Tensor]] = [[] for _ in boundaries]
    for images, target in loader:
        images = images.to(device)
        z, maps = forward_with_maps(model, boundaries, images) if boundaries else (model(images), [])
        logits.append(z.float().cpu())
        labels.append(target.cpu())
        for kept, m in zip(features, maps, strict=True):
            kept.append(m.float().mean((2, 3)).cpu())
    return Seen(torch.cat(logits), [torch.cat(kept) for kept in features], torch.cat(labels))


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same images (Kornblith et al. 2019).

    Args:
        x: [N, D1].
        y: [N, D2].

    Returns:
        0 (unrelated) to 1 (equal up to rotation and scale); nan where one of them is constant.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    scale = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return (torch.linalg.matrix_norm(y.T @ x) ** 2 / scale).item() if scale > 0 else math.nan


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error: confidence against accuracy in bins of equal width, weighted by their images."""
    confidence, predicted = logits.softmax(-1).max(-1)
    correct = (predicted == labels).to(confidence.dtype)
    index = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=confidence.dtype).index_add(0, index, confidence - correct)
    return (gaps.abs().sum() / len(labels)).item()


def entropy(logits: torch.Tensor) -> float:
    """Mean entropy of the predictions, in nats."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean().item()


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """Mean KL(teacher || student) of the predictions, in nats."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction='batchmean', log_target=True).item()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    t = _T[min(len(values) - 2, len(_T) - 1)]
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))
