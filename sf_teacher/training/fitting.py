"""One loop for teachers and students: any `timm.task.TrainingTask`, resumable bit for bit, on one device or several."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from timm.task import TrainingTask
from timm.utils import unwrap_model

from ..data.batches import check_loaders
from ..data.known_labels import check_known_labels
from ..data.unlabelled import lowest_label
from ..errors import SFTeacherError, first_line
from ..validation import setting
from .components import check_smoothing
from .interruption import World
from .loop import Loop, Row
from .run_folder import RunFolder
from .settings import TrainConfig
from .signals import Stop, signals


def fit(
        task: TrainingTask,
        train_loader: Iterable[Any],
        eval_loader: Iterable[Any] | None,
        config: TrainConfig,
        on_epoch: Callable[[Row], None] | None = None,
        on_start: Callable[[], object] | None = None,
) -> list[Row]:
    """Train a task.

    Args:
        task: `StudentFriendlyTask`, or a task of `timm.task`, on its device; what it trains is trained in place, and
            what compilation and distributed training wrap is unwrapped at the end.
        train_loader: Batches (images, targets) with a length, images float [B, C, H, W], targets labels [B] of any
            whole-number type, or distributions over the classes [B, K]; its `set_epoch`, or its sampler's, is called.
        eval_loader: The same with labels [B] for validation; None for none.
        config: Settings. With `output` the run is written there and can be resumed; without, nothing is written. A
            `device` other than the task's is refused.
        on_epoch: Called on the first process after each epoch with the row of summary.csv.
        on_start: Called on the first process before the first step, when everything has been checked and the folder
            of the run, if any, is its own.

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
    if config.device and config.device.partition(':')[0] != task.device.type:
        raise SFTeacherError(f'{setting("device", config.device)}, and the task is on {task.device}: move it there '
                             f'(task.to({config.device!r})), or leave the setting out')
    check_loaders(task, train_loader, eval_loader)
    _check_same(train_loader, eval_loader, world)
    check_known_labels(task, train_loader, 'training', lowest_label(task))
    if eval_loader is not None:
        check_known_labels(task, eval_loader, 'validation')
    check_smoothing(task, config)
    folder: RunFolder | None = None
    with signals() as stop, _loading_processes(stop), _as_given(task):
        try:
            if config.output:
                folder = RunFolder(config.output, config, config.resume, world.rank == 0)
            loop = Loop(task, train_loader, eval_loader, config, world, folder, stop)
            if folder is not None:
                folder.start(config)
            if on_start is not None and world.rank == 0:
                on_start()
            return loop.run(on_epoch)
        finally:
            stop.patience = 0.
            if folder is not None:
                folder.close()


def _check_same(train_loader: Any, eval_loader: Any, world: World) -> None:
    """Refuse what would make a process wait for others: more batches than they have, an evaluation of its own."""
    counts, missing = zip(*world.gathered((len(train_loader), eval_loader is None)), strict=True)
    without = [rank for rank in range(world.size) if missing[rank]]
    if 0 < len(without) < world.size:
        raise SFTeacherError(f'there is no eval_loader on process {", ".join(map(str, without))}, and all {world.size} '
                             f'evaluate together: give one to each of them, or to none')
    if len(set(counts)) > 1:
        raise SFTeacherError(f'the training loaders of the {world.size} processes have {", ".join(map(str, counts))} '
                             f'batches, and each step takes one of every process: give all as many, e.g. by a '
                             f'DistributedSampler of one dataset')


@contextmanager
def _as_given(task: TrainingTask) -> Iterator[None]:
    """Take off what was wrapped for one training: a second one would wrap, compile and evaluate the wrapper."""
    parts = [task, *task.children()]    # a distillation task compiles its teacher's model too
    given = [dict(part._modules) for part in parts]
    try:
        yield
    finally:
        for part, modules in zip(parts, given, strict=True):
            for name, module in modules.items():
                if unwrap_model(getattr(part, name)) is unwrap_model(module):    # an average of this training stays
                    setattr(part, name, module)
        for name in ('eval_model', 'eval_model_ema'):
            if name not in given[0] and hasattr(task, name):
                delattr(task, name)


@contextmanager
def _loading_processes(stop: Stop) -> Iterator[None]:
    """Tell a signal that reached the loading processes first from one of them that died."""
    try:
        yield
    except SFTeacherError as error:
        text = str(error)
        if text.startswith('Caught SFTeacherError in DataLoader'):      # it brings the traceback along
            raise SFTeacherError(text.rstrip().rpartition('SFTeacherError: ')[2]) from None
        raise
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        time.sleep(0.5)     # the signal may be on its way here too
        stop.check()
        raise SFTeacherError(f'a loading process died ({first_line(error)}): if it was short of memory, give '
                             f'fewer workers or smaller batches') from error
