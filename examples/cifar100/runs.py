"""The runs of a protocol: what a teacher's and a student's training depends on."""
from __future__ import annotations

from typing import Any

from protocol import ALONE, Arm, Protocol, Run, student_train, teacher_train

from sf_teacher.methods import METHODS
from sf_teacher.methods.base import options

Result = dict[str, Any]
NESTED = 1000       # the second student of a teacher has the teacher's seed + 1000
BRANCH_SEED = 10 ** 6       # added to a seed: branches start from other weights than any student
ORIGINS = ('teacher', 'after', 'guide')      # settings that name a teacher's run

# Options that a method got after results were there, with the value that changes nothing: left out, so that keys stay
LATER = {'sample_branch': False, 'branch_share': 1.}


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


def stages(protocol: Protocol, pair: str, arm: str, seed: int) -> list[Run]:
    """The teacher of an arm, after the teachers that it comes of: those that it starts from, and its guides."""
    if arm == ALONE:
        return []
    origins = filter(None, (protocol.arms[arm].after, protocol.arms[arm].guide))
    return [*(run for origin in origins for run in stages(protocol, pair, origin, seed)),
            teacher_run(protocol, pair, arm, seed)]


def needed(run: Run) -> list[str]:
    """Keys of the teachers that have to be there before this run starts."""
    return [run.settings[name] for name in ORIGINS if run.settings.get(name)]


def _common(protocol: Protocol) -> dict[str, Any]:
    held_out = {'validation': protocol.validation} if protocol.validation else {}
    return {'classes': list(protocol.classes), 'per_class': protocol.per_class, 'size': protocol.size,
            'batch_size': protocol.batch_size, **held_out, **({'drawn': True} if protocol.drawn else {})}
