"""Candidates that a report trains itself: the baseline, trained on with branches of the student, and without."""
from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..data.datasets import Data
from ..data.settings import NO_SPLIT, DataConfig
from ..errors import SettingError
from ..files import write_atomically
from ..training.loading import exported_folder
from ..training.planning import STANDARD, plan_teacher
from ..training.runs import train_teacher
from ..training.settings import ReportRun, TeacherRun, TrainConfig
from ..validation import setting
from .pilots import put_json, stamp

_OWN = ('epochs', 'lr', 'output', 'resume', 'num_classes')     # of a report, not of a teacher that it trains


class FineTuned:
    """Trains the baseline on, by SFTN with the student as its branch and, for as many epochs, by cross entropy alone.

    A gain over the baseline that both have is one of the longer training. What is done is remembered in ``fine_tuned``
    in the report's folder, one folder for each method and settings.

    Args:
        config: The report.
        baseline: The exported folder of the baseline.
        data: The images.

    Raises:
        SettingError: There is nothing to train on, or a setting has no effect.
    """

    def __init__(self, config: ReportRun, baseline: str, data: Data) -> None:
        if not config.fine_tune and config.given('fine_tune_lr'):
            raise SettingError(f'{setting("fine_tune_lr", config.fine_tune_lr)} has no effect without '
                               f'{setting("fine_tune")}: give {setting("fine_tune")}, or leave it out')
        if config.fine_tune and config.train_split == NO_SPLIT:
            raise SettingError(f'{setting("fine_tune", config.fine_tune)} trains a teacher on labels, and with '
                               f'{setting("train_split", NO_SPLIT)} there are none: leave out one of them')
        self.data = data
        self.runs = [_run(config, baseline, method) for method in (STANDARD, 'sftn')] if config.fine_tune else []

    def check(self) -> None:
        """Build what the trainings need, so that what cannot work is found before any of them."""
        for run in self.runs:
            plan_teacher(run, self.data)

    def train(self, say: Callable[..., None]) -> tuple[Sequence[str], float]:
        """Train what is not there yet; the exported folders, and the seconds that they took together."""
        folders, total = [], 0.
        for run in self.runs:
            path = Path(run.output).with_suffix('.json')
            if not path.exists():
                began = time.monotonic()
                say('%d epochs of the baseline, method %s', run.epochs, run.method)
                train_teacher(replace(run, resume=(Path(run.output) / 'config.yaml').exists()), self.data)
                write_atomically(path, partial(put_json, values={'seconds': time.monotonic() - began}))
            folders.append(str(Path(run.output) / 'teacher'))
            total += json.loads(path.read_text(encoding='utf-8'))['seconds']
        return folders, total


def _run(config: ReportRun, baseline: str, method: str) -> TeacherRun:
    common = {f.name: getattr(config, f.name) for kind in (DataConfig, TrainConfig) for f in fields(kind)}
    folder = exported_folder(baseline)
    branch: dict[str, Any] = {} if method == STANDARD else dict(
        student=(config.student,), student_kwargs=config.model_kwargs)
    run = TeacherRun(**{name: value for name, value in common.items() if name not in _OWN}, **branch, method=method,
                     teacher=f'local-dir:{folder}', epochs=config.fine_tune, lr=config.fine_tune_lr)
    settings = asdict(replace(run, device='', workers=0, threads=None))
    key = hashlib.sha256(json.dumps([settings, stamp(baseline)]).encode()).hexdigest()[:8]
    return replace(run, output=str(Path(config.output) / 'fine_tuned' / f'{method}-{key}'))
