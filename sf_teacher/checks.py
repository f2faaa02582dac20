"""Checks of what a user passes in, made before anything is trained."""
import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .errors import SFTeacherError
from .validation import setting

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def check_model(model: nn.Module, role: str) -> None:
    """Refuse what is not a plain classifier of images.

    Raises:
        SFTeacherError: Says what the model is, and what to pass instead.
    """
    what = f'{role} {type(model).__name__}'
    if not isinstance(model, nn.Module):
        given = repr(model) if isinstance(model, str) else type(model).__name__
        raise SFTeacherError(f'{role} must be a torch.nn.Module, or, for sf_teacher.wrap, a timm name; not {given}')
    if isinstance(model, DataParallel | DistributedDataParallel) or hasattr(model, '_orig_mod'):
        raise SFTeacherError(f'{what} is already wrapped: pass the plain model (model.module or model._orig_mod), then '
                             f'use task.compile() and task.prepare_distributed()')
    if hasattr(model, 'module'):
        raise SFTeacherError(f'{what} has an attribute `module`, which timm takes for the model inside of a wrapper: '
                             f'its checkpoints would hold that part alone. If it is a wrapper, pass model.module, else '
                             f'call this part otherwise, e.g. `net`')
    if role == 'student' and (compiled := [n for n, m in model.named_modules() if hasattr(m, '_orig_mod')]):
        raise SFTeacherError(f'{what} is compiled in part, and is cut and copied part by part: pass it with the plain '
                             f'{compiled[0]} (student.{compiled[0]}._orig_mod in its place), then use task.compile()')
    if hasattr(model, 'trainable_module') or (hasattr(model, 'branches') and hasattr(model, 'teacher')):
        raise SFTeacherError(f'{what} is a task already: pass the plain model, task.teacher')
    if isinstance(model, torch.jit.ScriptModule):
        raise SFTeacherError(f'{what} is scripted: pass the Python model that it was made from')
    if any(type(m).__module__.startswith(('torch.ao.nn', 'torch.nn.quantized')) for m in model.modules()):
        raise SFTeacherError(f'{what} is quantised and cannot be trained: pass the float model')
    for name, p in model.named_parameters():
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise SFTeacherError(f'{what} has lazy modules: {name} has no shape yet. Run the model on one batch first')
        if is_traceable_wrapper_subclass(p):
            raise SFTeacherError(f'{what} cannot be trained here: {name} is {type(p.data).__name__}, not a plain '
                                 f'tensor (quantised by torchao, or sharded). Pass the float model on one device')
    if torch.is_inference_mode_enabled() or any(p.is_inference() for p in model.parameters()):
        raise SFTeacherError(f'{what} cannot be trained: it was built, or is used now, in torch.inference_mode(), '
                             f'whose tensors have no gradients. Build it and call sf_teacher outside')
    if type(model).__name__.startswith('Feature') and type(model).__module__ == 'timm.models._features':
        raise SFTeacherError(f'{what} was built with features_only=True and has no classifier: build it without')
    if hasattr(model, 'forward_intermediates') and not hasattr(model, 'get_classifier'):
        raise SFTeacherError(f'{what} is an encoder without a classifier: choose a model with one')
    if getattr(model, 'num_classes', 1) == 0:
        raise SFTeacherError(f'{what} was built with num_classes=0 and gives no logits: build it with num_classes=K')
    if next(model.parameters(), None) is None:
        raise SFTeacherError(f'{what} has no parameters to train')


def check_placement(model: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Refuse a device or dtype other than the teacher's, which would move or convert its branches alone."""
    for p in model.parameters():
        if dtype is not None and p.is_floating_point() and p.dtype != dtype:
            raise SFTeacherError(f'dtype={dtype} and the teacher is {p.dtype}: convert the teacher first, '
                                 f'teacher.to({dtype}), or leave dtype out; for mixed precision keep float32 and use '
                                 f'torch.autocast')
        if device is not None and (p.device.type != device.type or device.index not in (None, p.device.index)):
            raise SFTeacherError(f'device={device} and the teacher is on {p.device}: move the teacher first, '
                                 f'teacher.to("{device}"), or leave device out')


def logits_of(model: nn.Module, output: Any) -> torch.Tensor:
    """The logits [B, K] in what a model returned.

    A tensor is what it is. Known beside it are fields of which one is called ``logits`` (torchvision's GoogLeNet and
    Inception with auxiliary heads, in train mode), logits and a dictionary of features (mdistiller), and the pair of
    heads of timm's distilled models after ``set_distilled_training(True)``, whose mean they return in eval mode.

    Raises:
        SFTeacherError: It is something else.
    """
    logits = getattr(output, 'logits', output)
    if isinstance(logits, tuple | list) and logits and isinstance(logits[0], torch.Tensor):
        if len(logits) == 2 and hasattr(model, 'set_distilled_training'):
            logits = (logits[0] + logits[1]) / 2
        elif all(isinstance(other, dict) for other in logits[1:]):
            logits = logits[0]
    if isinstance(logits, torch.Tensor) and logits.ndim == 2:
        return logits
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(output).__name__
    raise SFTeacherError(f'{type(model).__name__} must return logits [B, K], one tensor; it returns {found} in '
                         f'{"train" if model.training else "eval"} mode. Switch further heads off (e.g. '
                         f'aux_logits=False), or return the logits alone')


def check_classes(student: nn.Module, classes: int, num_classes: int) -> None:
    """Refuse a student with other classes than the teacher."""
    if classes != num_classes:
        raise SFTeacherError(f'student {type(student).__name__} has {classes} classes and the teacher {num_classes}: '
                             f'build both with the same num_classes, e.g. wrap(..., num_classes={num_classes}), or '
                             f'give one that was trained on the same data')


def classes_of_weights(model: Any) -> int:
    """Classes of the weights that timm built a model from; the model's own where its configuration does not say."""
    classes: int = (getattr(model, 'pretrained_cfg', None) or {}).get('num_classes', model.num_classes)
    return classes


def check_classifier(model: Any, role: str, name: str) -> None:
    """Refuse a model whose pretrained weights are of other classes: timm made up a classifier for it.

    Raises:
        SFTeacherError: Says for how many classes there are weights.
    """
    known = classes_of_weights(model)
    if known != model.num_classes:
        has = f'have {known} classes' if known else 'have no classifier'
        raise SFTeacherError(f'the weights of {name!r} (given as {role}) {has}, and {model.num_classes} are needed: '
                             f'its classifier would be random. Train it on these classes first, and give '
                             f'local-dir:FOLDER of the result')


def shown(name: object) -> str:
    """What a user gave, for a message: readable, and not longer than a line."""
    return _SHORT.repr(name)


def check_size(input_size: Sequence[int]) -> tuple[int, int, int]:
    """An image size (C, H, W), or an error that says what it is not."""
    size = tuple(input_size) if isinstance(input_size, Sequence) else ()
    if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
        raise SFTeacherError(f'input_size must be (channels, height, width), three integers > 0; got {input_size!r}')
    return size[0], size[1], size[2]


def check_batch(images: torch.Tensor, input_size: tuple[int, int, int]) -> None:
    """Refuse what is not a batch of images with the right number of channels."""
    if images.ndim != 4 or images.shape[1] != input_size[0] or not len(images):
        raise SFTeacherError(f'images must be a batch [B, {input_size[0]}, H, W]; got shape {tuple(images.shape)}')
    if not images.is_floating_point():
        raise SFTeacherError(f'images must be floating point, normalised as the teacher expects; got {images.dtype}: '
                             f'scale them to 0..1 (ToTensor), subtract the mean and divide by the standard deviation')


def check_target(target: torch.Tensor, batch: int, num_classes: int) -> None:
    """Refuse labels out of range, and targets that do not fit the batch."""
    if target.is_floating_point():
        if tuple(target.shape) != (batch, num_classes):
            raise SFTeacherError(f'soft targets must be [B, K] = [{batch}, {num_classes}]; got {tuple(target.shape)}')
    elif tuple(target.shape) != (batch,):
        raise SFTeacherError(f'labels must be [B] = [{batch}]; got {tuple(target.shape)}')
    elif target.dtype not in (torch.int64, torch.uint8):
        raise SFTeacherError(f'labels must be torch.int64; got {target.dtype}: convert them, targets.long()')
    elif not target.is_meta and not (int(target.min()) >= 0 and int(target.max()) < num_classes):
        raise SFTeacherError(f'labels must lie in 0..{num_classes - 1}; got {int(target.min())}..{int(target.max())}. '
                             f'Is the teacher built with the right num_classes?')


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
