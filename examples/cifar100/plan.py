"""What the validation images choose, and which runs a protocol needs, in which order."""
from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol import ALONE, Protocol, Run
from runs import Result, stages, student_runs


@dataclass(frozen=True)
class Choice:
    """What the validation images chose for an arm of a pair.

    Args:
        arm: The arm itself, or the best of its `best_of`.
        temperature: The temperature.
        validation: Accuracy on the validation images by temperature, mean over `seeds`.
        seeds: The selection seeds of which every temperature is done.
    """
    arm: str
    temperature: float
    validation: dict[float, float]
    seeds: tuple[int, ...]


Choices = dict[tuple[str, str, str], Choice]        # by pair, student and arm


def selection_runs(protocol: Protocol, pair: str, arm: str, seed: int) -> list[Run]:
    """The students of a selection seed: one of each temperature; none where another protocol chooses."""
    return [] if protocol.chosen_by else [run for temperature in protocol.temperatures
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
    """The best temperature of each arm, by nothing but the validation accuracy of the selection seeds' students.

    An arm may have fewer teachers that choose than the protocol has seeds, but none that is begun and not done: arms
    that are only screened have one. A "best" arm is chosen by the seeds that all of its candidates have.
    """
    if protocol.chosen_by:
        return choose(protocol.chosen_by, done)
    choices: Choices = {}
    for pair, spec in protocol.pairs.items():
        for student in ('own', *spec.others):
            known = {name: _validation(protocol, done, pair, student, name)
                     for name, arm in protocol.arms.items() if not arm.best_of}
            for name, by_seed in known.items():
                if by_seed and all(len(found) == len(protocol.temperatures) for found in by_seed.values()):
                    choices[pair, student, name] = _choice(name, by_seed)
            for name, arm in protocol.arms.items():
                others = [other for other in arm.best_of or () if (pair, student, other) in choices]
                common = set(protocol.selection_seeds).intersection(*(known[other] for other in others))
                if others and len(others) == len(arm.best_of or ()) and common:
                    candidates = [_choice(other, {seed: known[other][seed] for seed in common}) for other in others]
                    best = max(candidates, key=lambda c: c.validation[c.temperature])
                    choices[pair, student, name] = choices[pair, student, best.arm]
    return choices


def _validation(
        protocol: Protocol,
        done: Mapping[str, Result],
        pair: str,
        student: str,
        arm: str,
) -> dict[int, dict[float, float]]:
    """Validation accuracy by temperature, for each selection seed of which any student is done."""
    found = {seed: {t: done[run.key]['validation_top1'] for t in protocol.temperatures
                    for run in student_runs(protocol, pair, arm, seed, t) if run.student == student and run.key in done}
             for seed in protocol.selection_seeds}
    return {seed: by_temperature for seed, by_temperature in found.items() if by_temperature}


def _choice(arm: str, by_seed: Mapping[int, Mapping[float, float]]) -> Choice:
    temperatures = next(iter(by_seed.values()))
    found = {t: statistics.fmean(each[t] for each in by_seed.values()) for t in temperatures}
    return Choice(arm, max(found, key=found.__getitem__), found, tuple(sorted(by_seed)))


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
                teachers = stages(protocol, pair, students[0].arm, seed) if students else []
                for run in teachers:
                    if run.key not in planned:      # pairs may share a teacher, or a student alone
                        found[run.key] = [run]
                        planned.add(run.key)
                chain = found.setdefault(teachers[-1].key if teachers else f'{pair} alone {seed}', [])
                chain += [run for run in students if run.key not in planned]
                planned |= {run.key for run in students}
    return [chain for chain in found.values() if chain]
