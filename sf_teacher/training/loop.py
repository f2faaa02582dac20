"""The loop: the epochs of a run, their evaluation, its checkpoints."""
from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import distribute_bn

from ..errors import SFTeacherError
from ..files import undisturbed
from ..joint_task import JointTask
from ..rng import random_state, set_random_state
from ..validation import setting
from .components import evaluate, peak_memory, set_epoch, trainable
from .curves import draw_curves
from .interruption import World
from .progress import Progress, summary_line
from .run_folder import RunFolder
from .settings import TrainConfig
from .signals import PATIENCE, Stop
from .steps import Steps
from .trackers import check_tracker, start_tracker

_logger = logging.getLogger(__name__)

Row = dict[str, Any]


class Loop:
    """A run: its steps, and the epochs."""

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
        check_tracker(config)
        self.task, self.config, self.world, self.folder, self.stop = task, config, world, folder, stop
        self.eval_loader, self.device = eval_loader, task.device
        self.rows: list[Row] = []
        self.start, self.best = 0, None     # type: tuple[int, Row | None]
        self.steps = Steps(task, train_loader, config, world, stop)
        if config.resume and folder is not None:
            self._load(folder.load())
        self.steps.wrap()

    def run(self, on_epoch: Callable[[Row], None] | None) -> list[Row]:
        """Train the epochs that are left."""
        progress = Progress(self.steps.epochs, self.steps.updates, self.config.log_interval, start=self.start) \
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
        for epoch in range(self.start, self.steps.epochs):
            self.stop.where = f'in epoch {epoch + 1}; {epoch} complete epochs are saved'
            self.steps.guard.check_between()
            row = self._epoch(epoch, progress)
            if progress is not None:
                progress.line(summary_line(row, self.steps.epochs))
            if tracker is not None:
                tracker.log({name.replace('_', '/', 1): value for name, value in row.items()}, step=epoch)
            if on_epoch is not None and self.world.rank == 0:
                on_epoch(row)
        if self.folder is not None and self.rows and self.world.rank == 0:
            draw_curves(self.rows, self.folder.path)
        self.stop.where = f'after the last epoch; {self.steps.epochs} complete epochs are saved'
        self.steps.guard.check_between()
        return self.rows

    def _epoch(self, epoch: int, progress: Progress | None) -> Row:
        """Train, evaluate and save one epoch; its row."""
        set_epoch(self.steps.loader, epoch)
        if isinstance(self.task, JointTask):
            self.task.set_epoch(epoch, self.steps.epochs)
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        average, images = self.steps.train_epoch(epoch, progress)
        train = average.compute(self.world.size > 1)
        seconds = time.perf_counter() - began
        if self.world.size > 1:
            distribute_bn(trainable(self.task), self.world.size, reduce=True)
            if self.task.has_ema():
                distribute_bn(trainable(self.task, ema=True), self.world.size, reduce=True)
        self.steps.guard.check_weights(epoch, trainable(self.task))
        row: Row = {'epoch': epoch, **{f'train_{k}': v for k, v in train.items()}}
        failure: SFTeacherError | None = None
        try:
            row |= self._evaluate(epoch)
        except SFTeacherError as error:     # its training is done, and kept
            if self.world.size > 1:
                raise
            failure = error
        row |= {'lr': self.steps.optimizer.param_groups[0]['lr'], 'images_per_second': images / seconds,
                'seconds': seconds, 'memory_mb': peak_memory(self.device)}
        self.rows.append(row)
        if self.steps.scheduler is not None:
            self.steps.scheduler.step(epoch + 1)
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
        metrics = evaluate(self.task, self.eval_loader, self.config.model_ema, self.steps.autocast,
                           self.config.channels_last, self.stop.check if self.world.size == 1 else None)
        if self.best is None or metrics['top1'] > self.best['eval_top1']:
            self.best = {'epoch': epoch, 'eval_top1': metrics['top1']}
        return {f'eval_{k}': v for k, v in metrics.items()}

    def _save(self, epoch: int) -> None:
        if self.folder is None:
            return
        rng = self.world.gathered(random_state(self.device))
        if self.world.rank != 0:
            return
        with undisturbed():
            state = {
                'epoch': epoch, 'optimizer': self.steps.optimizer.state_dict(), 'rng': rng, 'rows': self.rows,
                'best': self.best, 'scaler': self.steps.scaler.state_dict(), **self.task.get_checkpoint_state(),
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
        kinds = _kinds(self.steps.optimizer)
        try:
            self.task.load_checkpoint_state(state['state_dict'], state.get('task_state'))
            if self.task.has_ema():     # the settings', or of the user's
                self.task.load_checkpoint_state(state['state_dict_ema'], state.get('task_state_ema'), ema=True)
            self.steps.optimizer.load_state_dict(state['optimizer'])
            if _kinds(self.steps.optimizer) != kinds:
                raise ValueError('the settings of its optimizer are of other kinds')
            if state.get('scaler'):     # none of a run on the CPU
                self.steps.scaler.load_state_dict(state['scaler'])
            set_random_state(state['rng'][self.world.rank], self.device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise SFTeacherError(f'the checkpoint in {self.config.output} is that of another model or optimizer: '
                                 f'{str(error)[:300]}') from error
        self.start, self.rows, self.best = state['epoch'], state['rows'], state['best']
        if self.folder is not None and self.world.rank == 0:
            self.folder.write_summary(self.rows)
            _logger.info('resumed %s after %d epochs', self.config.output, self.start)


def _kinds(optimizer: torch.optim.Optimizer) -> list[dict[str, type]]:
    return [{name: type(value) for name, value in group.items() if name != 'params'}
            for group in optimizer.param_groups]
