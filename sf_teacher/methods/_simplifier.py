"""Student-friendly knowledge distillation: a simplifier turns a frozen teacher's logits into targets for the student.

After the abstract of Yuan, Lang and Quan (2023, arXiv 2305.10893): the teacher's softened logits pass through a
learning simplifier, an attention, which the distillation loss trains together with the student. The rest is ours: the
batch as the attention's sequence, the residual that starts as an identity, learning rates, checks and defaults.
"""
from __future__ import annotations

import logging
import math

import torch
from torch import nn

from ..errors import SFTeacherError
from ..functional import entropy, top1

_logger = logging.getLogger(__name__)


class Simplifier(nn.Module):
    """Attention over the batch, added to the teacher's logits: z + tau * proj(attention(z / tau)).

    Queries, keys and values are linear in the K softened logits. The output projection starts at zero, so that the
    targets start as the teacher's own. Permuting the batch permutes the targets. Under distributed training each
    process attends to its own part of the batch. All of this is ours; the abstract says "attention".

    Args:
        num_classes: K.
        temperature: tau that softens the logits, that of the distillation loss.
        dim: Width of queries, keys and values; by default K.

    Shape:
        - input: the teacher's logits [B, K], B >= 2 in training.
        - output: targets, as logits [B, K] of the same scale.
    """

    def __init__(self, num_classes: int, temperature: float = 4., dim: int | None = None) -> None:
        super().__init__()
        for name, value in (('num_classes', num_classes), ('dim', num_classes if dim is None else dim)):
            if type(value) is not int or value < 1:
                raise SFTeacherError(f'Simplifier({name}={value!r}): {name} must be a whole number > 0')
        if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0):
            raise SFTeacherError(f'Simplifier(temperature={temperature!r}): temperature must be a finite number > 0')
        self.num_classes, self.temperature, self.dim = num_classes, float(temperature), dim or num_classes
        self.watch = CollapseWatch()
        self.qkv = nn.Linear(num_classes, 3 * self.dim)
        self.proj = nn.Linear(self.dim, num_classes)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise SFTeacherError(f"the simplifier was built for {self.num_classes} classes; the teacher's logits are "
                                 f'{list(logits.shape)}, not [B, {self.num_classes}]: build it with their number')
        if self.training and len(logits) < 2:
            raise SFTeacherError('the simplifier attends to the other images of the batch and got a batch of 1 in '
                                 'training: use a larger batch, and drop_last=True where the last one may be of 1')
        q, k, v = self.qkv(logits / self.temperature).chunk(3, dim=-1)
        attention = (q @ k.T / math.sqrt(self.dim)).softmax(dim=-1)
        return logits + self.temperature * self.proj(attention @ v)

    def extra_repr(self) -> str:
        return f'num_classes={self.num_classes}, temperature={self.temperature:g}, dim={self.dim}'


class CollapseWatch:
    """Warns, once, when a simplifier's targets say much less than the teacher does; the criteria are ours.

    Over `interval` training steps together: the targets' accuracy is below half of the teacher's, or their distance
    from uniform targets, log K - entropy, below a tenth of the teacher's, or they are not finite.

    Args:
        interval: Steps between checks, so that a GPU is seldom waited for.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval, self.warned, self._steps = interval, False, 0
        self._sums: torch.Tensor | None = None

    @torch.no_grad()
    def update(
            self,
            teacher: torch.Tensor,
            targets: torch.Tensor,
            labels: torch.Tensor,
            temperature: float,
            training: bool,
    ) -> dict[str, torch.Tensor]:
        """Look at a batch.

        Args:
            teacher: The teacher's logits [B, K].
            targets: The simplifier's [B, K].
            labels: [B], or soft [B, K]; where one is negative, there is none and the teacher's own class stands in.
            temperature: tau of the distillation loss.
            training: Whether to count the batch.

        Returns:
            ``"target_top1"`` in percent and ``"target_entropy"`` in nats, of the softened targets.
        """
        labels = labels if labels.ndim == 1 else labels.argmax(-1)
        labels = labels.where(labels >= 0, teacher.argmax(-1))
        both = torch.stack([teacher, targets]).float()
        accuracy, spread = top1(both, labels), entropy(both, temperature)
        if training and not self.warned:
            values = torch.stack([accuracy, math.log(both.shape[-1]) - spread])     # [accuracy and distance, 2]
            self._sums = values if self._sums is None else self._sums + values
            self._steps += 1
            if self._steps == self.interval:
                self._check((self._sums / self._steps).tolist(), self._steps)
                self._sums, self._steps = None, 0
        return {'target_top1': accuracy[1], 'target_entropy': spread[1]}

    def _check(self, values: list[list[float]], steps: int) -> None:
        (teacher_top1, top1), (teacher_distance, distance) = values
        if top1 >= teacher_top1 / 2 and distance >= teacher_distance / 10:      # False for nan
            return
        self.warned = True
        _logger.warning(
            'The simplifier has collapsed: over %d steps its targets had %.1f %% accuracy and were %.3g nats from '
            'uniform, the teacher\'s %.1f %% and %.3g nats. The student learns little from such targets: train the '
            'simplifier with a smaller learning rate.', steps, top1, distance, teacher_top1, teacher_distance)
