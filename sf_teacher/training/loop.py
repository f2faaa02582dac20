"""The loop: what is built once for a run, its epochs, its steps, its checkpoints."""
from __future__ import annotations

import logging
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
from timm.utils import dispatch_clip_grad, distribute_bn, random_seed

from ..data.batches import check_labels, explained, unpacked
from ..data.unlabelled import lowest_label
from ..errors import SFTeacherError
from ..files import undisturbed
from ..joint_task import JointTask, needs_index
from ..rng import random_state, set_random_state
from ..validation import setting
from .components import create_mixup, create_optimizer, evaluate, peak_memory, set_epoch, to_device, trainable
from .curves import draw_curves
from .interruption import Guard, World
from .progress import Average, Progress, summary_line, watched
from .run_folder import RunFolder
from .settings import TrainConfig
from .signals import PATIENCE, Stop
from .trackers import check_tracker, start_tracker

_logger = logging.getLogger(__name__)

Row = dict[str, Any]


class Loop:
    """A run: what is built once, and the epochs."""

    def __init__(
            self,
            task: TrainingTask,
            train_loader: Any,
            eval_loader: Any,
            config: TrainConfig,
            world: World,
            folder: RunFolder | None,
            stop: Stop,
    ) -> None:
        self.task, self.config, self.world, self.folder = task, config, world, folder
        check_tracker(config)
        self.guard, self.stop = Guard(world, stop, config.output, trainable(task)), stop
        self.train_loader, self.eval_loader, self.device = train_loader, eval_loader, task.device
        self.unlabelled = lowest_label(task) < 0
        self.rows: list[Row] = []
        self.start, self.best = 0, None     # type: tuple[int, Row | None]
        self.updates = math.ceil(len(train_loader) / config.grad_accum_steps)
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
        if config.resume and folder is not None:
            self._load(folder.load())
        if config.torchcompile:
            if config.torchcompile not in torch._dynamo.list_backends(exclude_tags=()):     # of tests too
                raise SFTeacherError(f'{setting("torchcompile", config.torchcompile)} is no backend of torch.compile '
                                     f'here: give one of {", ".join(torch._dynamo.list_backends())}')
            task.compile(backend=config.torchcompile)
            if config.model_ema:
                task.compile_ema(backend=config.torchcompile)
        if world.size > 1:
            task.prepare_distributed(device_ids=[self.device] if self.device.type == 'cuda' else None)
        self.clip = list(task.get_clip_parameters('agc' in config.clip_mode)) if config.clip_grad is not None else []

    def run(self, on_epoch: Callable[[Row], None] | None) -> list[Row]:
        """Train the epochs that are left."""
        progress = Progress(self.epochs, self.updates, self.config.log_interval, start=self.start) \
            if self.world.rank == 0 else None
        tracker = start_tracker(self.config, self.start) if self.world.rank == 0 else None
        try:
            return self._run(on_epoch, progress, tracker)
        finally:
            if progress is not None:
                progress.close()
            if tracker is not None:
                tracker.finish()

    def _run(self, on_epoch: Callable[[Row], None] | None, progress: Progress | None, tracker: Any) -> list[Row]:
        if not self.rows:
            self._save(0)       # finds a full disk before the first step; any moment from now on can be resumed
        self.stop.patience = PATIENCE if self.world.size == 1 else math.inf
        if self.eval_loader is not None and self.rows and 'eval_top1' not in self.rows[-1]:     # it could not be
            self.rows[-1] |= self._evaluate(self.start - 1)
            self._save(self.start)
        for epoch in range(self.start, self.epochs):
            self.stop.where = f'in epoch {epoch + 1}; {epoch} complete epochs are saved'
            self.guard.check_between()
            row = self._epoch(epoch, progress)
            if progress is not None:
                progress.line(summary_line(row, self.epochs))
            if tracker is not None:
                tracker.log({name.replace('_', '/', 1): value for name, value in row.items()}, step=epoch)
            if on_epoch is not None and self.world.rank == 0:
                on_epoch(row)
        if self.folder is not None and self.rows and self.world.rank == 0:
            draw_curves(self.rows, self.folder.path)
        self.stop.where = f'after the last epoch; {self.epochs} complete epochs are saved'
        self.guard.check_between()
        return self.rows

    def _epoch(self, epoch: int, progress: Progress | None) -> Row:
        """Train, evaluate and save one epoch; its row."""
        set_epoch(self.train_loader, epoch)
        if isinstance(self.task, JointTask):
            self.task.set_epoch(epoch, self.epochs)
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        average, images = self.train_epoch(epoch, progress)
        train = average.compute(self.world.size > 1)
        seconds = time.perf_counter() - began
        if self.world.size > 1:
            distribute_bn(trainable(self.task), self.world.size, reduce=True)
            if self.config.model_ema:
                distribute_bn(trainable(self.task, ema=True), self.world.size, reduce=True)
        self.guard.check_weights(epoch, trainable(self.task))
        row: Row = {'epoch': epoch, **{f'train_{k}': v for k, v in train.items()}}
        failure: SFTeacherError | None = None
        try:
            row |= self._evaluate(epoch)
        except SFTeacherError as error:     # its training is done, and kept
            if self.world.size > 1:
                raise
            failure = error
        row |= {'lr': self.optimizer.param_groups[0]['lr'], 'images_per_second': images / seconds,
                'seconds': seconds, 'memory_mb': peak_memory(self.device)}
        self.rows.append(row)
        if self.scheduler is not None:
            self.scheduler.step(epoch + 1)
        self._save(epoch + 1)
        if failure is not None:
            kept = f'; epoch {epoch + 1} is kept in {self.config.output} as trained: correct the data and continue ' \
                   f'with {setting("resume")}' if self.config.output else ''
            raise SFTeacherError(str(failure).rstrip() + kept) from failure
        return row

    def _evaluate(self, epoch: int) -> Row:
        """Evaluate the model as it is after an epoch."""
        if self.eval_loader is None:
            return {}
        metrics = evaluate(self.task, self.eval_loader, self.config.model_ema, self.autocast,
                           self.config.channels_last, self.stop.check if self.world.size == 1 else None)
        if self.best is None or metrics['top1'] > self.best['eval_top1']:
            self.best = {'epoch': epoch, 'eval_top1': metrics['top1']}
        return {f'eval_{k}': v for k, v in metrics.items()}

    def train_epoch(self, epoch: int, progress: Progress | None) -> tuple[Average, int]:
        """One pass over the training images: the averages of everything watched, and the number of images."""
        trainable(self.task).train()
        steps, batches = self.config.grad_accum_steps, len(self.train_loader)
        average, images, began = Average(), 0, time.perf_counter()
        self.optimizer.zero_grad()
        indexed = needs_index(self.task)
        for batch, given in enumerate(_as_many(self.train_loader, batches)):
            inputs, target, *index = unpacked(given, 'training', indexed)
            if epoch == self.start:
                check_labels(target, self.task, 'training', lowest_label(self.task), f' in batch {batch + 1}')
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
            average.update(watched(result, None if self.unlabelled else target), len(inputs))
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

    def _save(self, epoch: int) -> None:
        if self.folder is None:
            return
        rng = self.world.gathered(random_state(self.device))
        if self.world.rank != 0:
            return
        with undisturbed():
            state = {
                'epoch': epoch, 'optimizer': self.optimizer.state_dict(), 'rng': rng, 'rows': self.rows,
                'best': self.best, 'scaler': self.scaler.state_dict(), **self.task.get_checkpoint_state(),
                **self.task.get_checkpoint_state(ema=True)}
            self.folder.save(state, epoch)
            self.folder.write_summary(self.rows)

    def _load(self, state: dict[str, Any] | None) -> None:
        if state is None:
            _logger.warning('nothing to resume in %s: starting anew', self.config.output)
            return
        if len(state['rng']) != self.world.size:
            raise SFTeacherError(f'the run in {self.config.output} was trained by {len(state["rng"])} processes and '
                                 f'this is {self.world.size}: resume it with as many')
        kinds = _kinds(self.optimizer)
        try:
            self.task.load_checkpoint_state(state['state_dict'], state.get('task_state'))
            if self.config.model_ema:
                self.task.load_checkpoint_state(state['state_dict_ema'], state.get('task_state_ema'), ema=True)
            self.optimizer.load_state_dict(state['optimizer'])
            if _kinds(self.optimizer) != kinds:
                raise ValueError('the settings of its optimizer are of other kinds')
            if state.get('scaler'):     # none of a run on the CPU
                self.scaler.load_state_dict(state['scaler'])
            set_random_state(state['rng'][self.world.rank], self.device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise SFTeacherError(f'the checkpoint in {self.config.output} is that of another model or optimizer: '
                                 f'{str(error)[:300]}') from error
        self.start, self.rows, self.best = state['epoch'], state['rows'], state['best']
        if self.folder is not None and self.world.rank == 0:
            self.folder.write_summary(self.rows)
            _logger.info('resumed %s after %d epochs', self.config.output, self.start)


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


def _kinds(optimizer: torch.optim.Optimizer) -> list[dict[str, type]]:
    return [{name: type(value) for name, value in group.items() if name != 'params'}
            for group in optimizer.param_groups]
