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
from sf_teacher.training import TrainConfig

Spec = dict[str, Any]
STANDARD, ALONE = 'standard', 'alone'
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Pair:
    """A teacher, the student of its branches, and the students that learn from it.

    Args:
        teacher: ``{name: timm name, **arguments}``, or ``{cifar: name in nets.py}``.
        student: The same.
        boundaries: As in `sf_teacher.wrap`.
        others: Students that were not the branch, by name.
        branch: The model of the branches instead of the student.
        train: Settings of the loop that differ from the protocol's for this pair, its students included.
        student_train: The same for its students alone.
    """
    teacher: Spec
    student: Spec
    boundaries: Any = None
    others: dict[str, Spec] = field(default_factory=dict)
    branch: Spec | None = None
    train: dict[str, Any] = field(default_factory=dict)
    student_train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """How a teacher is trained. Without a method it is the standard teacher.

    Args:
        method: Name of the method.
        options: Its settings.
        train: Settings of the loop that differ from the protocol's, e.g. epochs.
        student: The same for its students.
        after: Another arm whose trained teacher it starts from.
        guide: Another arm, `as_branch`, whose trained teacher is the student of a method that needs a trained one.
        as_branch: The teacher is the model of the branches itself.
        boundaries: Instead of the pair's.
        branch: The model of the branches instead of the student, or several.
        simplifier: The students learn by way of a simplifier (student-friendly KD) with this fraction of their learning
            rate; 0 for plain distillation.
        against: The arms that it is compared with in the results; one may be given as a string.
        halfway: The students learn from the teacher as it was after half of its epochs.
        loss: How the students learn: a name of `rivals.LOSSES`; plain distillation by default.
        best_of: Nothing is trained for this arm: it is the one of these that is best on the validation images.
    """
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    after: str | None = None
    guide: str | None = None
    as_branch: bool = False
    boundaries: Any = None
    branch: Spec | list[Spec] | None = None
    simplifier: float = 0.
    against: tuple[str, ...] = (STANDARD,)
    halfway: bool = False
    loss: str | None = None
    best_of: list[str] | None = None


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
        per_class: Training images of each class; by default all.
        drawn: Whether the training images are drawn at random, by the run's seed; otherwise they are the first ones of
            each class in the order of the data source, and the validation images the last ones.
        size: Pixels of a side.
        kd: Temperature and weights of the plain distillation.
        validation: Of each class, training images on which nothing is trained: settings are chosen by them. With them
            a run is evaluated after its last epoch only.
        student_per_class: Training images of each class for students that have a teacher; by default the teacher's.
        unlabelled: Whether these students learn without labels; one that learns alone has the teacher's images.
        temperatures: For each arm that of the best students of the selection seeds, on the validation images, is taken.
        selection_seeds: Seeds that choose and that are never in the tables of gains.
        chosen_by: Another protocol with the same `results`, in YAML its name: what is chosen on it is taken here.
        students: Students of each teacher in what is reported.
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
    drawn: bool = False
    size: int = 32
    kd: dict[str, float] = field(default_factory=lambda: {
        'temperature': 4., 'task_loss_weight': 0.1, 'distill_loss_weight': 0.9})
    validation: int = 0
    student_per_class: int | None = None
    unlabelled: bool = False
    temperatures: tuple[float, ...] = ()
    selection_seeds: tuple[int, ...] = ()
    chosen_by: Protocol | None = None
    students: int = 1


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


def path_of(name: str) -> Path:
    """The file of a protocol that is beside this one, or a YAML file of its own."""
    path = Path(name)
    path = path if path.suffix else HERE / f'{path}.yaml'
    if not path.is_file():
        raise SystemExit(f'there is no {path}; there are {", ".join(sorted(p.stem for p in HERE.glob("*.yaml")))}')
    return path


def read(path: Path, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Protocol:
    """Read a protocol, on top of the one that it names as its `base`; all of it, or only these arms and seeds."""
    values = yaml.safe_load(path.read_text(encoding='utf-8'))
    if base := values.pop('base', None):
        values = yaml.safe_load((path.parent / base).read_text(encoding='utf-8')) | values
    if chosen_by := values.get('chosen_by'):
        values['chosen_by'] = read(path.parent / f'{chosen_by}.yaml')
    for name, cls in (('pairs', Pair), ('arms', Arm)):
        values[name] = {key: _made(cls, item or {}, f'{path.name}: {name}: {key}')
                        for key, item in values[name].items()}
    protocol = _made(Protocol, {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}, path.name)
    for arm in protocol.arms.values():
        for pair in protocol.pairs.values():
            TrainConfig(**teacher_train(protocol, pair, arm))
            TrainConfig(**student_train(protocol, pair, arm))
        if (arm.method in METHODS and METHODS[arm.method].trained_students) != bool(arm.guide):
            raise SystemExit(f'{path.name}: {arm.method}: a guide is for methods with a trained student, which need it')
        for role, others in (('start from', [arm.after]), ('be guided by', [arm.guide]),
                             ('compare with', arm.against), ('choose', arm.best_of)):
            for other in others or ():
                if other is not None and other not in protocol.arms:
                    raise SystemExit(f'{path.name}: there is no arm {other!r} to {role}')
        if arm.halfway and arm.after:
            raise SystemExit(f'{path.name}: halfway is for teachers trained from scratch: leave out it or after')
    if shared := set(protocol.seeds) & set(protocol.selection_seeds):
        raise SystemExit(f'{path.name}: seeds {sorted(shared)} both choose and are reported')
    if protocol.chosen_by and protocol.chosen_by.results != protocol.results:
        raise SystemExit(f'{path.name}: chosen_by: its results are in {protocol.chosen_by.results}, not in '
                         f'{protocol.results}')
    if protocol.temperatures and not (protocol.validation and protocol.selection_seeds):
        raise SystemExit(f'{path.name}: temperatures are chosen by selection_seeds on validation images: give both')
    if unknown := set(arms or ()) - set(protocol.arms):
        raise SystemExit(f'{path.name}: there is no arm {", ".join(sorted(unknown))}; there are '
                         f'{", ".join(protocol.arms)}')
    wanted = {*(arms or protocol.arms), *(other for name in arms or () for other in (
        protocol.arms[name].after, protocol.arms[name].guide))}
    chosen = {name: arm for name, arm in protocol.arms.items() if name in wanted}
    return replace(protocol, arms=chosen, seeds=tuple(seeds or protocol.seeds))


def teacher_train(protocol: Protocol, pair: Pair, arm: Arm) -> dict[str, Any]:
    """Settings of the loop for the teachers of a pair and arm."""
    return {**protocol.train, **pair.train, **arm.train}


def student_train(protocol: Protocol, pair: Pair, arm: Arm) -> dict[str, Any]:
    """The same for its students."""
    return {**protocol.train, **pair.train, **protocol.student, **pair.student_train, **arm.student}


def _made(cls: Any, values: dict[str, Any], where: str) -> Any:
    known = [f.name for f in fields(cls)]
    if unknown := [name for name in values if name not in known]:
        raise SystemExit(f'{where}: there is no {", ".join(unknown)}; there are {", ".join(known)}')
    if isinstance(values.get('against', ()), str):
        values = {**values, 'against': (values['against'],)}
    return cls(**values)
