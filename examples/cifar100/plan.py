"""What a protocol's runs are, in which order, and what the validation images choose."""
from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol import ALONE, Arm, Protocol, Run, student_train, teacher_train

from sf_teacher.methods import METHODS
from sf_teacher.methods.base import options

Result = dict[str, Any]
NESTED = 1000       # the second student of a teacher has the teacher's seed + 1000


@dataclass(frozen=True)
class Choice:
    """What the validation images chose for an arm of a pair.

    Args:
        arm: The arm itself, or the best of its `best_of`.
        temperature: The temperature.
        validation: Accuracy on the validation images by temperature, mean over the selection seeds.
    """
    arm: str
    temperature: float
    validation: dict[float, float]


# Options that a method got after results were there, with the value that changes nothing: left out, so that keys stay
LATER = {'sample_branch': False, 'branch_share': 1.}

ORIGINS = ('teacher', 'after', 'guide')      # settings that name a teacher's run
Choices = dict[tuple[str, str, str], Choice]        # by pair, student and arm


def teacher_run(protocol: Protocol, pair_name: str, arm_name: str, seed: int) -> Run:
    """The run of a teacher. A standard teacher does not depend on the student."""
    pair, arm = protocol.pairs[pair_name], protocol.arms[arm_name]
    own = pair.branch or pair.student
    settings = {
        **_common(protocol), 'model': own if arm.as_branch else pair.teacher,
        'train': teacher_train(protocol, pair, arm),
        'after': teacher_run(protocol, pair_name, arm.after, seed).key if arm.after else None}
    if arm.method:
        made = options(METHODS[arm.method](**arm.options))      # a default may change
        resolved = {name: value for name, value in made.items() if name not in LATER or value != LATER[name]}
        settings |= {'method': arm.method, 'ramp': resolved.pop('kl_ramp', 0.), 'options': resolved,
                     'branch': arm.branch or own,
                     'boundaries': arm.boundaries or pair.boundaries}
    if arm.guide:
        settings['guide'] = teacher_run(protocol, pair_name, arm.guide, seed).key
    return Run('teacher', pair_name, arm_name, seed, 'own', settings)


def student_runs(
        protocol: Protocol,
        pair_name: str,
        arm_name: str,
        seed: int,
        temperature: float | None = None,
        nested: int = 0,
) -> list[Run]:
    """The runs of the students of a teacher, or of those that learn alone.

    Args:
        protocol: The protocol.
        pair_name: The pair.
        arm_name: The arm; `ALONE` for students without teacher.
        seed: That of the teacher.
        temperature: Instead of the protocol's.
        nested: Which of the students of this teacher.
    """
    pair = protocol.pairs[pair_name]
    arm = protocol.arms.get(arm_name, Arm())
    settings = {**_common(protocol), 'train': student_train(protocol, pair, arm)}
    if arm_name == ALONE and protocol.unlabelled:
        settings['train'] = teacher_train(protocol, pair, arm)
    elif protocol.student_per_class:
        settings['per_class'] = protocol.student_per_class
    if arm_name != ALONE:
        kd = {**protocol.kd, **({'temperature': temperature} if temperature else {})}
        settings |= {'kd': kd, 'teacher': teacher_run(protocol, pair_name, arm_name, seed).key}
        settings |= {'simplifier': arm.simplifier} if arm.simplifier else {}
        settings |= {'halfway': True} if arm.halfway else {}
        settings |= {'loss': arm.loss} if arm.loss else {}
        settings |= {'unlabelled': True} if protocol.unlabelled else {}
    return [Run('student', pair_name, arm_name, seed + NESTED * nested, name, {**settings, 'model': spec})
            for name, spec in {'own': pair.student, **pair.others}.items()]


def selection_runs(protocol: Protocol, pair: str, arm: str, seed: int) -> list[Run]:
    """The students of a selection seed: one of each temperature."""
    return [run for temperature in protocol.temperatures
            for run in student_runs(protocol, pair, arm, seed, temperature)]


def reported_runs(protocol: Protocol, pair: str, arm: str, seed: int, choices: Choices) -> list[Run]:
    """The students of a seed that is reported; none where nothing has been chosen yet."""
    if not protocol.temperatures or arm == ALONE:
        return [run for nested in range(protocol.students)
                for run in student_runs(protocol, pair, arm, seed, nested=nested)]
    runs = []
    for student in ('own', *protocol.pairs[pair].others):
        if choice := choices.get((pair, student, arm)):
            runs += [run for nested in range(protocol.students)
                     for run in student_runs(protocol, pair, choice.arm, seed, choice.temperature, nested)
                     if run.student == student]
    return runs


def choose(protocol: Protocol, done: Mapping[str, Result]) -> Choices:
    """The best temperature of each arm whose selection runs are all done, by nothing but their validation accuracy."""
    choices: Choices = {}
    for pair, spec in protocol.pairs.items():
        for student in ('own', *spec.others):
            for name, arm in protocol.arms.items():
                runs = {t: [run for seed in protocol.selection_seeds
                            for run in student_runs(protocol, pair, name, seed, t) if run.student == student]
                        for t in protocol.temperatures}
                if not arm.best_of and all(run.key in done for each in runs.values() for run in each):
                    found = {t: statistics.fmean(done[run.key]['validation_top1'] for run in each)
                             for t, each in runs.items()}
                    if found:
                        choices[pair, student, name] = Choice(name, max(found, key=found.__getitem__), found)
            for name, arm in protocol.arms.items():
                candidates = [choices.get((pair, student, other)) for other in arm.best_of or ()]
                if arm.best_of and all(candidates):
                    choices[pair, student, name] = max(
                        filter(None, candidates), key=lambda c: c.validation[c.temperature])
    return choices


def chains(
        protocol: Protocol,
        done: Mapping[str, Result] | None = None,
        part: str = 'report',
        pairs: Sequence[str] | None = None,
        arms: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
) -> list[list[Run]]:
    """A teacher and its students, in this order, in each chain; seed by seed, so that what is stopped has whole seeds.

    A chain may need a teacher of an earlier one, see `needed`.

    Args:
        protocol: The protocol.
        done: Results by key, of which the settings are chosen.
        part: ``"select"`` for the runs that choose, ``"report"`` for those that are reported.
        pairs: Only these.
        arms: Only these.
        seeds: Only these.
    """
    choices = choose(protocol, done or {})
    found: dict[str, list[Run]] = {}
    planned: set[str] = set()
    for seed in seeds or (protocol.selection_seeds if part == 'select' else protocol.seeds):
        for pair in pairs or protocol.pairs:
            for arm in arms or (ALONE, *protocol.arms):
                if part == 'select':
                    chosen = arm != ALONE and not protocol.arms[arm].best_of
                    students = selection_runs(protocol, pair, arm, seed) if chosen else []
                else:
                    students = reported_runs(protocol, pair, arm, seed, choices)
                teachers = _teachers(protocol, pair, students[0].arm, seed) if students else []
                for run in teachers:
                    if run.key not in planned:      # pairs may share a teacher, or a student alone
                        found[run.key] = [run]
                        planned.add(run.key)
                chain = found.setdefault(teachers[-1].key if teachers else f'{pair} alone {seed}', [])
                chain += [run for run in students if run.key not in planned]
                planned |= {run.key for run in students}
    return [chain for chain in found.values() if chain]


def needed(run: Run) -> list[str]:
    """Keys of the teachers that have to be there before this run starts."""
    return [run.settings[name] for name in ORIGINS if run.settings.get(name)]


def _teachers(protocol: Protocol, pair: str, arm: str, seed: int) -> list[Run]:
    """The teacher of an arm, after the ones that it comes of."""
    if arm == ALONE:
        return []
    origins = filter(None, (protocol.arms[arm].after, protocol.arms[arm].guide))
    return [*(run for origin in origins for run in _teachers(protocol, pair, origin, seed)),
            teacher_run(protocol, pair, arm, seed)]


def _common(protocol: Protocol) -> dict[str, Any]:
    held_out = {'validation': protocol.validation} if protocol.validation else {}
    return {'classes': list(protocol.classes), 'per_class': protocol.per_class, 'size': protocol.size,
            'batch_size': protocol.batch_size, **held_out, **({'drawn': True} if protocol.drawn else {})}
