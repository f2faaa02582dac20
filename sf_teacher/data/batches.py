"""What a loader must give: refused before the first step where it can be seen by then, with what to give instead."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from timm.task import TrainingTask
from torch import nn

from ..errors import SFTeacherError, first_line
from ..rng import random_state, set_random_state
from ..validation import setting

_WANTED = 'give (images, labels), images float and normalised [B, C, H, W], labels [B]'
_LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_loaders(task: TrainingTask, train: Iterable[Any], evaluation: Iterable[Any] | None) -> None:
    """Look at what loaders are, and at the first batch of validation, which training would meet after an epoch only.

    Raises:
        SFTeacherError: What they give cannot be trained or evaluated with.
    """
    for role, loader in (('training', train), ('validation', evaluation)):
        if loader is None:
            continue
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise SFTeacherError(f'the {role} loader is a {type(loader).__name__}, which cannot be gone through in '
                                 f'every epoch: give a loader, e.g. torch.utils.data.DataLoader')
    try:
        batches = len(train)    # type: ignore[arg-type]
    except TypeError as error:
        raise SFTeacherError(f'the training loader has no length ({error}), and the schedule needs the number of '
                             f'batches in an epoch: give it a __len__') from error
    if not batches:
        raise SFTeacherError(f'the training loader has no batch: fewer images than one batch? Lower '
                             f'{setting("batch_size")}')
    _check_batch_norm(task, train)
    if evaluation is None:
        return
    state = random_state(task.device)       # as if nothing had been looked at
    try:
        batch = next(iter(evaluation), None)
    finally:
        set_random_state(state, task.device)
    if batch is None:
        raise SFTeacherError('the validation loader has no batch: give images, or None for no validation')
    check_evaluated(unpacked(batch, 'validation')[1], task)


def unpacked(batch: Any, role: str, extra: bool = False) -> tuple[torch.Tensor, ...]:
    """Images, targets and, with `extra`, the numbers of the images.

    Raises:
        SFTeacherError: The batch is something else.
    """
    if isinstance(batch, Mapping):
        names = ', '.join(map(repr, batch))
        raise SFTeacherError(f'the {role} loader gives mappings with {names}: {_WANTED}, e.g. by a collate_fn')
    if not isinstance(batch, tuple | list) or len(batch) != 2 + extra:
        what = f'{len(batch)} values' if isinstance(batch, tuple | list) else f'a {type(batch).__name__}'
        raise SFTeacherError(f'the {role} loader gives {what} a batch: {_WANTED}'
                             + ' and the numbers of the images, which the method needs' * extra)
    images, target, *_ = batch
    if not isinstance(images, torch.Tensor) or not isinstance(target, torch.Tensor):
        raise SFTeacherError(f'the {role} loader gives a {type(images).__name__} and a {type(target).__name__}, not '
                             f'tensors: {_WANTED}')
    if images.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise SFTeacherError(f'the {role} loader gives images {_kind(images)}: {_WANTED}'
                             + ', e.g. images.float() / 255 less mean, by std' * (images.dtype == torch.uint8))
    if len(images) != len(target):
        raise SFTeacherError(f'the {role} loader gives {len(images)} images and {len(target)} targets in a batch')
    return tuple(batch)


def check_evaluated(target: torch.Tensor, task: TrainingTask, where: str = '') -> None:
    """Refuse targets of validation that are not labels in range."""
    if target.ndim != 1 or target.is_floating_point():
        raise SFTeacherError(f'the validation loader gives targets {_kind(target)}{where}: accuracy is that of one '
                             f'label an image, [B]. Data with several labels an image (multi-label) are not supported')
    check_labels(target, task, 'validation', where=where)


def check_labels(target: torch.Tensor, task: TrainingTask, role: str, lowest: int = 0, where: str = '') -> None:
    """Refuse targets that are neither labels in range nor, in training, distributions over the classes."""
    if target.ndim == 2 and target.is_floating_point():
        if not torch.allclose(target.float().sum(1), torch.ones(len(target), device=target.device), atol=1e-3):
            raise SFTeacherError(f'the {role} loader gives targets {_kind(target)}{where} whose rows do not sum to 1: '
                                 f'data with several labels an image (multi-label) are not supported')
        return
    if target.ndim != 1 or target.dtype not in _LABELS:
        raise SFTeacherError(f'the {role} loader gives targets {_kind(target)}{where}: give labels, whole numbers [B]')
    count = num_classes(task)
    low, high = int(target.min()), int(target.max())
    if low < lowest or (count is not None and high >= count):
        given = f'label {low}' if low == high else f'labels {low}..{high}'
        raise SFTeacherError(f'the {role} loader gives {given}{where}, which must lie in 0..'
                             f'{"" if count is None else count - 1}: an ignore_index is not supported, leave such '
                             f'images out, or distil from them with {setting("unlabelled")}')


def num_classes(task: TrainingTask) -> int | None:
    """The number of classes, where the task or its model says it."""
    model: Any = task.get_eval_model()
    count = getattr(task, 'num_classes', None) or getattr(model, 'num_classes', None)
    return count if isinstance(count, int) else None


def explained(error: Exception, where: str, images: torch.Tensor, target: torch.Tensor, task: Any) -> Exception:
    """An error of a step as one that says what the step was given; ours stay as they are."""
    if isinstance(error, SFTeacherError):
        return error
    if isinstance(error, torch.OutOfMemoryError) or 'allocate memory' in str(error):
        return SFTeacherError(f'{where} needs more memory than there is for images {_kind(images)}: choose a smaller '
                              f'{setting("batch_size")} (with {setting("grad_accum_steps")} for nearly the same '
                              f'update), or {setting("amp")}')
    loss = getattr(task, 'criterion', None)
    name = getattr(loss, '__name__', type(loss).__name__)
    text = first_line(error)
    return SFTeacherError(f'{where} failed ({type(error).__name__}: {text}). It got images {_kind(images)} and targets '
                          f'{_kind(target)}, and its loss is {name}: do they fit each other and the model?')


def check_loss(loss: Any) -> None:
    """Refuse what cannot be minimised."""
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        what = f'of shape {list(loss.shape)}' if isinstance(loss, torch.Tensor) else f'a {type(loss).__name__}'
        raise SFTeacherError(f'the loss is {what}, not one number: give a criterion that averages over the batch '
                             f"(reduction='mean')")


def _kind(tensor: torch.Tensor) -> str:
    return f'{str(tensor.dtype).removeprefix("torch.")} {list(tensor.shape)}'


def _check_batch_norm(task: TrainingTask, loader: Any) -> None:
    """Batch norm cannot take the statistics of one image."""
    inner = loader if getattr(loader, 'batch_size', None) else getattr(loader, 'loader', loader)
    batch_size = getattr(inner, 'batch_size', None)
    try:
        left = len(inner.sampler) % batch_size if batch_size and getattr(inner, 'drop_last', True) is False else 0
    except (TypeError, AttributeError):
        left = 0
    if batch_size != 1 and left != 1:
        return
    for name, module in task.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and batch_size == 1:
            raise SFTeacherError(f'{setting("batch_size", 1)} does not go with batch norm ({name}), whose statistics '
                                 f'would be those of one image: choose at least 2, better 32')
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise SFTeacherError(f'the last batch of an epoch holds one image, of which batch norm ({name}) cannot '
                                 f'take statistics: give the training loader drop_last=True or another batch_size')
