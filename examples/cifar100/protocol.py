"""A protocol: which teachers and students are trained, how, and with which seeds. Read from YAML, checked at once."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from sf_teacher.methods import METHODS
from sf_teacher.methods.base import options
from sf_teacher.training import TrainConfig

Spec = dict[str, Any]
STANDARD, ALONE = 'standard', 'alone'


@dataclass(frozen=True)
class Pair:
    """A teacher, the student of its branches, and the students that learn from it.

    Args:
        teacher: ``{name: timm name, **arguments}``, or ``{cifar: name in nets.py}``.
        student: The same.
        boundaries: As in `sf_teacher.wrap`.
        others: Students that were not the branch, by name.
    """
    teacher: Spec
    student: Spec
    boundaries: Any = None
    others: dict[str, Spec] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """How a teacher is trained. Without a method it is the standard teacher.

    Args:
        method: Name of the method.
        options: Its settings.
        train: Settings of the loop that differ from the protocol's, e.g. epochs.
        student: The same for its students.
        after: Another arm whose trained teacher it starts from.
        boundaries: Instead of the pair's.
        branch: The model of the branches instead of the student, or several.
        simplifier: The students learn by way of a simplifier (student-friendly KD) with this fraction of their learning
            rate; 0 for plain distillation.
        against: The arm that it is compared with in the results.
    """
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    after: str | None = None
    boundaries: Any = None
    branch: Spec | list[Spec] | None = None
    simplifier: float = 0.
    against: str = STANDARD


@dataclass(frozen=True)
class Protocol:
    """A YAML file.

    Args:
        about: What it is for, one line; printed above its results.
        results: Folder of its JSON files; protocols that share it share the runs that they have in common.
        pairs: By name.
        arms: By name; ``standard`` is the reference.
        seeds: Each with a fresh teacher and a fresh student.
        train: Settings of the loop, names as in `sf_teacher train`.
        student: Those that differ for students.
        batch_size: Images in a batch.
        classes: First and last (exclusive) class, in alphabetical order.
        per_class: Training images of each class, the first ones in the order of the data source; by default all.
        size: Pixels of a side.
        kd: Temperature and weights of the plain distillation.
    """
    about: str
    results: str
    pairs: dict[str, Pair]
    arms: dict[str, Arm]
    seeds: tuple[int, ...]
    train: dict[str, Any]
    student: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    classes: tuple[int, int] = (0, 100)
    per_class: int | None = None
    size: int = 32
    kd: dict[str, float] = field(default_factory=lambda: {
        'temperature': 4., 'task_loss_weight': 0.1, 'distill_loss_weight': 0.9})


@dataclass(frozen=True)
class Run:
    """One training: everything that its result depends on.

    Args:
        kind: ``"teacher"`` or ``"student"``.
        pair: Its name.
        arm: Its name; ``"alone"`` for a student without teacher.
        seed: The seed.
        student: Name of the student: ``"own"`` is the one of the branches.
        settings: The rest, as plain values.
    """
    kind: str
    pair: str
    arm: str
    seed: int
    student: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """Of the settings alone: the same work has the same key whatever the protocol calls it."""
        text = json.dumps([self.kind, self.seed, self.settings], sort_keys=True)
        return f'{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}'


def read(path: Path, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Protocol:
    """Read a protocol, on top of the one that it names as its `base`; all of it, or only these arms and seeds."""
    values = yaml.safe_load(path.read_text(encoding='utf-8'))
    if base := values.pop('base', None):
        values = yaml.safe_load((path.parent / base).read_text(encoding='utf-8')) | values
    for name, cls in (('pairs', Pair), ('arms', Arm)):
        values[name] = {key: _made(cls, item or {}, f'{path.name}: {name}: {key}')
                        for key, item in values[name].items()}
    protocol = _made(Protocol, {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}, path.name)
    for arm in protocol.arms.values():
        TrainConfig(**{**protocol.train, **arm.train})
        TrainConfig(**{**protocol.train, **protocol.student, **arm.student})
        for role, other in (('start from', arm.after), ('compare with', arm.against)):
            if other is not None and other not in protocol.arms:
                raise SystemExit(f'{path.name}: there is no arm {other!r} to {role}')
    if unknown := set(arms or ()) - set(protocol.arms):
        raise SystemExit(f'{path.name}: there is no arm {", ".join(sorted(unknown))}; there are '
                         f'{", ".join(protocol.arms)}')
    wanted = {*(arms or protocol.arms), *(protocol.arms[name].after for name in arms or ())}
    chosen = {name: arm for name, arm in protocol.arms.items() if name in wanted}
    return replace(protocol, arms=chosen, seeds=tuple(seeds or protocol.seeds))


def teacher_run(protocol: Protocol, pair_name: str, arm_name: str, seed: int) -> Run:
    """The run of a teacher. A standard teacher does not depend on the student."""
    pair, arm = protocol.pairs[pair_name], protocol.arms[arm_name]
    settings = {
        **_common(protocol), 'model': pair.teacher, 'train': {**protocol.train, **arm.train},
        'after': teacher_run(protocol, pair_name, arm.after, seed).key if arm.after else None}
    if arm.method:
        resolved = options(METHODS[arm.method](**arm.options))      # a default may change
        settings |= {'method': arm.method, 'ramp': resolved.pop('kl_ramp', 0.), 'options': resolved,
                     'branch': arm.branch or pair.student, 'boundaries': arm.boundaries or pair.boundaries}
    return Run('teacher', pair_name, arm_name, seed, 'own', settings)


def student_runs(protocol: Protocol, pair_name: str, arm_name: str, seed: int) -> list[Run]:
    """The runs of the students of a teacher, or of those that learn alone."""
    pair = protocol.pairs[pair_name]
    arm = protocol.arms.get(arm_name, Arm())
    settings = {**_common(protocol), 'train': {**protocol.train, **protocol.student, **arm.student}}
    if arm_name != ALONE:
        settings |= {'kd': protocol.kd, 'teacher': teacher_run(protocol, pair_name, arm_name, seed).key}
        settings |= {'simplifier': arm.simplifier} if arm.simplifier else {}
    return [Run('student', pair_name, arm_name, seed, name, {**settings, 'model': spec})
            for name, spec in {'own': pair.student, **pair.others}.items()]


def chains(protocol: Protocol) -> list[list[list[Run]]]:
    """Two phases of chains: runs of a chain follow each other, chains of a phase do not depend on each other.

    Seed by seed, so that a protocol that is stopped has whole seeds. In the second phase are the teachers that start
    from one of the first.
    """
    phases: list[dict[str, list[Run]]] = [{}, {}]
    planned: set[str] = set()
    for seed in protocol.seeds:
        for pair in protocol.pairs:
            for arm_name in (ALONE, *protocol.arms):
                students = student_runs(protocol, pair, arm_name, seed)
                arm = protocol.arms.get(arm_name)
                first = [teacher_run(protocol, pair, arm_name, seed)] if arm else []
                phase = phases[1 if arm and arm.after else 0]
                chain = phase.setdefault(first[0].key if first else f'{pair} alone {seed}', first)
                planned |= {run.key for run in first}       # pairs may share a teacher, or a student alone
                chain += [run for run in students if run.key not in planned]
                planned |= {run.key for run in students}
    return [[chain for chain in phase.values() if chain] for phase in phases]


def _common(protocol: Protocol) -> dict[str, Any]:
    return {'classes': list(protocol.classes), 'per_class': protocol.per_class, 'size': protocol.size,
            'batch_size': protocol.batch_size}


def _made(cls: Any, values: dict[str, Any], where: str) -> Any:
    known = [f.name for f in fields(cls)]
    if unknown := [name for name in values if name not in known]:
        raise SystemExit(f'{where}: there is no {", ".join(unknown)}; there are {", ".join(known)}')
    return cls(**values)
