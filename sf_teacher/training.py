"""One loop for teachers and students: any `timm.task.TrainingTask`, resumable bit for bit, on one device or several."""
from __future__ import annotations

import difflib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.task import TrainingTask, evaluation_sample_limit
from timm.utils import NativeScaler, dispatch_clip_grad, distribute_bn, random_seed
from torch import nn

from .checkpoint import RunFolder, random_state, set_random_state
from .config import TrainConfig
from .errors import SFTeacherError
from .watch import Average, Progress, summary_line, watched

_logger = logging.getLogger(__name__)

Row = dict[str, Any]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run; what it needs to continue has been saved."""

    def __init__(self, signum: int, epoch: int) -> None:
        super().__init__(f'stopped by {signal.Signals(signum).name} in epoch {epoch + 1}; {epoch} complete epochs are '
                         f'saved')
        self.signum = signum


@dataclass
class World:
    """This process among those that train together."""
    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """As torch.distributed was initialised."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()


def fit(
        task: TrainingTask,
        train_loader: Iterable,
        eval_loader: Iterable | None,
        config: TrainConfig,
        on_epoch: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Train a task.

    Args:
        task: `StudentFriendlyTask`, or a task of `timm.task`, on its device; what it trains is trained in place.
        train_loader: Batches (images, targets) with a length; its `set_epoch`, or its sampler's, is called.
        eval_loader: The same for validation; None for none.
        config: Settings. With `output` the run is written there and can be resumed; without, nothing is written.
        on_epoch: Called on the first process after each epoch with the row of summary.csv.

    Returns:
        The rows of summary.csv, one dict for each epoch, those of a resumed run included.

    Raises:
        SFTeacherError: Something cannot work, or a loss is not finite; the last good checkpoint is kept.
        Interrupted: By Ctrl-C or SIGTERM.

    Examples:

        ```python
        task = sf_teacher.wrap('resnet50', 'resnet18', num_classes=100)
        rows = fit(task, train_loader, eval_loader, TrainConfig(epochs=60, lr=0.05, output='runs/resnet50'))
        ```
    """
    world = World.current()
    if not len(train_loader):   # type: ignore[arg-type]
        raise SFTeacherError('the training loader has no batch: fewer images than one batch? Lower batch_size')
    _check_batch_norm(task, train_loader)
    folder = RunFolder(config.output, config, config.resume, world.rank == 0) if config.output else None
    try:
        with _signals() as stop:
            return _Loop(task, train_loader, eval_loader, config, world, folder, stop).run(on_epoch)
    finally:
        if folder is not None:
            folder.close()


def criterion(config: TrainConfig) -> nn.Module:
    """The task loss that `smoothing`, `mixup` and `cutmix` ask for, which mix and smooth targets themselves."""
    return create_classification_loss(smoothing=config.smoothing, soft_targets=config.mixes)


@torch.inference_mode()
def evaluate(
        task: TrainingTask,
        loader: Iterable,
        ema: bool = False,
        autocast: Callable[[], Any] = nullcontext,
        channels_last: bool = False,
) -> dict[str, float]:
    """Loss, top-1 and top-5 in percent of the model that the task hands out for evaluation, over all processes."""
    model = task.get_eval_model(ema=ema)
    model.eval()
    evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader))
    for images, target in loader:
        images, target = _delivered(images, target, task.device, channels_last)
        with autocast():
            output = model(images)
        evaluator.update(output, target)
    return dict(evaluator.compute(distributed=dist.is_initialized()))


class _Loop:
    """A run: what is built once, and the epochs."""

    def __init__(
            self,
            task: TrainingTask,
            train_loader: Any,
            eval_loader: Any,
            config: TrainConfig,
            world: World,
            folder: RunFolder | None,
            stop: _Stop,
    ) -> None:
        self.task, self.config, self.world, self.folder, self.stop = task, config, world, folder, stop
        self.train_loader, self.eval_loader, self.device = train_loader, eval_loader, task.device
        self.rows: list[Row] = []
        self.start, self.best = 0, None
        self.updates = math.ceil(len(train_loader) / config.grad_accum_steps)
        self.mixup = _mixup(task, config) if config.mixes else None
        if config.channels_last:
            task.to(memory_format=torch.channels_last)
        if config.sync_bn:
            if self.device.type == 'cpu':
                raise SFTeacherError('sync_bn works between GPUs only: leave it out on the CPU')
            task.trainable_module = convert_sync_batchnorm(task.get_trainable_module())
        amp = config.amp
        self.autocast: Callable[[], Any] = partial(
            torch.autocast, self.device.type, getattr(torch, config.amp_dtype)) if amp else nullcontext
        self.scaler = NativeScaler('cuda') if amp and config.amp_dtype == 'float16' and self.device.type == 'cuda' \
            else None
        self.optimizer = create_optimizer(task, config)
        try:
            self.scheduler, self.epochs = create_scheduler_v2(
                self.optimizer, **scheduler_kwargs(config), updates_per_epoch=self.updates)
        except ValueError as error:
            raise SFTeacherError(f'sched={config.sched}: {error}') from error
        if config.model_ema:
            task.setup_ema(decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
        random_seed(config.seed, world.rank)
        if config.resume and folder is not None:
            self._load(folder.load())
        if config.torchcompile:
            task.compile(backend=config.torchcompile)
            if config.model_ema:
                task.compile_ema(backend=config.torchcompile)
        if world.size > 1:
            task.prepare_distributed(device_ids=[self.device] if self.device.type == 'cuda' else None)
        self.clip = list(task.get_clip_parameters('agc' in config.clip_mode)) if config.clip_grad is not None else []

    def run(self, on_epoch: Callable[[Row], None] | None) -> list[Row]:
        """Train the epochs that are left."""
        progress = Progress(self.epochs, self.updates, self.config.log_interval) if self.world.rank == 0 else None
        writer = self._tensorboard()
        if not self.rows:
            self._save(0)       # finds a full disk before the first step; any moment from now on can be resumed
        for epoch in range(self.start, self.epochs):
            row = self._epoch(epoch, progress)
            self.rows.append(row)
            if self.scheduler is not None:
                self.scheduler.step(epoch + 1)
            self._save(epoch + 1)
            if progress is not None:
                progress.line(summary_line(row, self.epochs))
            if writer is not None:
                for name, value in row.items():
                    writer.add_scalar(name.replace('_', '/', 1), value, epoch)
                writer.flush()
            if on_epoch is not None and self.world.rank == 0:
                on_epoch(row)
        return self.rows

    def _epoch(self, epoch: int, progress: Progress | None) -> Row:
        """Train and evaluate one epoch; its row."""
        _set_epoch(self.train_loader, epoch)
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        average, images = self._train(epoch, progress)
        train = average.compute(self.world.size > 1)
        seconds = time.perf_counter() - began
        if self.world.size > 1:
            distribute_bn(self.task.get_trainable_module(), self.world.size, reduce=True)
            if self.config.model_ema:
                distribute_bn(self.task.get_trainable_module(ema=True), self.world.size, reduce=True)
        self._check_weights(epoch)
        row: Row = {'epoch': epoch, **{f'train_{k}': v for k, v in train.items()}}
        if self.eval_loader is not None:
            metrics = evaluate(self.task, self.eval_loader, self.config.model_ema, self.autocast,
                               self.config.channels_last)
            row |= {f'eval_{k}': v for k, v in metrics.items()}
            if self.best is None or row['eval_top1'] > self.best['eval_top1']:
                self.best = {'epoch': epoch, 'eval_top1': row['eval_top1']}
        lr = sum(g['lr'] for g in self.optimizer.param_groups) / len(self.optimizer.param_groups)
        return row | {'lr': lr, 'images_per_second': images / seconds, 'seconds': seconds,
                      'memory_mb': _peak_memory(self.device)}

    def _train(self, epoch: int, progress: Progress | None) -> tuple[Average, int]:
        """One pass over the training images: the averages of everything watched, and the number of images."""
        self.task.get_trainable_module().train()
        steps, batches = self.config.grad_accum_steps, len(self.train_loader)
        average, images, began = Average(), 0, time.perf_counter()
        self.optimizer.zero_grad()
        for batch, (inputs, target) in enumerate(self.train_loader):
            group = batch // steps      # the last group may be smaller
            in_group = min(steps, batches - group * steps)
            last = batch + 1 == min((group + 1) * steps, batches)
            inputs, target = _delivered(inputs, target, self.device, self.config.channels_last)
            if self.mixup is not None:
                inputs, target = self.mixup(inputs, target)
            with nullcontext() if last else self.task.no_sync():
                with self.autocast():
                    result = self.task(inputs, target)
                self._step(result, in_group, last, lambda at=(epoch, batch), r=result, x=inputs: self._guard(*at, r, x))
            average.update(watched(result, target), len(inputs))
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

    def _step(self, result: dict[str, Any], in_group: int, last: bool, guard: Callable[[], None]) -> None:
        """Backward; then, if all is well on every process, the optimizer's step."""
        loss = result['loss'] / in_group if in_group > 1 else result['loss']
        guard()
        if self.scaler is not None:
            self.scaler(loss, self.optimizer, clip_grad=self.config.clip_grad, clip_mode=self.config.clip_mode,
                        parameters=self.clip, need_update=last)
        else:
            loss.backward(create_graph=getattr(self.optimizer, 'is_second_order', False))
            if last:
                if self.config.clip_grad is not None:
                    dispatch_clip_grad(self.clip, self.config.clip_grad, mode=self.config.clip_mode)
                self.optimizer.step()
        if last:
            self.optimizer.zero_grad()

    def _guard(self, epoch: int, batch: int, result: dict[str, Any], inputs: torch.Tensor) -> None:
        """Stop every process where the loss of one is not finite, or where one got a signal."""
        bad, signum = not math.isfinite(result['loss'].item()), self.stop.signum
        if self.world.size > 1:
            flags = torch.tensor([int(bad), signum], device=self.device)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            anywhere, signum = flags.tolist()
        else:
            anywhere = int(bad)
        if anywhere:
            reasons = [_not_finite(result, inputs) if bad else '']
            if self.world.size > 1:
                reasons = [None] * self.world.size      # type: ignore[list-item]
                dist.all_gather_object(reasons, _not_finite(result, inputs) if bad else '')
            where = '; '.join(f'process {i}: {r}' if self.world.size > 1 else r for i, r in enumerate(reasons) if r)
            raise SFTeacherError(f'the loss is not finite in epoch {epoch + 1}, batch {batch + 1}: {where}. '
                                 + self._kept(epoch))
        if signum:
            raise Interrupted(signum, epoch)

    def _check_weights(self, epoch: int) -> None:
        """Never save weights that are not finite: a loss that was finite may have made them so in the last step."""
        for name, p in self.task.get_trainable_module().named_parameters():
            if not p.isfinite().all():
                raise SFTeacherError(f'{name} is not finite after epoch {epoch + 1}. ' + self._kept(epoch))

    def _kept(self, epoch: int) -> str:
        kept = f'The checkpoint after {epoch} epochs is kept in {self.config.output}. ' if self.folder else ''
        return (f'Nothing was stepped or saved with it. {kept}Try another run with a lower lr, clip_grad=1, or '
                f'amp_dtype=bfloat16 where amp is on')

    def _save(self, epoch: int) -> None:
        if self.folder is None:
            return
        rng = [random_state(self.device)]
        if self.world.size > 1:
            rng = [None] * self.world.size      # type: ignore[list-item]
            dist.all_gather_object(rng, random_state(self.device))
        if self.world.rank == 0:
            state = {
                'epoch': epoch, 'optimizer': self.optimizer.state_dict(), 'rng': rng, 'rows': self.rows,
                'best': self.best, **self.task.get_checkpoint_state(), **self.task.get_checkpoint_state(ema=True)}
            if self.scaler is not None:
                state['scaler'] = self.scaler.state_dict()
            self.folder.save(state, epoch)
            self.folder.write_summary(self.rows)

    def _load(self, state: dict[str, Any] | None) -> None:
        if state is None:
            _logger.warning('nothing to resume in %s: starting anew', self.config.output)
            return
        if len(state['rng']) != self.world.size:
            raise SFTeacherError(f'the run in {self.config.output} was trained by {len(state["rng"])} processes and '
                                 f'this is {self.world.size}: resume it with as many')
        try:
            self.task.load_checkpoint_state(state['state_dict'], state.get('task_state'))
            if self.config.model_ema:
                self.task.load_checkpoint_state(state['state_dict_ema'], state.get('task_state_ema'), ema=True)
            self.optimizer.load_state_dict(state['optimizer'])
        except (RuntimeError, ValueError, KeyError) as error:
            raise SFTeacherError(f'the checkpoint in {self.config.output} is that of another model or optimizer: '
                                 f'{str(error)[:300]}') from error
        if self.scaler is not None:
            self.scaler.load_state_dict(state['scaler'])
        self.start, self.rows, self.best = state['epoch'], state['rows'], state['best']
        set_random_state(state['rng'][self.world.rank], self.device)
        if self.folder is not None and self.world.rank == 0:
            self.folder.write_summary(self.rows)
            _logger.info('resumed %s after %d epochs', self.config.output, self.start)

    def _tensorboard(self) -> Any:
        if not self.config.tensorboard or self.world.rank != 0 or not self.config.output:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SFTeacherError('tensorboard=True needs tensorboard: pip install tensorboard, or leave it out '
                                 '(summary.csv has the same numbers)') from error
        return SummaryWriter(self.config.output, purge_step=self.start)


def create_optimizer(task: TrainingTask, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer of this name, over what the task trains."""
    if config.opt.lower() not in list_optimizers():
        close = difflib.get_close_matches(config.opt.lower(), list_optimizers(), 3)
        raise SFTeacherError(f'timm has no optimizer {config.opt!r}' + (f'; like it: {", ".join(close)}' if close else
                             '; timm.optim.list_optimizers() lists them'))
    return create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(config))


class _Stop:
    """The signal that asked for an end, 0 for none."""
    signum = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            raise KeyboardInterrupt     # asked twice: now
        self.signum = signum


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Let Ctrl-C and SIGTERM be seen at the next step instead of anywhere."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():      # only the main thread may handle signals
        yield stop
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _set_epoch(loader: Any, epoch: int) -> None:
    for part in (loader, getattr(loader, 'dataset', None), getattr(loader, 'sampler', None)):
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)


def _delivered(
        images: torch.Tensor,
        target: torch.Tensor,
        device: torch.device,
        channels_last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images, target


def _mixup(task: TrainingTask, config: TrainConfig) -> Mixup:
    num_classes = getattr(task, 'num_classes', None) or getattr(task.get_eval_model(), 'num_classes', None)
    if num_classes is None:
        raise SFTeacherError('mixup and cutmix need the number of classes, which neither the task nor its model has '
                             'as `num_classes`: set it, or leave mixup and cutmix at 0')
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=num_classes)


def _check_batch_norm(task: TrainingTask, loader: Any) -> None:
    batch_size = getattr(loader, 'batch_size', None) or getattr(getattr(loader, 'loader', None), 'batch_size', None)
    if batch_size != 1:
        return
    for name, module in task.get_trainable_module().named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise SFTeacherError(f'batch_size=1 does not go with batch norm ({name}), whose statistics would be those '
                                 f'of one image: choose at least 2, better 32')


def _not_finite(result: dict[str, Any], inputs: torch.Tensor) -> str:
    """Which part of a result is not finite, the images first since everything follows from them."""
    if not inputs.isfinite().all():
        return 'the images hold values that are not finite (their decoding, mean or std?)'
    tensors = {**result, **{f'logits of branch {k}': v for k, v in (result.get('branch_output') or {}).items()}}
    names = [f'{name} is {value.item():g}' if value.ndim == 0 else f'{name} has values that are not finite'
             for name, value in tensors.items() if isinstance(value, torch.Tensor) and not value.isfinite().all()]
    return ', '.join(names)


def _peak_memory(device: torch.device) -> float:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    import resource     # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 10
