"""RepDistiller (HobbitLong) and SimKD (DefangChen): an exported teacher with the interface of their models.

Two lines at the end of their ``models/__init__.py``::

    from sf_teacher.adapters.repdistiller import add_teacher
    add_teacher(model_dict, "exported/resnet18-sft", stages=[0, 1, 2, 3])

and ``python train_student.py --path_t exported/resnet18-sft/teacher.pth --distill kd --model_s resnet8x4 …``: they take
the architecture from the name of the checkpoint's folder, up to the first underscore.
"""
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sf_teacher import SFTeacherError

from ._timm import FeatureTeacher


class RepDistillerTeacher(FeatureTeacher):
    """``teacher(x)``: logits; ``teacher(x, is_feat=True)``: ``([maps..., pooled], logits)``; see `FeatureTeacher`."""

    def forward(self, x: torch.Tensor, is_feat: bool = False, preact: bool = False) -> Any:
        if preact:
            raise SFTeacherError(
                'abound compares features before the activation on a fixed grid of stages, which a timm model does not '
                'have. Use kd, hint, attention, similarity, correlation, vid, crd, rkd, pkt, factor or nst')
        if not is_feat:
            return self.model(x)
        logits, maps, pooled = self.run(x)
        return [*maps, pooled], logits

    def get_feat_modules(self) -> nn.ModuleList:
        """For SimKD's simkd and srrl, which take the last item, the classifier; see `FeatureTeacher.classifier`."""
        return nn.ModuleList([self.classifier()])


def add_teacher(model_dict: dict[str, Any], folder: str, stages: Sequence[int] | None = None) -> None:
    """Add a teacher to RepDistiller's `model_dict` under the name that it parses from the folder's.

    Args:
        model_dict: ``models.model_dict``.
        folder: The exported folder.
        stages: See `FeatureTeacher`.

    Raises:
        SFTeacherError: The name is another model's.
    """
    name = Path(folder).name
    key = '_'.join(name.split('_')[:3]) if name.startswith('wrn_') else name.split('_')[0]
    taken = model_dict.get(key)
    if taken is not None and getattr(taken, 'func', None) is not RepDistillerTeacher:
        raise SFTeacherError(f'RepDistiller reads the architecture {key!r} from the folder name {name!r}, and that is '
                             f'a model of its own: rename the folder, e.g. to {key}-sft')
    model_dict[key] = functools.partial(RepDistillerTeacher, folder, stages)
