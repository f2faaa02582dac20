"""Pilot students: short trainings from a teacher, measured beside it; each is a file, so that a report can resume."""
from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.utils import unwrap_model
from torch import nn

from ..data.datasets import Data
from ..data.fingerprint import fingerprint
from ..errors import SFTeacherError
from ..exporting.verify import exported_folder, is_local
from ..files import write_atomically
from ..functional import calibration_error, entropy, kl_divergence, linear_cka, top1
from ..split.pairing import default_boundaries, pair_boundaries
from ..split.teacher_taps import teacher_boundaries
from ..training.components import eval_model
from ..training.distillation import KD_SETTINGS
from ..training.fitting import fit
from ..training.planning import Plan, plan_student
from ..training.settings import StudentRun, idle_of_schedule
from .predictions import Predictions, predict
from .settings import ReportRun

_logger = logging.getLogger(__name__)

FORMAT = 3      # of a pilot's file: an older one says less
FEWEST = 4      # validation images, two for each half
_MEASURED = ('seed', 'student_top1', 'student_right', 'selection_top1', 'report_top1', 'report_right')
_BESIDE_TEACHER = ('agreement', 'kl', 'cka', 'teacher')
_IMAGES = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')


Settings = TypeVar('Settings', bound=StudentRun)


@dataclass(frozen=True)
class Candidate:
    """A teacher at a temperature; an empty folder is the student alone."""
    folder: str
    temperature: float = 0.


class Pilots:
    """Trains pilot students and remembers them.

    Args:
        settings: Of the students; teacher, temperature, epochs and seed are those of each pilot.
        data: The images of students that have a teacher, those without labels among them.
        labelled: The images of students that learn alone; None where no image has a label.
        output: Folder of the report; the pilots go into ``pilots`` in it.
        like: The exported teacher whose images the student that learns alone gets.
    """

    def __init__(self, settings: StudentRun, data: Data, labelled: Data | None, output: Path, like: str) -> None:
        self.settings, self.data, self.labelled, self.like = settings, data, labelled, like
        self.images = fingerprint(data)
        self.folder = output / 'pilots'
        self._took: dict[Path, float] = {}

    @property
    def seconds(self) -> float:
        """Of all pilots that were asked for, each once, those of an earlier run included."""
        return sum(self._took.values())

    def check(self, folders: Sequence[str]) -> None:
        """Build what the pilots of these teachers need, so that what cannot work is found before any training."""
        if (count := len(self.data.validation)) < FEWEST:
            raise SFTeacherError(f'{count} validation images are too few: one half chooses and the other one reports; '
                                 f'give at least {FEWEST}, and hundreds to see differences of a few points')
        for folder in [*folders, *([''] if self.labelled else [])]:
            self._plan(Candidate(folder, self.settings.kd_temperature), self.settings.epochs, self.settings.seed)

    def run(self, candidate: Candidate, epochs: int, seed: int) -> dict[str, Any]:
        """One pilot: its accuracy on the validation images and on both halves of them, and how like its teacher it is.

        Returns:
            ``student_top1``, ``selection_top1``, ``report_top1``, on which images the first and the last of them were
            right (``student_right``, ``report_right``: ``"0110"``), ``seconds``, ``seed``; with a teacher
            ``agreement``, ``kl``, ``cka``, and ``teacher`` with its ``top1``, ``entropy`` and ``ece``.
        """
        path = self.folder / f'{self._key(candidate, epochs, seed)}.json'
        needed = _MEASURED + (_BESIDE_TEACHER if candidate.folder else ())

        def make() -> dict[str, Any]:
            try:
                return {'seed': seed, **self._measured(self._plan(candidate, epochs, seed))}
            except SFTeacherError as error:
                whose = f'of {candidate.folder} at T = {candidate.temperature:g}' if candidate.folder else 'alone'
                raise SFTeacherError(f'the student {whose}, {epochs} epochs, seed {seed}: {error}') from error
        row = remembered(path, make, needed)
        self._took[path] = row['seconds']
        return row

    def _key(self, candidate: Candidate, epochs: int, seed: int) -> str:
        settings = {name: getattr(self.settings, name) for name in self.settings.decisive()}
        weights = stamp(candidate.folder or self.like)
        start = stamp(self.settings.student)
        return digest(FORMAT, asdict(candidate), epochs, seed, weights, start, settings, self.images)[:16]

    def _plan(self, candidate: Candidate, epochs: int, seed: int) -> Plan:
        settings = replace(shortened(self.settings, epochs), seed=seed)
        temperature = candidate.temperature or settings.kd_temperature
        like = plan_student(
            replace(settings, teacher=candidate.folder or self.like, kd_temperature=temperature), self.data)
        if candidate.folder:
            return like
        changed: dict[str, Any] = {name: getattr(StudentRun(), name) for name in (*KD_SETTINGS, 'unlabelled')}
        changed |= {name: getattr(like.config, name) for name in _IMAGES}
        return plan_student(replace(settings, **changed), self.labelled)

    def _measured(self, plan: Plan) -> Mapping[str, Any]:
        fit(plan.task, plan.train_loader, None, plan.config)
        student = unwrap_model(eval_model(plan.task, plan.config.model_ema))
        teacher = getattr(plan.task, 'teacher', None)
        if teacher is None:
            return _accuracies(predict(student, plan.eval_loader))
        pairs = _pairs(teacher.model, student, plan.config.input_size)
        task: Any = plan.task       # the teacher gets its own mean and std, in training as here
        images = ((teacher.normalize_input(x.to(task.device), task.student_mean, task.student_std), y)
                  for x, y in plan.eval_loader)
        a = predict(teacher.model, images, [t for t, _ in pairs])
        b = predict(student, plan.eval_loader, [s for _, s in pairs])
        return {
            **_accuracies(b),
            'agreement': (a.logits.argmax(-1) == b.logits.argmax(-1)).float().mean().item(),
            'kl': kl_divergence(a.logits, b.logits).item(),
            'cka': [{'teacher': t.name, 'student': s.name, 'value': _finite(linear_cka(x, y))}
                    for (t, s), x, y in zip(pairs, a.features, b.features, strict=True)],
            'teacher': {'top1': top1(a.logits, a.labels).item(), 'entropy': entropy(a.logits).item(),
                        'ece': calibration_error(a.logits, a.labels)},
        }


def _accuracies(found: Predictions) -> Mapping[str, Any]:
    """On all validation images, on every second one (to choose by) and on the others (to report)."""
    even = torch.arange(len(found.labels)) % 2 == 0
    halves = {name: top1(found.logits[keep], found.labels[keep]).item()
              for name, keep in (('selection_top1', even), ('report_top1', ~even))}
    return {'student_top1': top1(found.logits, found.labels).item(), 'student_right': _digits(found.right), **halves,
            'report_right': _digits(found.right[~even])}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None      # JSON has no other word for it


def _digits(right: torch.Tensor) -> str:
    return ''.join('01'[r] for r in right.tolist())


def _pairs(teacher: nn.Module, student: nn.Module, size: Any) -> list[tuple[Any, Any]]:
    """Where CKA is measured; nowhere, if features of one of the models cannot be had."""
    try:
        ours, theirs = (default_boundaries(teacher_boundaries(m, size)[0]) for m in (teacher, student))
        return pair_boundaries(ours, theirs)
    except SFTeacherError as error:
        _logger.info('no CKA: %s', error)
        return []


def remembered(path: Path, make: Callable[[], dict[str, Any]], needed: Sequence[str] = ()) -> dict[str, Any]:
    """What a JSON file holds; it is made where it is not there or damaged, with the ``seconds`` that this took."""
    if path.exists():
        if (found := _read(path, ('seconds', *needed))) is not None:
            return found
        _logger.warning('%s is damaged: it is made anew', path)
    began = time.monotonic()
    row = make()
    row['seconds'] = time.monotonic() - began
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda file: put_json(file, row))
    found = json.loads(path.read_text(encoding='utf-8'))
    return found


def _read(path: Path, needed: Sequence[str]) -> dict[str, Any] | None:
    """What a JSON file holds, or None where it is no JSON or holds something else than the values needed."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= set(needed) else None


def digest(*values: Any) -> str:
    """Hexadecimal digits that tell plain values from others."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def stamp(folder: str) -> list[int] | None:
    """What tells an exported folder's weights from others that take their place; None of a timm name."""
    if ':' in folder and not is_local(folder):
        return None
    weights = exported_folder(folder) / 'model.safetensors'
    return [weights.stat().st_size, weights.stat().st_mtime_ns] if weights.is_file() else None


def pilot_settings(config: ReportRun) -> StudentRun:
    """The settings of a report that its students have."""
    common = {f.name: getattr(config, f.name) for f in fields(StudentRun)}
    return StudentRun(**{**common, 'output': ''})


def shortened(settings: Settings, epochs: int) -> Settings:
    """The same schedule in so many epochs: its warm-up and its decays come as much earlier."""
    share = epochs / settings.epochs
    milestones = tuple(e for e in (round(share * e) for e in settings.decay_milestones) if 0 < e < epochs)
    sched = settings.sched if milestones or settings.sched != 'multistep' else 'constant'
    warmup = min(round(share * settings.warmup_epochs), epochs - 1)
    values: dict[str, Any] = {
        'warmup_epochs': warmup, 'decay_epochs': share * settings.decay_epochs, 'decay_milestones': milestones}
    idle = [*idle_of_schedule(sched), *([] if warmup else ['warmup_lr'])]
    values |= {name: getattr(type(settings), name) for name in idle}
    return replace(settings, epochs=epochs, sched=sched, **values)


def put_json(file: Any, values: dict[str, Any]) -> None:
    """Write values as JSON into an open file."""
    file.write((json.dumps(values, indent=1) + '\n').encode())
