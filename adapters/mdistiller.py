"""mdistiller (megvii-research): an exported teacher with the interface of its models.

Two lines at the end of its ``mdistiller/models/cifar/__init__.py`` (or of another model dict)::

    from sf_teacher.adapters.mdistiller import teacher_entry
    cifar_model_dict["resnet18-sft"] = teacher_entry("exported/resnet18-sft", stages=[0, 1, 2, 3])

and ``python tools/train.py --cfg configs/cifar100/kd.yaml DISTILLER.TEACHER resnet18-sft``.
"""
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sf_teacher import SFTeacherError

from ._timm import FeatureTeacher


class Features(dict[str, Any]):
    """``feats`` and ``pooled_feat``; ``preact_feats`` exists and says why there is none."""

    def __getitem__(self, key: str) -> Any:
        if key == 'preact_feats':
            raise SFTeacherError(
                'OFD and ReviewKD compare features before the activation on a fixed grid of stages, which a timm model '
                'does not have. Use KD, DKD, FitNet, AT, NST, PKT, SP, RKD, VID or CRD')
        return super().__getitem__(key)


class MDistillerTeacher(FeatureTeacher):
    """``teacher(image)`` gives ``(logits, {"feats", "preact_feats", "pooled_feat"})``; see `FeatureTeacher`."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Features]:
        logits, maps, pooled = self.run(x)
        return logits, Features(feats=maps, preact_feats=None, pooled_feat=pooled)

    def get_stage_channels(self) -> list[int]:
        """Channels of each of ``feats``."""
        return [self.model.feature_info[stage]['num_chs'] for stage in self.stages]

    def get_bn_before_relu(self) -> Any:
        """Needed by OFD only."""
        return Features(preact_feats=None)['preact_feats']


def teacher_entry(
        folder: str,
        stages: Sequence[int] | None = None,
) -> tuple[Callable[..., MDistillerTeacher], str]:
    """The entry of a teacher in mdistiller's model dicts: constructor and checkpoint. Arguments as `FeatureTeacher`."""
    return functools.partial(MDistillerTeacher, folder, stages), os.path.join(folder, 'teacher.pth')
