"""What a run notes of what it was begun with, its images and its frozen model: a resumed one must have the same."""
from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch
from timm.task import LogitDistillationTask
from torch import nn

from ..data.fingerprint import fingerprint
from ..errors import SFTeacherError
from ..files import write_atomically
from ..validation import setting
from .interruption import World
from .planning import Plan
from .run_folder import checkpoints

_logger = logging.getLogger(__name__)

IMAGES, FROZEN = 'images.txt', 'frozen.txt'


@dataclass(frozen=True)
class Note:
    """A file in the folder of a run.

    Args:
        name: The file.
        text: What it holds.
        of: What it tells from others, for messages.
        source: The setting that says where this is, for messages.
    """
    name: str
    text: str
    of: str
    source: str


def check_noted(plan: Plan) -> list[Note]:
    """What a run notes; all its processes must have the same, and a resumed one what it was begun with."""
    notes, folder = _notes(plan), Path(plan.config.output)
    for note in notes:
        for number, other in enumerate(World.current().gathered(note.text)):
            if other != note.text:
                here, there = _difference(note.text, other)
                raise SFTeacherError(f'process {number} has other {note.of} than this one ({there!r} there, {here!r} '
                                     f'here): give all processes the same {note.source}')
    for note in notes if plan.config.resume else ():
        try:
            before = (folder / note.name).read_text(encoding='utf-8', errors='surrogateescape')
        except FileNotFoundError:
            if checkpoints(folder):     # a run of an earlier version
                _logger.warning('%s is missing: whether the run was begun with these %s cannot be told', folder /
                                note.name, note.of)
            continue
        except OSError as error:
            raise SFTeacherError(f'{folder / note.name} cannot be read: {error}') from error
        if before != note.text:
            then, now = _difference(before, note.text)
            raise SFTeacherError(f'the run in {folder} was begun with other {note.of} ({then!r} then, {now!r} now): '
                                 f'put back those that it had, or start anew in another output')
    return notes


def write_notes(config: Any, notes: list[Note]) -> None:
    """Write down what a run begins with, in place of what another may have left in its folder."""
    for note in notes:
        path = Path(config.output) / note.name
        if not (config.resume and path.exists()):
            write_atomically(path, methodcaller('write', note.text.encode(errors='surrogateescape')))


def _notes(plan: Plan) -> list[Note]:
    images = '\n'.join([*plan.data.contents, f'fingerprint: {fingerprint(plan.data)}', ''])
    notes = [Note(IMAGES, images, 'images', setting('data', plan.config.data))]
    task: Any = plan.task
    if isinstance(task, LogitDistillationTask):
        frozen, name = task.teacher, 'teacher'
    elif getattr(getattr(task, 'method', None), 'trained_students', False):
        frozen, name = task.branches, 'student'
    else:
        return notes
    source = setting(name, getattr(plan.config, name))
    return [*notes, Note(FROZEN, f'fingerprint: {_weights(frozen)}\n', f'weights of {source}', source)]


def _weights(model: nn.Module) -> str:
    """Digits that are others for other weights, statistics, or mean and standard deviation of the images."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _difference(first: str, second: str) -> tuple[str, str]:
    """The first line of each that the other does not have."""
    pairs = zip(first.splitlines(), second.splitlines(), strict=False)
    return next(((a, b) for a, b in pairs if a != b), (first, second))
