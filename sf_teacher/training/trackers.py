"""The rows of summary.csv for TensorBoard, Weights & Biases or MLflow, through accelerate's trackers."""
from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import SFTeacherError
from ..validation import setting
from .settings import TrainConfig


def check_tracker(config: TrainConfig) -> None:
    """Refuse what `log_with` asks for where it cannot be had; nothing is started.

    Raises:
        SFTeacherError: It is not installed, or the run has no output.
    """
    name = _name(config)
    if name == 'none':
        return
    if not config.output:
        raise SFTeacherError(f'{setting("log_with", name)} has no effect without {setting("output")}: give '
                             f'{setting("output")}, or leave it out')
    if not find_spec('accelerate') or not any(map(find_spec, [name, 'tensorboardX'][:1 + (name == 'tensorboard')])):
        raise SFTeacherError(f'{setting("log_with", name)} needs {name}: pip install {name} accelerate, or leave it '
                             f'out (summary.csv has the same numbers)')


def _name(config: TrainConfig) -> str:
    return 'tensorboard' if config.tensorboard else config.log_with


def start_tracker(config: TrainConfig, first_epoch: int) -> Any:
    """What `log_with` asks for, ready for `log(values, step=epoch)` and `finish()`; None for nothing.

    Args:
        config: The settings of the run.
        first_epoch: The epoch that comes; what TensorBoard has of it and later ones is dropped.
    """
    name = _name(config)
    if name == 'none':
        return None
    folder = Path(config.output).resolve()
    options: dict[str, dict[str, Any]] = {
        'tensorboard': {'logging_dir': str(folder.parent), 'purge_step': first_epoch},
        'mlflow': {'logging_dir': str(folder)},
        'wandb': {'dir': str(folder)},
    }
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # type: ignore[import-untyped]

    tracker = LOGGER_TYPE_TO_CLASS[name](folder.name, **options[name])
    tracker.start()
    return tracker
