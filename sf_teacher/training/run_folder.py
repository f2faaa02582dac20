"""The folder of a run: written atomically, held by one process at a time; no write follows a link that lies in it."""
from __future__ import annotations

import csv
import io
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout

from .. import files
from ..errors import SFTeacherError
from ..validation import setting
from .checkpoint import DamagedCheckpoint, read_checkpoint
from .curves import CURVES
from .settings import TrainConfig
from .settings_file import changed, read_yaml, to_yaml

_logger = logging.getLogger(__name__)

CONFIG, SUMMARY, LOCK = 'config.yaml', 'summary.csv', '.lock'
KEPT = 2    # the newest, and the one before it in case the disk damages the newest
_CHECKPOINT = re.compile(r'checkpoint-(\d{5,})\.pt')


class RunFolder:
    """The folder of a run.

    Args:
        path: Where; made with its parents if need be.
        config: The resolved settings, see `start`.
        resume: Whether to continue the run that is in there.
        primary: Whether this process writes; the others only read.

    Raises:
        SFTeacherError: It cannot be written, another process holds it, it has a run although `resume` is off, the
            settings differ from that run's, or it holds links in place of a run's files. Nothing has been changed.
    """

    def __init__(self, path: str | Path, config: TrainConfig, resume: bool, primary: bool = True) -> None:
        self.path, self.primary, self._made = Path(path), primary, []   # type: Path, bool, list[Path]
        self._lock: FileLock | None = None
        if not primary:
            return
        try:
            absent = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._made = absent     # the innermost first
            if os.path.lexists(self.path / LOCK):
                _check_regular(self.path / LOCK)
            lock = FileLock(self.path / LOCK, timeout=0)    # follows no link; loading processes do not inherit it
            lock.acquire()
            self._lock = lock
        except Timeout as error:
            raise SFTeacherError(f'another process is training into {path}: choose another output') from error
        except (OSError, ValueError) as error:
            self.close()
            raise SFTeacherError(f'cannot write to {setting("output", str(path))}: {error}') from error
        try:
            check_run(self.path, config, resume)
        except BaseException:
            self.close()
            raise

    def start(self, config: TrainConfig) -> None:
        """Write config.yaml, once everything has been checked: from now on the folder holds a run."""
        if not self.primary:
            return
        exported = ('teacher', 'student') if (self.path / CONFIG).exists() else ()      # else they are not of this run
        files.remove_leftovers(self.path, CONFIG, SUMMARY, CURVES, 'checkpoint-*.pt', *exported)
        self._made = []
        text = to_yaml(replace(config, resume=False))
        self._write(CONFIG, lambda file: file.write(text.encode()))

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is complete, or None where there is none."""
        found = checkpoints(self.path)
        for path in found:
            _check_regular(path)
            try:
                return read_checkpoint(path)
            except DamagedCheckpoint as error:
                _logger.warning('%s; trying the one before it', error)
        if found:
            raise SFTeacherError(f'no checkpoint in {self.path} is complete: start anew in another output')
        return None

    def save(self, state: dict[str, Any], epoch: int) -> None:
        """Write the checkpoint after so many epochs, then drop the oldest."""
        self._write(f'checkpoint-{epoch:05d}.pt', lambda file: torch.save(state, file))
        for path in checkpoints(self.path)[KEPT:]:
            path.unlink()

    def write_summary(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write summary.csv, one row an epoch. It is written whole, since a branch may appear later than the first."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        self._write(SUMMARY, lambda file: file.write(text.getvalue().encode()))

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        advice = f'; make room or choose another output, then continue with {setting("resume")}'
        files.write_atomically(self.path / name, write, advice)

    def close(self) -> None:
        """Let other processes have the folder; one that was made here and never got a run goes again."""
        if self._made and self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
        with suppress(OSError):
            for path in self._made:
                path.rmdir()
        self._lock, self._made = None, []


def check_run(path: Path, config: TrainConfig, resume: bool) -> None:
    """Refuse a folder with a run in it that is not to be resumed, or of other settings; see `RunFolder`."""
    known, found = path / CONFIG, checkpoints(path)
    for file in (known, path / SUMMARY, *found):
        if os.path.lexists(file):
            _check_regular(file)
    if not resume and (known.exists() or found):
        raise SFTeacherError(f'{path} holds a run already: continue it with {setting("resume")}, or choose another '
                             f'{setting("output")}')
    if resume and found and not known.exists():
        raise SFTeacherError(f'{known} is missing, so the settings of the run in {path} are not known: put it back, or '
                             f'start anew in another output')
    if resume and known.exists() and (differences := changed(config, read_yaml(known))):
        raise SFTeacherError(f'the run in {path} was started with other settings ({"; ".join(differences)}): resume it '
                             f'with those of its config.yaml, or choose another output')


def checkpoints(path: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; files with other names are not the run's."""
    paths = path.iterdir() if path.is_dir() else ()
    numbered = [(int(found[1]), p) for p in paths if (found := _CHECKPOINT.fullmatch(p.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def _check_regular(path: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode):
        kind = f'a link to {os.readlink(path)}' if path.is_symlink() else 'no regular file'
        raise SFTeacherError(f'{path} is {kind}, which no run leaves there: remove it, or choose another output')
