"""Before a run: the device of this process, an exported teacher, and whether a model takes the images."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils.distributed import init_distributed_device_so, is_distributed_env
from torch import nn

from ..errors import SFTeacherError
from ..exporting.class_names import class_names_of
from ..exporting.verify import check_folder
from ..validation import setting

__all__ = ['check_forward', 'class_names_of', 'exported_folder', 'init_device', 'load_teacher']


def exported_folder(folder: str) -> Path:
    """Where the exported files are: the folder itself or, if it is that of a run, the one in it."""
    path = Path(folder.removeprefix('local-dir:'))
    of_run = path / 'teacher'
    return of_run if not os.path.exists(path / 'config.json') and os.path.exists(of_run / 'config.json') else path


def load_teacher(folder: str) -> nn.Module:
    """An exported teacher, in eval mode and frozen; `class_names_of(teacher)` says how its classes are called.

    Args:
        folder: The exported folder, ``local-dir:`` before it or not, or the folder of the run that exported it.

    Raises:
        SFTeacherError: This is no folder that plain timm loads.
    """
    path = exported_folder(folder)
    missing = [name for name in ('config.json', 'model.safetensors') if not os.path.isfile(path / name)]
    if missing:
        raise SFTeacherError(f'{setting("teacher", folder)} is no exported timm folder ({" and ".join(missing)} '
                             f'missing): give the folder that train or export wrote, of a model that timm builds by '
                             f'its name (with factory there is only teacher.pth, for a loop of your own)')
    check_folder(path)
    try:
        model = timm.create_model(f'local-dir:{path}', pretrained=True)
    except Exception as error:
        raise SFTeacherError(f'timm cannot load the teacher in {folder} ({type(error).__name__}: {error}): '
                             f'`sf-teacher verify {path}` says more') from error
    return model.eval().requires_grad_(False)


def check_forward(model: nn.Module, role: str, size: Any, num_classes: int, device: torch.device) -> None:
    """Run two images through a model in eval mode, so that a size or class count that does not fit is found now."""
    training = model.training
    try:
        with torch.inference_mode():
            output = model.eval()(torch.zeros(2, *size, device=device))
    except Exception as error:
        raise SFTeacherError(f'{role} {type(model).__name__} does not take images of '
                             f'{setting("input_size", tuple(size))} '
                             f'({type(error).__name__}: {error}): give the size that it was made for') from error
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != (2, num_classes):
        raise SFTeacherError(f'{role} {type(model).__name__} does not return one tensor of logits for {num_classes} '
                             f'classes: choose another model')


def init_device(name: str) -> torch.device:
    """The device of this process; joins the other processes that torchrun started, if any."""
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        if is_distributed_env() and not torch.distributed.is_initialized():
            device = torch.device(init_distributed_device_so(name)['device'])
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SFTeacherError(f'{setting("device", name)} cannot be used here ({str(error).splitlines()[0]}): try '
                             f'cpu') from error
    return device
