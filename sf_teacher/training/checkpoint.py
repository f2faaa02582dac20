"""A checkpoint: read without executing what it holds, and checked, bit by bit and value by value, before it is used."""
from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import SFTeacherError, first_line

_NEEDED = {'epoch', 'state_dict', 'optimizer', 'rng', 'rows', 'best'}
_COLUMNS = {'epoch', 'lr', 'images_per_second', 'seconds', 'memory_mb'}
_SIZED = 0x808      # zip flags that torch writes: sizes behind the data, names in UTF-8


class DamagedCheckpoint(SFTeacherError):
    """A checkpoint is truncated, or bits of it have changed since it was written."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        DamagedCheckpoint: It is truncated, or a checksum in it does not fit.
        SFTeacherError: It is no checkpoint of ours, holds code, or values that no run writes.
    """
    _check_sums(path)
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise SFTeacherError(f'{path} was refused: it holds more than tensors and plain values, and loading it could '
                             f'run foreign code ({first_line(error)})') from error
    except (RuntimeError, EOFError, OSError) as error:
        raise DamagedCheckpoint(f'{path} is damaged or truncated ({first_line(error)})') from error
    if not isinstance(state, dict) or not state.keys() >= _NEEDED:
        raise SFTeacherError(f'{path} is not a checkpoint of sf_teacher')
    wrong = _wrong(state)
    if wrong:
        raise SFTeacherError(f'{path} holds what no run writes, so it was edited or comes from elsewhere: {wrong}. '
                             f'Remove it to continue from the one before it')
    return state


def _check_sums(path: Path) -> None:
    """The CRC-32 that torch writes for every record, and that it does not look at when it reads."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            plain = all(m.compress_type == zipfile.ZIP_STORED and not m.external_attr and not m.flag_bits & ~_SIZED
                        for m in archive.infolist())    # else torch reads something else than was checked
    except Exception as error:      # a changed bit in a header can raise nearly anything
        raise DamagedCheckpoint(f'{path} is damaged or truncated ({error})') from error
    if damaged is not None or not plain:
        raise DamagedCheckpoint(f'{path} is damaged or truncated (its checksum does not fit)')


def _wrong(state: dict[str, Any]) -> str:
    """What in a checkpoint is not of the kind that a run writes, or an empty string."""
    epoch, rows, best = state['epoch'], state['rows'], state['best']
    if type(epoch) is not int or epoch < 0:
        return f'epoch={epoch!r:.50} is no number of epochs'
    if not isinstance(rows, list) or len(rows) != epoch or not all(isinstance(row, dict) for row in rows):
        return f'rows are not the {epoch} rows of summary.csv'
    for i, row in enumerate(rows):
        for name, value in row.items():
            if not isinstance(name, str) or not name.isprintable() or not (
                    name in _COLUMNS or name.startswith(('train_', 'eval_'))):
                return f'rows[{i}] has a column {name!r:.50}'
            if type(value) not in (int, float):
                return f'rows[{i}][{name!r}] is no number but {value!r:.50}'
        if row.get('epoch') != i:
            return f'rows[{i}] is of epoch {row.get("epoch")!r:.50}'
    if best is not None and not (isinstance(best, dict) and best.keys() == {'epoch', 'eval_top1'} and all(
            type(value) in (int, float) for value in best.values())):
        return f'best={best!r:.50}'
    for name in ('state_dict', 'state_dict_ema'):
        weights = state.get(name, {})
        if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
            return f'{name} is no mapping from names to tensors'
    if not isinstance(state['rng'], list) or not all(isinstance(s, dict) for s in state['rng']):
        return 'rng are no states of random number generators'
    return ''
