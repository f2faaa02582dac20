"""What the loop is made of, apart from the loop: models, optimizer, mixing and evaluation of a task."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, optimizer_kwargs
from timm.task import TrainingTask, evaluation_sample_limit
from torch import nn

from ..checks import logits_of
from ..data.batches import check_evaluated, explained, num_classes, unpacked
from ..errors import SettingError, SFTeacherError
from ..joint_task import needs_index
from ..validation import like_it, setting
from .settings import TrainConfig


def trainable(task: TrainingTask, ema: bool = False) -> nn.Module:
    """What a task trains."""
    return cast(nn.Module, task.get_trainable_module(ema=ema))


def eval_model(task: TrainingTask, ema: bool = False) -> nn.Module:
    """What a task hands out for evaluation and export."""
    return cast(nn.Module, task.get_eval_model(ema=ema))


@torch.inference_mode()
def evaluate(
        task: TrainingTask,
        loader: Iterable[Any],
        ema: bool = False,
        autocast: Callable[[], Any] = nullcontext,
        channels_last: bool = False,
        between: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Loss, top-1 and top-5 in percent of the model that the task hands out for evaluation, over all processes.

    The model is left in eval mode, as timm's own validation leaves it: call ``task.train()`` before the next step.

    Raises:
        SFTeacherError: A batch cannot be evaluated; names it.
    """
    model = eval_model(task, ema).eval()
    evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader))
    number = 0
    for number, batch in enumerate(loader, 1):
        images, target, *_ = unpacked(batch, 'validation')
        check_evaluated(target, task, f' in batch {number}')
        images, target = to_device(images, target, task.device, channels_last)
        try:
            with autocast():
                output = logits_of(model, model(images))
            evaluator.update(output, target)
        except Exception as error:
            if dist.is_initialized():       # it may follow from another process's end
                raise
            raise explained(error, f'batch {number} of validation', images, target, task) from error
        if between is not None:
            between()
    if not number:
        raise SFTeacherError('the validation loader gave no batch: give one that can be gone through again')
    return dict(evaluator.compute(distributed=dist.is_initialized()))


def create_optimizer(task: TrainingTask, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer of this name, over what the task trains, in the task's own groups if it has any."""
    groups = getattr(task, 'parameter_groups', None)
    parameters = trainable(task) if groups is None else groups(config.lr, config.weight_decay)
    try:
        optimizer = create_optimizer_v2(parameters, **optimizer_kwargs(config))
    except (ValueError, AssertionError, ImportError, RuntimeError) as error:
        if 'not found in registry' in str(error):
            close = like_it(config.opt, map(str, list_optimizers()), '; timm.optim.list_optimizers() lists them')
            raise SettingError(f'timm has no optimizer {config.opt!r}{close} ({error})') from error
        raise SFTeacherError(f'optimizer {config.opt!r} cannot be used here ({type(error).__name__}: {error}): choose '
                             f'another {setting("opt")}') from error
    if config.given('momentum') and not get_optimizer_info(config.opt.lower().rpartition('_')[2]).has_momentum:
        raise SettingError(f'{setting("momentum", config.momentum)} has no effect on the optimizer {config.opt!r}: '
                           f'leave it out')
    if groups is not None and config.sched != 'none':
        for group in optimizer.param_groups:    # timm's schedules scale warmup_lr and min_lr by this too
            group['lr_scale'], group['lr'] = group['lr'] / config.lr, config.lr
    if config.layer_decay is not None:
        if groups is not None or {group.get('lr_scale', 1.) for group in optimizer.param_groups} == {1.}:
            raise SettingError(f'{setting("layer_decay", config.layer_decay)} has no effect on '
                               f'{type(task).__name__}, whose layers timm cannot tell apart: leave it out')
        if config.sched == 'none':              # nothing else would apply it
            for group in optimizer.param_groups:
                group['lr'] *= group['lr_scale']
    return optimizer


def criterion(config: TrainConfig) -> nn.Module:
    """The task loss that `smoothing`, `mixup` and `cutmix` ask for, which mix and smooth targets themselves."""
    return create_classification_loss(smoothing=config.smoothing, soft_targets=config.mixes)


def check_smoothing(task: TrainingTask, config: TrainConfig) -> None:
    """Refuse label smoothing that would have no effect: it is the task's loss that smooths, or mixup."""
    loss = getattr(task, 'criterion', None)
    found = [getattr(loss, name, None) for name in ('smoothing', 'label_smoothing')]
    if config.smoothing and not config.mixes and config.smoothing not in found:
        raise SFTeacherError(f'{setting("smoothing", config.smoothing)} has no effect, as the loss of the task '
                             f'({type(loss).__name__}) does not smooth by it: set task.criterion = '
                             f'sf_teacher.training.criterion(config) or leave it at 0')


def create_mixup(task: TrainingTask, config: TrainConfig) -> Mixup:
    """timm's mixup and cutmix."""
    if needs_index(task):
        raise SFTeacherError(f'{type(task.method).__name__} needs to know which image of the data set each one is, and '
                             f'mixup and cutmix make one of two: leave them at 0')
    count = num_classes(task)
    if count is None:
        raise SFTeacherError('mixup and cutmix need the number of classes, which neither the task nor its model has '
                             'as `num_classes`: set it, or leave mixup and cutmix at 0')
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=count)


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader, its dataset and its sampler which epoch comes."""
    for part in (loader, getattr(loader, 'dataset', None), getattr(loader, 'sampler', None)):
        if part is not None and hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)


def to_device(
        images: torch.Tensor,
        target: torch.Tensor,
        device: torch.device,
        channels_last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch on the device, in the memory layout asked for, labels as int64."""
    images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
    target = target if target.is_floating_point() else target.long()
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images, target


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of this device since its statistics were reset, or of this process on the CPU.

    0 on the CPU of a system that does not tell.
    """
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    try:
        import resource
    except ImportError:     # Windows
        return 0.
    unit = 2 ** 20 if sys.platform == 'darwin' else 2 ** 10      # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
