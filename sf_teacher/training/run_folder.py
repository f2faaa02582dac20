"""The folder of a run: written atomically, held by one process at a time, readable without executing what it holds."""
from __future__ import annotations

import csv
import io
import logging
import pickle
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from .. import files
from ..errors import SFTeacherError
from .settings import TrainConfig
from .settings_file import changed, read_yaml, to_yaml

try:
    import fcntl
except ImportError:     # not on Windows, where two runs into one folder are not noticed
    fcntl = None        # type: ignore[assignment]

_logger = logging.getLogger(__name__)

CONFIG, SUMMARY = 'config.yaml', 'summary.csv'
KEPT = 2    # the newest, and the one before it in case the disk damages the newest


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file so that a crash at any moment leaves either the old one or the new one, complete.

    Raises:
        SFTeacherError: It cannot be written, e.g. because the disk is full; what was there is still there.
    """
    try:
        files.write_atomically(path, write)
    except SFTeacherError as error:
        raise SFTeacherError(f'{error}; make room or choose another output, then continue with resume') from error


class RunFolder:
    """The folder of a run.

    Args:
        path: Where; made with its parents if need be.
        config: The resolved settings, see `start`.
        resume: Whether to continue the run that is in there.
        primary: Whether this process writes; the others only read.

    Raises:
        SFTeacherError: It cannot be written, another process holds it, it has a run although `resume` is off, or the
            settings differ from that run's. Nothing has been changed.
    """

    def __init__(self, path: str | Path, config: TrainConfig, resume: bool, primary: bool = True) -> None:
        self.path, self.primary, self._lock = Path(path), primary, None
        if not primary:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / '.lock', 'a')     # noqa: SIM115, held until close()
        except OSError as error:
            raise SFTeacherError(f'cannot write to output={str(path)!r}: {error}') from error
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SFTeacherError(f'another process is training into {path}: choose another output') from error
        try:
            self._check(config, resume)
        except BaseException:
            self.close()
            raise

    def start(self, config: TrainConfig) -> None:
        """Write config.yaml, once everything has been checked: from now on the folder holds a run."""
        if self.primary:
            files.remove_leftovers(self.path, CONFIG, SUMMARY, 'checkpoint-*.pt', 'teacher', 'student')
            write_atomically(self.path / CONFIG, lambda file: _put(file, to_yaml(replace(config, resume=False))))

    def _check(self, config: TrainConfig, resume: bool) -> None:
        known = self.path / CONFIG
        if not resume and (known.exists() or self.checkpoints()):
            raise SFTeacherError(f'{self.path} holds a run already: continue it with resume, or choose another output')
        if resume and known.exists() and (differences := changed(config, read_yaml(known))):
            raise SFTeacherError(f'the run in {self.path} was started with other settings ({"; ".join(differences)}): '
                                 f'resume it with those of its config.yaml, or choose another output')

    def checkpoints(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.path.glob('checkpoint-*.pt'), reverse=True)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is complete, or None where there is none."""
        found = self.checkpoints()
        for path in found:
            try:
                return read_checkpoint(path)
            except DamagedCheckpoint as error:
                _logger.warning('%s; trying the one before it', error)
        if found:
            raise SFTeacherError(f'no checkpoint in {self.path} is complete: start anew in another output')
        return None

    def save(self, state: dict[str, Any], epoch: int) -> None:
        """Write the checkpoint after so many epochs, then drop the oldest."""
        write_atomically(self.path / f'checkpoint-{epoch:05d}.pt', lambda file: torch.save(state, file))
        for path in self.checkpoints()[KEPT:]:
            path.unlink()

    def write_summary(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write summary.csv, one row an epoch. It is written whole, since a branch may appear later than the first."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / SUMMARY, lambda file: _put(file, text.getvalue()))

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.close()


class DamagedCheckpoint(SFTeacherError):
    """A checkpoint is truncated."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        DamagedCheckpoint: It is truncated.
        SFTeacherError: It is no checkpoint of ours, or holds code.
    """
    if not zipfile.is_zipfile(path):    # what torch.save writes; a bare pickle is not even looked at
        raise DamagedCheckpoint(f'{path} is damaged or truncated')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise SFTeacherError(f'{path} was refused: it holds more than tensors and plain values, and loading it could '
                             f'run foreign code ({str(error).splitlines()[0]})') from error
    except (RuntimeError, EOFError, OSError) as error:
        raise DamagedCheckpoint(f'{path} is damaged or truncated ({str(error).splitlines()[0]})') from error
    if not isinstance(state, dict) or not {'epoch', 'state_dict', 'optimizer', 'rng'} <= state.keys():
        raise SFTeacherError(f'{path} is not a checkpoint of sf_teacher')
    return state


def random_state(device: torch.device) -> dict[str, Any]:
    """The random number generators of this process as tensors and plain values."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    state = {'torch': torch.get_rng_state(), 'numpy': [name, torch.from_numpy(keys.astype(np.int64)), *rest],
             'python': list(random.getstate())}
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back to where `random_state` found them."""
    torch.set_rng_state(state['torch'])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    if device.type == 'cuda' and 'cuda' in state:
        torch.cuda.set_rng_state(state['cuda'], device)


def _put(file: IO[bytes], text: str) -> None:
    file.write(text.encode())
