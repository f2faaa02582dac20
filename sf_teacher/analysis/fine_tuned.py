"""Candidates that a report trains itself: the baseline, trained on with branches of the student, and without."""
from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..data.datasets import Data
from ..data.fingerprint import fingerprint
from ..data.settings import DataConfig
from ..exporting.verify import exported_folder
from ..training.planning import STANDARD
from ..training.runs import train_teacher
from ..training.settings import TeacherRun, TrainConfig
from .pilots import digest, remembered, shortened, stamp
from .settings import ReportRun

_logger = logging.getLogger(__name__)

_OWN = ('lr', 'output', 'resume', 'num_classes')     # of a report, not of a teacher that it trains


def fine_tunings(config: ReportRun, baseline: str, data: Data) -> list[TeacherRun]:
    """The runs that train the baseline on: by cross entropy alone, and by SFTN with the student as its branch.

    A gain over the baseline that both have is one of the longer training. Each has a folder of its own in
    ``fine_tuned`` in the report's, named by method and settings.
    """
    if not config.fine_tune:
        return []
    images = fingerprint(data)
    return [_run(config, baseline, method, images) for method in (STANDARD, 'sftn')]


def fine_tune(run: TeacherRun, data: Data) -> tuple[str, float]:
    """Train what is not there yet; the exported folder, and the seconds that it took."""
    def train() -> dict[str, Any]:
        _logger.info('%d epochs of the baseline, method %s', run.epochs, run.method)
        train_teacher(replace(run, resume=(Path(run.output) / 'config.yaml').exists()), data)
        return {}
    row = remembered(Path(run.output).with_suffix('.json'), train)
    return str(Path(run.output) / 'teacher'), row['seconds']


def expected_seconds(config: ReportRun, baseline: str, data: Data) -> tuple[float, float]:
    """What fine-tuning takes about, and what took the epoch with branches that tells it: longer than one without."""
    if not config.fine_tune:
        return 0., 0.
    _, one = fine_tune(fine_tunings(replace(config, fine_tune=1), baseline, data)[-1], data)
    return one * 2 * config.fine_tune, one * (config.fine_tune > 1)     # one epoch is that of the candidate itself


def _run(config: ReportRun, baseline: str, method: str, images: str) -> TeacherRun:
    settings = shortened(config, config.fine_tune)
    common = {f.name: getattr(settings, f.name) for kind in (DataConfig, TrainConfig) for f in fields(kind)}
    pretrained = {'pretrained': True} if config.pretrained else {}
    branch: dict[str, Any] = {} if method == STANDARD else dict(
        student=(config.student,), student_kwargs={**pretrained, **config.model_kwargs})
    run = TeacherRun(**{name: value for name, value in common.items() if name not in _OWN}, **branch, method=method,
                     teacher=f'local-dir:{exported_folder(baseline)}', lr=config.fine_tune_lr)
    settings_of = {name: getattr(run, name) for name in run.decisive()}
    key = digest(settings_of, stamp(baseline), stamp(config.student), images)[:8]
    return replace(run, output=str(Path(config.output) / 'fine_tuned' / f'{method}-{key}'))
