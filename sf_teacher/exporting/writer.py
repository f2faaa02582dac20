"""A folder that is there as a whole or not at all."""
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SFTeacherError
from .reload import PROBE

README = 'README.md'


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a place where a folder cannot be put, before any work is done."""
    parent = next(path for path in target.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SFTeacherError(f'cannot write {target}: {parent} is not a folder that can be written to')
    if not target.exists():
        return
    if not target.is_dir():
        raise SFTeacherError(f'{target} exists and is not a folder')
    if any(target.iterdir()):
        if not overwrite:
            raise SFTeacherError(f'{target} exists and is not empty; pass overwrite=True (--overwrite) to replace an '
                                 f'earlier export')
        if not (target / PROBE).is_file():
            raise SFTeacherError(f'{target} is not an exported teacher (no {PROBE}), overwrite=True leaves it alone')


@contextmanager
def written_at_once(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` if the block succeeds and vanishes if it does not."""
    made = [path for path in target.parents if not path.exists()]  # the innermost first
    temporary = target.with_name(f'.{target.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        temporary.mkdir(parents=True)
        yield temporary
        mode = (temporary / README).stat().st_mode  # safetensors writes for the owner only
        for path in temporary.iterdir():
            path.chmod(mode)
            _sync(path)
        _sync(temporary)
        check_target(target, overwrite)
        _move(temporary, target)
    except BaseException as e:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for path in made:
                path.rmdir()
        if isinstance(e, OSError):
            raise SFTeacherError(f'cannot write {target}: {e}') from e
        raise
    _sync(target.parent)


def _move(temporary: Path, target: Path) -> None:
    """Rename onto `target`; what was there is removed last, or put back."""
    if not target.exists():
        os.replace(temporary, target)
        return
    old = temporary.with_suffix('.old')
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
