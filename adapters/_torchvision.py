"""An exported teacher as torchvision's module of the same architecture, for configs that name its modules."""
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from sf_teacher import SFTeacherError
from sf_teacher.exporting.torchvision_format import torchvision_model

from ._label_names import follow_label_names, keep_order
from ._timm import LOCAL, build_teacher


def build_torchvision_teacher(
        model_name: str,
        num_classes: int | None = None,
        label_names: Sequence[str] | str | None = None,
) -> nn.Module:
    """torchvision's model with an exported teacher's weights, in eval mode.

    Args:
        model_name: ``local-dir:FOLDER``, an exported folder.
        num_classes: Classes; the folder knows its own and refuses others.
        label_names: See `follow_label_names`.

    Returns:
        ``torchvision.models.NAME``; on an image of the size that the teacher was made for it gives the same logits as
        the timm model, within `sf_teacher.exporting.torchvision_format.TOLERANCE`.

    Raises:
        SFTeacherError: The folder is missing or damaged, or torchvision has no model that computes the same.
    """
    if not model_name.startswith(LOCAL):
        raise SFTeacherError(f'model_name {model_name!r}: give \'{LOCAL}FOLDER\', a folder that `sf-teacher export` '
                             f'wrote. torchvision\'s own weights come under torchvision\'s own key')
    teacher: Any = build_teacher(model_name, num_classes=num_classes)
    order = follow_label_names(teacher, label_names, model_name)
    arch = teacher.pretrained_cfg['architecture']
    inputs = torch.randn(2, *timm.data.resolve_model_data_config(teacher)['input_size'],
                         generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = teacher(inputs)
    try:
        model = torchvision_model(arch, teacher.state_dict(), inputs, logits)
    except SFTeacherError as error:
        raise SFTeacherError(
            f'model_name {model_name!r}: torchvision has no model that computes what this {arch} computes. Use the '
            f'key \'sf_teacher.timm_teacher\', and name its modules as `sf-teacher inspect {arch} --hooks` shows them '
            f'({error})') from error
    if order is not None:
        keep_order(model, order, model_name)
    return model
