"""Which teacher to take, and at which temperature? Measured with pilot students, never predicted without them."""
from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from timm.utils.distributed import is_distributed_env

from ..data.datasets import Data, load_data
from ..data.settings import NO_SPLIT
from ..data.unlabelled import with_unlabelled
from ..errors import SettingError, SFTeacherError
from ..exporting.exported import load_teacher
from ..exporting.reload import PROBE
from ..exporting.verify import exported_folder
from ..files import write_atomically
from ..training.planning import plan_teacher
from ..validation import setting
from . import halving
from .figures import matplotlib_pyplot, report_figure
from .fine_tuned import expected_seconds, fine_tune, fine_tunings
from .pilots import Candidate, Pilots, pilot_settings, put_json, stamp
from .settings import ReportRun
from .verdicts import ALONE, compare, name_of, recommend

_logger = logging.getLogger(__name__)

SELECTION_SEED = 1000       # added to the seed of the pilots that only choose


def report(config: ReportRun) -> dict[str, Any]:
    """Pilot teachers, compare the best of them with the baseline, each at its best temperature, and recommend one.

    With ``fine_tune``, the baseline is trained on first, with branches of the student and without: two more teachers.
    One half of the validation images chooses: the baseline's temperature, the best other teacher (by successive
    halving, where there are many), its temperature. These two then train students with fresh seeds and are compared on
    the other half, which chose nothing, with a student beside them that learns alone where images have labels. Where
    nothing is to be chosen they are compared on all of the images. Every pilot is kept in ``output/pilots``: a report
    that was stopped goes on from there.

    Args:
        config: Teachers, student, data, and how the pilot students are trained.

    Returns:
        What report.json holds: the rounds; for both teachers their accuracy, entropy and calibration, and over the
        seeds the students' accuracy, agreement, divergence and CKA; for each comparison the paired difference and a
        verdict; the recommendation and what it cost.

    Raises:
        SFTeacherError: Something does not fit, or matplotlib is missing; no student has been trained.
    """
    given = [*([config.baseline] if config.baseline else []), *config.teachers]
    by_path: dict[Path, str] = {}
    for folder in given:
        by_path.setdefault(exported_folder(folder).resolve(), folder)
    folders = list(by_path.values())
    sizes = _check(config, folders)
    pilot = pilot_settings(config)
    channels = (pilot.input_size or sizes[0])[0]
    data = load_data(pilot, pilot.seed, channels)
    labelled = None if pilot.train_split == NO_SPLIT else data      # without labels no student can learn alone
    together = with_unlabelled(data, pilot, pilot.unlabelled, channels) if pilot.unlabelled else data
    pilots = Pilots(pilot, together, labelled, Path(config.output), folders[0])
    trainings = fine_tunings(config, folders[0], data)
    pilots.check(folders)
    for run in trainings:
        plan_teacher(run, data)
    _make_folder(config.output)     # everything has been checked
    epochs, seconds = _affordable(config, folders, len(trainings), pilots, data)
    done_trainings = [fine_tune(run, data) for run in trainings]
    seconds += sum(took for _, took in done_trainings)
    tuned = [folder for folder, _ in done_trainings]
    folders += tuned

    def choose_by(candidate: Candidate, of_round: int) -> float:
        row = pilots.run(candidate, of_round, config.seed + SELECTION_SEED)
        chosen_by = row['selection_top1']
        _logger.info('%d epochs, %s: student %.2f %% (to choose by)', of_round, name_of(candidate), chosen_by)
        return chosen_by

    done, finalists = halving.choose(folders, config.temperatures, epochs, choose_by)
    others = finalists[1:]
    if tuned and others and (twin := dict(zip(tuned, reversed(tuned), strict=True)).get(others[0].folder)):
        finalists.append(replace(others[0], folder=twin))       # what training on does without branches, or with them
    finalists += [Candidate('')] if labelled else []
    arms: dict[str, list[dict[str, Any]]] = {name_of(c): [] for c in finalists}
    teachers: dict[str, Any] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        for candidate in finalists:
            row, name = dict(pilots.run(candidate, epochs, seed)), name_of(candidate)
            if 'teacher' in row:
                teachers[name] = {**asdict(candidate), **row.pop('teacher')}
            row['top1'], row['right'] = (row[f'{"report" if done else "student"}_{name}'] for name in ('top1', 'right'))
            arms[name].append(row)
            _logger.info('seed %d, %s: student %.2f %%', seed, name, row['top1'])
    comparisons = [compare(arms, name, other) for name, other in _pairs(list(arms))]
    baseline = name_of(finalists[0])
    took = pilots.seconds + seconds
    if config.budget and took > halving.seconds(config.budget):
        _logger.warning('it took %.0f s, more than %s: other pilots took longer than the one that told the time',
                        took, setting('budget', config.budget))
    result = {
        'student': config.student, 'data': config.data or config.dataset, 'epochs': epochs,
        'epochs_without_budget': config.epochs, 'baseline': baseline, 'candidates': folders,
        'rounds': [{'epochs': r.epochs, 'top1': {name_of(c): v for c, v in r.top1.items()}} for r in done],
        'teachers': teachers, 'pilots': arms, 'comparisons': comparisons,
        'recommendation': recommend(teachers, comparisons, baseline, len(folders), took),
    }
    _keep_earlier(Path(config.output), result)
    write_atomically(Path(config.output) / 'report.json', lambda file: put_json(file, result))
    report_figure(result, Path(config.output) / 'report.png')
    return result


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """What is compared: the baseline, the best other teacher, its twin, the student alone, as far as they are there."""
    baseline, *others = (name for name in names if name != ALONE)
    pairs = [(name, baseline) for name in others] + [(others[0], twin) for twin in others[1:]]
    return pairs + [(name, ALONE) for name in (baseline, *others) if ALONE in names]


def _check(config: ReportRun, folders: Sequence[str]) -> list[Any]:
    """Refuse what cannot work before any student is trained; the teachers' image sizes."""
    if not folders:
        raise SettingError(f'no teacher: give the exported folder of at least one, and a standard one as '
                           f'{setting("baseline")}')
    if not config.output:
        raise SettingError(f'no {setting("output")}: give the folder for report.json and report.png')
    if config.teacher:
        raise SettingError(f'{setting("teacher", config.teacher)} is a setting of distill: give the teachers of a '
                           f'report as `teachers` (without a flag on the command line)')
    if config.given('kd_temperature'):
        raise SettingError(f'{setting("kd_temperature", config.kd_temperature)} is a setting of distill: give the '
                           f'temperatures of a report as {setting("temperatures")}')
    if idle := config.given('resume', 'tensorboard', 'log_with'):
        raise SettingError(f'{", ".join(map(setting, idle))}: a report has no use for it (it always goes on from '
                           f'what it finds): leave it out')
    if not config.temperatures:
        raise SettingError(f'{setting("temperatures")} is empty: give at least one, e.g. 4')
    if not config.fine_tune and config.given('fine_tune_lr'):
        raise SettingError(f'{setting("fine_tune_lr", config.fine_tune_lr)} has no effect without '
                           f'{setting("fine_tune")}: give {setting("fine_tune")}, or leave it out')
    if config.fine_tune and config.train_split == NO_SPLIT:
        raise SettingError(f'{setting("fine_tune", config.fine_tune)} trains a teacher on labels, and with '
                           f'{setting("train_split", NO_SPLIT)} there are none: leave out one of them')
    if config.budget:
        halving.seconds(config.budget)
    if is_distributed_env():
        raise SFTeacherError('a report is made by one process: start it without torchrun')
    matplotlib_pyplot()
    models = (load_teacher(f, 'baseline' if f == config.baseline else 'teachers') for f in folders)
    seen = [resolve_data_config({}, model=model) for model in models]
    for name in ('mean', 'std', 'interpolation', *(() if config.kept_in_memory else ('crop_pct',))):
        if not getattr(config, name) and len(values := {str(each[name]) for each in seen}) > 1:
            _logger.warning('the teachers were exported for images of another %s (%s), and their students get them '
                            'so: to compare them on the same ones give %s', name, ', '.join(sorted(values)),
                            setting(name))
    sizes = [each['input_size'] for each in seen]
    if config.input_size is None and len({tuple(size) for size in sizes}) > 1:
        raise SFTeacherError(f'the teachers were exported for images of {" and ".join(map(str, sizes))}: their '
                             f'students would not be comparable; give {setting("input_size")}, one for all')
    return sizes


def _make_folder(output: str) -> None:
    try:
        place = Path(output).resolve()
        around = next((path for path in (place, *place.parents) if (path / PROBE).is_file()), None)
        if around is None:
            place.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SFTeacherError(f'cannot write to {setting("output", output)}: {error}') from error
    if around is not None:
        raise SFTeacherError(f'cannot write to {setting("output", output)}: {around} is an exported teacher, whose '
                             f'next export would be refused for what lies in it; choose a place outside')


def _keep_earlier(output: Path, result: dict[str, Any]) -> None:
    """Give a report that is there already, of other teachers or settings or damaged, a name with a number."""
    path = output / 'report.json'
    with suppress(OSError, ValueError):
        if json.loads(path.read_text(encoding='utf-8')) == json.loads(json.dumps(result)):
            return
    number = next(n for n in itertools.count(1) if not (output / f'report-{n}.json').exists())
    for kept in (path, output / 'report.png'):
        if kept.exists():
            kept.rename(kept.with_stem(f'report-{number}'))


def _affordable(
        config: ReportRun,
        folders: Sequence[str],
        fine_tuned: int,
        pilots: Pilots,
        data: Data,
) -> tuple[int, float]:
    """The epochs of the longest pilots, as many as fit into the budget beside fine-tuning; what it took to find out.

    The pilot that tells what an epoch takes is of the largest teacher. It is trained beside the others.
    """
    if not config.budget:
        return config.epochs, 0.
    largest = max(folders, key=lambda folder: (stamp(folder) or [0])[0])
    one = pilots.run(Candidate(largest, config.temperatures[0]), 1, config.seed + SELECTION_SEED)['seconds']
    fine_tuning, tried = expected_seconds(config, folders[0], data)
    beside = (pilots.labelled is not None) + (fine_tuned > 0)       # finalists beside the two that are compared

    def takes(epochs: int) -> float:
        return tried + fine_tuning + one * (1 + halving.pilot_epochs(
            len(folders) + fine_tuned, len(config.temperatures), epochs, config.seeds, beside))

    for epochs in range(config.epochs, 0, -1):
        if takes(epochs) <= halving.seconds(config.budget):
            _logger.info('an epoch of a pilot takes %.1f s: %d epochs fit into %s', one, epochs, config.budget)
            return epochs, tried
    part = f' ({tried + fine_tuning:.0f} s of it for {setting("fine_tune", config.fine_tune)})' if fine_tuning else ''
    raise SettingError(f'{setting("budget", config.budget)} is too small: with pilots of one epoch it takes about '
                       f'{math.ceil(takes(1))} s here{part}; give that, or fewer teachers, temperatures or seeds')
