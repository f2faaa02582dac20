"""An exported teacher, found and loaded by whoever learns from it."""
from __future__ import annotations

import os

import timm
from torch import nn

from ..errors import SFTeacherError
from ..validation import setting
from .verify import check_folder, exported_folder


def load_teacher(folder: str, name: str = 'teacher') -> nn.Module:
    """An exported teacher, in eval mode and frozen; `class_names_of(teacher)` says how its classes are called.

    Args:
        folder: The exported folder, ``local-dir:`` before it or not, or the folder of the run that exported it.
        name: The setting that names it, for messages.

    Raises:
        SFTeacherError: This is no folder that plain timm loads.
    """
    path = exported_folder(folder)
    missing = [name for name in ('config.json', 'model.safetensors') if not os.path.isfile(path / name)]
    if missing:
        raise SFTeacherError(f'{setting(name, folder)} is no exported timm folder ({" and ".join(missing)} '
                             f'missing): give the folder that train or export wrote, of a model that timm builds by '
                             f'its name (with factory there is only teacher.pth, for a loop of your own)')
    check_folder(path)
    try:
        model = timm.create_model(f'local-dir:{path}', pretrained=True)
    except Exception as error:
        raise SFTeacherError(f'timm cannot load the teacher in {folder} ({type(error).__name__}: {error}): '
                             f'`sf-teacher verify {path}` says more') from error
    return model.eval().requires_grad_(False)
