"""What an export checks and computes before it writes: the same lines before a training and after it."""
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.task import TrainingTask
from torch import nn

from ..errors import SFTeacherError
from ..version import __version__
from . import json_values, normalise
from .architecture import check_factory_arguments, factory_path, identify, name_of, restore_constants
from .class_names import check_class_names, class_names_of
from .hooks import check_hooks
from .reload import versions
from .torchvision_format import to_torchvision
from .writer import find_place
from .zoo_layout import check_layout

FORMATS = ('timm', 'torchvision')


@dataclass(frozen=True)
class Prepared:
    """What is to be written.

    Args:
        target: Where to.
        teacher: The plain teacher, see `normalise.plain_copy`.
        facts: What rebuilds and describes it.
        notes: What was trained and how.
        inputs: The probe's images [N, C, H, W].
        logits: The teacher's for them [N, K].
        theirs: The weights under torchvision's keys, where these were asked for.
    """
    target: Path
    teacher: nn.Module
    facts: dict[str, Any]
    notes: dict[str, Any]
    inputs: torch.Tensor
    logits: torch.Tensor
    theirs: dict[str, torch.Tensor] | None


def prepare(
        model: nn.Module,
        folder: str | os.PathLike[str],
        *,
        input_size: Sequence[int] | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        model_args: Mapping[str, Any] | None = None,
        factory: str | Callable[..., nn.Module] | None = None,
        class_names: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        format: str = 'timm',
        layout: str | None = None,
) -> Prepared:
    """All of an export but the writing and the reloading; the arguments are those of `export`.

    Raises:
        SFTeacherError: The model, the place or an argument is not fit for it.
    """
    if format not in FORMATS:
        raise SFTeacherError(f'format is one of {", ".join(map(repr, FORMATS))}, got {format!r}')
    target = find_place(folder, overwrite)
    notes, args = json_values.metadata(metadata), json_values.primitives('model_args', model_args)
    if isinstance(model, TrainingTask):
        raise SFTeacherError(f'export takes the plain model and this is a {type(model).__name__}: call task.export('
                             f'folder), or pass task.get_eval_model()')
    model = normalise.unwrapped(model)
    teacher = normalise.plain_copy(model)
    arch = None
    if factory is None:
        arch, args = identify(teacher, args)
        if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in model.state_dict().values()):
            restore_constants(teacher, arch, args)
    else:
        factory = factory_path(factory)
        check_factory_arguments(args)
    if layout is not None:
        check_layout(layout, factory, target)
    data_config = normalise.data_config(teacher, input_size, mean, std)
    inputs, logits = normalise.probe(teacher, data_config['input_size'])
    check_hooks(model, teacher, inputs, logits)
    facts: dict[str, Any] = {
        'arch': arch,
        'factory': factory,
        'model_args': args,
        'num_classes': logits.shape[1],
        'class_names': class_names_of(teacher) if class_names is None
        else check_class_names(class_names, logits.shape[1]),
        **data_config,
        'sf_teacher_version': __version__,
        'versions': versions(),
    }
    theirs = to_torchvision(name_of(teacher), teacher.state_dict(), inputs, logits) if format == 'torchvision' else None
    return Prepared(target, teacher, facts, notes, inputs, logits, theirs)
