"""One loop for teachers and students: any `timm.task.TrainingTask`, resumable bit for bit, on one device or several."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from timm.task import TrainingTask

from ..errors import SFTeacherError
from .components import check_smoothing, criterion, evaluate
from .interruption import Interrupted, World, check_batch_norm, signals
from .loop import Loop, Row
from .run_folder import RunFolder
from .settings import TrainConfig

__all__ = ['Interrupted', 'TrainConfig', 'criterion', 'evaluate', 'fit']


def fit(
        task: TrainingTask,
        train_loader: Iterable[Any],
        eval_loader: Iterable[Any] | None,
        config: TrainConfig,
        on_epoch: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Train a task.

    Args:
        task: `StudentFriendlyTask`, or a task of `timm.task`, on its device; what it trains is trained in place.
        train_loader: Batches (images, targets) with a length; its `set_epoch`, or its sampler's, is called.
        eval_loader: The same for validation; None for none.
        config: Settings. With `output` the run is written there and can be resumed; without, nothing is written. Its
            `device` is not looked at: the task is where it is.
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
    check_batch_norm(task, train_loader)
    check_smoothing(task, config)
    folder = RunFolder(config.output, config, config.resume, world.rank == 0) if config.output else None
    try:
        with signals() as stop:
            loop = Loop(task, train_loader, eval_loader, config, world, folder, stop)
            if folder is not None:
                folder.start(config)
            return loop.run(on_epoch)
    finally:
        if folder is not None:
            folder.close()
