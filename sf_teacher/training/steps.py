"""The steps of a run: what is built once for them, and one pass over the training images."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad, random_seed

from ..data.batches import check_labels, explained, unpacked
from ..data.unlabelled import lowest_label
from ..errors import SFTeacherError
from ..joint_task import needs_index
from ..validation import setting
from .components import create_mixup, create_optimizer, to_device, trainable
from .interruption import Guard, World
from .progress import Average, Progress, watched
from .settings import TrainConfig
from .signals import Stop


class Steps:
    """Optimizer, schedule, precision and mixing of a task, and its steps; call `wrap` before the first pass.

    Args:
        task: What is trained.
        loader: The training batches, with a length.
        config: Settings.
        world: This process among the others.
        stop: The signal that ends it, if any.

    Raises:
        SFTeacherError: A setting does not fit the task or the device.
    """

    def __init__(self, task: TrainingTask, loader: Any, config: TrainConfig, world: World, stop: Stop) -> None:
        self.task, self.loader, self.config, self.world, self.device = task, loader, config, world, task.device
        self.guard = Guard(world, stop, config.output, trainable(task), config.amp_dtype if config.amp else '')
        self.lowest_label = lowest_label(task)
        self.labels_checked = False
        self.clip: list[torch.nn.Parameter] = []
        self.updates = math.ceil(len(loader) / config.grad_accum_steps)
        self.mixup = create_mixup(task, config) if config.mixes else None
        if config.channels_last:
            task.to(memory_format=torch.channels_last)
        if config.amp and config.amp_dtype == 'float16' and self.device.type == 'cpu':
            raise SFTeacherError(f'{setting("amp_dtype", "float16")} is slow on the CPU, and its gradients would not '
                                 f'be scaled: give {setting("amp_dtype", "bfloat16")}')
        if config.sync_bn:
            if self.device.type == 'cpu':
                raise SFTeacherError(f'{setting("sync_bn")} works between GPUs only: leave it out on the CPU')
            task.trainable_module = convert_sync_batchnorm(trainable(task))
        self.autocast: Callable[[], Any] = partial(
            torch.autocast, self.device.type, getattr(torch, config.amp_dtype)) if config.amp else nullcontext
        scaled = config.amp and config.amp_dtype == 'float16' and self.device.type == 'cuda'
        self.scaler = torch.amp.GradScaler('cuda', enabled=scaled)      # where it is not, it passes all on
        self.optimizer = create_optimizer(task, config)
        try:
            self.scheduler, self.epochs = create_scheduler_v2(
                self.optimizer, **scheduler_kwargs(config), updates_per_epoch=self.updates)
        except ValueError as error:
            raise SFTeacherError(f'{setting("sched", config.sched)}: {error}') from error
        if config.model_ema:
            task.setup_ema(decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
        random_seed(config.seed, world.rank)

    def wrap(self) -> None:
        """Compile the task and distribute it, once a checkpoint has been loaded into it, if there is one."""
        task, config = self.task, self.config
        if config.torchcompile:
            if config.torchcompile not in torch._dynamo.list_backends(exclude_tags=()):     # of tests too
                raise SFTeacherError(f'{setting("torchcompile", config.torchcompile)} is no backend of torch.compile '
                                     f'here: give one of {", ".join(torch._dynamo.list_backends())}')
            task.compile(backend=config.torchcompile)
            if config.model_ema:
                task.compile_ema(backend=config.torchcompile)
        if self.world.size > 1:
            task.prepare_distributed(device_ids=[self.device] if self.device.type == 'cuda' else None)
        if config.clip_grad is not None:
            self.clip = list(task.get_clip_parameters('agc' in config.clip_mode))

    def train_epoch(self, epoch: int, progress: Progress | None) -> tuple[Average, int]:
        """One pass over the training images: the averages of everything watched, and the number of images."""
        trainable(self.task).train()
        steps, batches = self.config.grad_accum_steps, len(self.loader)
        average, images, began = Average(), 0, time.perf_counter()
        self.optimizer.zero_grad()
        indexed = needs_index(self.task)
        for batch, given in enumerate(_as_many(self.loader, batches)):
            inputs, target, *index = unpacked(given, 'training', indexed)
            if not self.labels_checked:
                check_labels(target, self.task, 'training', self.lowest_label, f' in batch {batch + 1}')
            group = batch // steps      # the last group may be smaller
            in_group = min(steps, batches - group * steps)
            last = batch + 1 == min((group + 1) * steps, batches)
            inputs, target = to_device(inputs, target, self.device, self.config.channels_last)
            if self.mixup is not None:
                if len(inputs) % 2:
                    raise SFTeacherError(f'mixup and cutmix pair the images of a batch, and batch {batch + 1} has '
                                         f'{len(inputs)}: use an even {setting("batch_size")} and drop_last=True')
                inputs, target = self.mixup(inputs, target)
            with nullcontext() if last else self.task.no_sync():
                try:
                    with self.autocast():
                        result = self.task(inputs, target, *(i.to(self.device) for i in index))
                except Exception as error:
                    if self.world.size > 1:     # it may follow from another process's end
                        raise
                    where = f'batch {batch + 1} of epoch {epoch + 1}'
                    raise explained(error, where, inputs, target, self.task) from error
                self.guard.check(epoch, batch, result, inputs)
                self._step(result['loss'] / in_group if in_group > 1 else result['loss'], last)
            average.update(watched(result, target if self.lowest_label == 0 else None), len(inputs))
            images += len(inputs) * self.world.size
            if not last:
                continue
            update = group + 1
            self.task.update_ema(step=epoch * self.updates + update)
            if self.scheduler is not None:
                self.scheduler.step_update(epoch * self.updates + update)
            if progress is not None and progress.due(update):
                speed = images / (time.perf_counter() - began)
                progress.show(epoch, update, average.compute()['loss'], self.optimizer.param_groups[0]['lr'], speed)
        if hasattr(self.optimizer, 'sync_lookahead'):
            self.optimizer.sync_lookahead()
        self.labels_checked = True
        return average, images

    def _step(self, loss: torch.Tensor, last: bool) -> None:
        """Backward, and the optimizer's step where the batch is the last of its group."""
        self.scaler.scale(loss).backward(create_graph=getattr(self.optimizer, 'is_second_order', False))
        if not last:
            return
        if self.config.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.clip, self.config.clip_grad, mode=self.config.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


def _as_many(loader: Any, batches: int) -> Iterator[Any]:
    """The batches of a loader, if they are as many as it says: the schedule and accumulation follow from that."""
    given = 0
    for given, batch in enumerate(loader, 1):
        if given > batches:
            break
        yield batch
    if given != batches:
        raise SFTeacherError(f'the training loader has a length of {batches} batches and gave '
                             f'{"more" if given > batches else given} in this epoch: give it the __len__ that it has '
                             f'in every epoch, or, if it can be gone through once only, a loader that can again')
