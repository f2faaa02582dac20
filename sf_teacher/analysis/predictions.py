"""What a model says of images."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..split.boundaries import Boundary
from ..split.tapping import forward_with_maps


@dataclass
class Predictions:
    """What a model says of images, on the CPU: logits [N, K], pooled features [N, C] by boundary, and labels [N]."""
    logits: torch.Tensor
    features: list[torch.Tensor]
    labels: torch.Tensor

    @property
    def right(self) -> torch.Tensor:
        """On which images the label is the most likely class [N]."""
        return self.logits.argmax(1) == self.labels


@torch.inference_mode()
def predict(model: nn.Module, loader: Iterable[Any], boundaries: Sequence[Boundary] = ()) -> Predictions:
    """Run a model, in eval mode, over all batches (images, labels), with its features at these boundaries."""
    model.eval()
    device = next(model.parameters()).device
    logits, labels = [], []
    features: list[list[torch.Tensor]] = [[] for _ in boundaries]
    for images, target in loader:
        z, maps = forward_with_maps(model, boundaries, images.to(device))
        logits.append(z.float().cpu())
        labels.append(target.cpu())
        for kept, m in zip(features, maps, strict=True):
            kept.append(m.float().mean((2, 3)).cpu())
    return Predictions(torch.cat(logits), [torch.cat(kept) for kept in features], torch.cat(labels))
