"""TESKD's branches: students on a feature pyramid over the teacher's own stages."""
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ..errors import SFTeacherError
from ..split.boundaries import Boundary
from ._branches import BranchOutput, BranchSet
from .base import Context

STAGES = 4


def pyramid_boundaries(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """The last boundary of each of the last four resolutions, or four evenly spaced ones where there is only one.

    The model's last boundary is always among them. Where a model has fewer, all of them.

    Args:
        boundaries: All boundaries of a teacher, in order of depth.
    """
    last = {b.size: i for i, b in enumerate(boundaries)}    # of each resolution
    if len(last) > 1:
        return [boundaries[i] for i in sorted(last.values())[-STAGES:]]
    count = min(STAGES, len(boundaries))
    return [boundaries[math.ceil(len(boundaries) * k / count) - 1] for k in range(1, count + 1)]


def _conv_norm_act(in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, stride, stride, bias=bias)      # kernel = stride, here and there
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def _enlarged(up: Any, level: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """`up` of the level interpolated to a size; a 1x1 convolution may go first, where there are fewer positions."""
    conv, norm, act = up
    level = conv(level)
    if level.shape[2:] != size:
        level = F.interpolate(level, size, mode='bilinear', align_corners=True)
    return act(norm(level))


def _merged(merge: Any, up: torch.Tensor, lateral: torch.Tensor) -> torch.Tensor:
    """`merge` of cat([up + lateral, up]), without that tensor: two products of what is kept for the backward anyway."""
    conv, norm, act = merge
    of_sum, of_up = conv.weight.chunk(2, dim=1)
    return act(norm(F.conv2d(up, of_sum + of_up) + F.conv2d(lateral, of_sum)))


class PyramidStudent(nn.Module):
    """Strided convolution to the size of the last stage, 1x1 convolution to its width, pooling, classifier [code].

    Args:
        width: D, channels of the pyramid.
        channels: C_T, channels of the teacher's last stage, so that the student's feature can be compared with it.
        num_classes: K.
        stride: Kernel and stride of the first convolution.

    Shape:
        - input: P_i [B, D, H, W].
        - output: logits z_i [B, K] and feature f_i [B, C_T].
    """

    def __init__(self, width: int, channels: int, num_classes: int, stride: int) -> None:
        super().__init__()
        self.down = _conv_norm_act(width, width, stride, bias=True)
        self.proj = _conv_norm_act(width, channels, bias=True)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature = self.proj(self.down(x)).mean((2, 3))
        return self.fc(feature), feature


class FeaturePyramid(BranchSet):
    """TESKD: a top-down pyramid over the stages S_1..S_N, and a student on each of its levels but the last [code].

    L_i = lateral(S_i), P_N = L_N, U_i = up(resize(P_{i+1})), P_i = merge(concat[U_i + L_i, U_i]), z_i = student(P_i).
    Each of lateral, up and merge is a 1x1 convolution without bias, batch norm and ReLU; resize is bilinear with
    ``align_corners=True``, and nothing where the sizes agree (isotropic models, ours).

    Where a stage's size is no multiple of the last one's, the student's stride is the ratio rounded (ours). Features
    are compared in the sum over batch and channels; under distributed training this is the sum over the batches of all
    processes (ours), so that the loss is that of one process with the whole batch.

    Args:
        context: Teacher; the boundaries that the user named are S_1..S_N, else see `pyramid_boundaries`.
        width: D; None for C_T, the official width [code].
        feature_weight: Weight of the distance between the features of students and teacher.
    """

    def __init__(self, context: Context, width: int | None = 128, feature_weight: float = 1e-7) -> None:
        super().__init__()
        selection = context.selection
        chosen = selection.chosen
        self.boundaries = list(chosen) if chosen is not None else pyramid_boundaries(selection.teacher)
        if len(self.boundaries) < 2:
            given = ', '.join(b.name for b in self.boundaries) or 'none'
            raise SFTeacherError(f'TESKD needs at least 2 stages of the teacher and has {given}: name more in '
                                 f'`boundaries`, or choose a teacher with more stages')
        sizes = [b.size for b in self.boundaries]
        channels = [b.layouts[0].channels for b in self.boundaries]
        self.width, self.channels, self.feature_weight = width or channels[-1], channels[-1], feature_weight
        names = [b.name for b in self.boundaries]      # not unique where one module has several streams
        self.names = [name if names.count(name) == 1 else f'{name}[{b.index}]'
                      for name, b in zip(names, self.boundaries, strict=True)][:-1]
        self.strides = [max(round(a[0] / sizes[-1][0]), 1) for a in sizes[:-1]]
        self.laterals = nn.ModuleList(_conv_norm_act(c, self.width) for c in channels)
        self.ups = nn.ModuleList(_conv_norm_act(self.width, self.width) for _ in self.names)
        self.merges = nn.ModuleList(_conv_norm_act(2 * self.width, self.width) for _ in self.names)
        self.students = nn.ModuleList(
            PyramidStudent(self.width, self.channels, context.num_classes, stride) for stride in self.strides)

    def forward(self, maps: list[torch.Tensor], teacher_logits: torch.Tensor) -> BranchOutput:
        laterals = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        level = laterals[-1]
        levels: list[torch.Tensor] = []
        for up, merge, lateral in reversed(list(zip(self.ups, self.merges, laterals[:-1], strict=True))):
            level = _merged(merge, _enlarged(up, level, lateral.shape[2:]), lateral)
            levels.insert(0, level)
        target = maps[-1].mean((2, 3)).detach()
        logits: dict[str, torch.Tensor] = {}
        distance = target.new_zeros(())
        for name, student, level in zip(self.names, self.students, levels, strict=True):
            logits[name], feature = student(level)
            distance = distance + (feature - target).square().sum()
        if not self.feature_weight:
            return BranchOutput(logits)
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return BranchOutput(logits, {'feature_distance': self.feature_weight * processes * distance})

    def describe(self) -> list[str]:
        lines = [f'pyramid of width {self.width} over {", ".join(map(str, self.boundaries))}']
        return lines + [f'{name}: level of the pyramid -> Conv2d{s}x{s}/{s} -> {self.channels} channels -> classifier'
                        for name, s in zip(self.names, self.strides, strict=True)]
