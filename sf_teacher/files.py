"""Files and folders that are there as a whole or not at all; no write goes through a link that lies at its place.

Whatever this package writes comes through here. A file or folder is made under a random temporary name beside its
target, exclusively (nothing that exists is opened, a link neither), synchronised with the disk and renamed over the
target, which replaces a link there instead of following it. A process that is killed leaves at most a temporary file
or folder, whose name carries our mark and the target's name, so that nobody else's is ever taken for it.
"""
import errno
import os
import re
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from .errors import SFTeacherError

_MARKED = re.compile(r'\.(?P<name>.+)\.sf_teacher-[0-9a-f]{16}\.(?P<kind>tmp|old)')
LITTLE = 2 ** 20      # bytes: a disk with less is full
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_OF_RUST = rf'os error ({errno.ENOSPC}|{errno.EDQUOT})\b'      # safetensors
_TORCH_WRITER = 'PytorchStreamWriter|inline_container'
_FAILURES = (OSError, RuntimeError, SafetensorError)     # of torch and safetensors, when a write fails


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], advice: str = '') -> None:
    """Write a file so that a crash at any moment leaves either the old one or the new one, complete.

    Args:
        path: Where to; a link there is replaced, not followed.
        write: Called with the open file.
        advice: What to do if it cannot be written.

    Raises:
        SFTeacherError: It cannot be written, e.g. because the disk is full; what was there is still there.
    """
    temporary = _temporary(path, 'tmp')
    made = False
    try:
        with undisturbed():
            file = open(temporary, 'xb')    # noqa: SIM115 # x: never opens what exists, be it a link to nowhere
            made = True
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        reason = _reason(error, path)
        if made:
            temporary.unlink(missing_ok=True)
        if isinstance(error, _FAILURES):
            raise SFTeacherError(f'cannot write {path}: {reason}. What was there before is complete{advice}') from error
        raise


@contextmanager
def written_at_once(target: Path, check: Callable[[], object] | None = None) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` if the block succeeds and vanishes if it does not.

    Args:
        target: Where to; missing parents are made. What is there is replaced as a whole, and put back after a failure.
        check: Called again just before the replacement; may refuse `target` by raising.

    Yields:
        The temporary folder.

    Raises:
        SFTeacherError: It cannot be written; what was there is still there.
    """
    made = [path for path in target.parents if not path.exists()]  # the innermost first
    temporary = _temporary(target, 'tmp')
    own = False
    try:
        for path in reversed(made):
            path.mkdir(exist_ok=True)
        with undisturbed():
            temporary.mkdir()
            own = True
        yield temporary
        mode = temporary.stat().st_mode & 0o666     # safetensors writes for the owner only
        for path in temporary.iterdir():
            path.chmod(mode)
            _sync(path)
        _sync(temporary)
        if check is not None:
            check()
        with undisturbed():
            _move(temporary, target)
            _sync(target.parent)
    except BaseException as error:
        reason = _reason(error, target)
        with undisturbed():
            if own:
                shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):
                for path in made:
                    path.rmdir()
        if isinstance(error, _FAILURES):
            raise SFTeacherError(f'cannot write {target}: {reason}') from error
        raise


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block, which must be short."""
    if threading.current_thread() is not threading.main_thread():   # only there handlers can be set, and run
        yield
        return
    came: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        for signum, handler in before.items():
            if callable(handler) or handler is signal.SIG_DFL:
                signal.signal(signum, lambda number, _: came.append(number))
        yield
    finally:
        for signum, handler in before.items():
            if callable(handler) or handler is signal.SIG_DFL:
                signal.signal(signum, handler)
        if came:
            signal.raise_signal(came[0])


def remove_leftovers(folder: Path, *names: str) -> None:
    """Clear away what processes killed while writing left in a folder, which no other process may be writing to.

    A temporary file or folder goes; a folder that was about to be replaced goes back if its replacement never arrived.

    Args:
        folder: Where the targets lie.
        names: The targets' names or patterns such as ``'checkpoint-*.pt'``; what was meant for others stays.
    """
    for path in sorted(folder.iterdir()):
        found = _MARKED.fullmatch(path.name)
        if found is None or not any(fnmatchcase(found['name'], name) for name in names):
            continue
        target = folder / found['name']
        if found['kind'] == 'old' and not os.path.lexists(target):
            os.replace(path, target)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _reason(error: BaseException, path: Path) -> str:
    """What went wrong, and that the disk is full if it is; while what was written is still there, which fills it."""
    full = any(getattr(e, 'errno', None) in _FULL or re.search(_FULL_OF_RUST, str(e)) for e in _chain(error))
    if not full and re.search(_TORCH_WRITER, str(error)):     # torch's writer does not say why it could not write
        with suppress(OSError):
            full = shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free < LITTLE
    return f'the disk is full ({error})' if full else str(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it followed from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _temporary(target: Path, kind: str) -> Path:
    return target.with_name(f'.{target.name}.sf_teacher-{uuid.uuid4().hex[:16]}.{kind}')


def _move(temporary: Path, target: Path) -> None:
    """Rename a folder onto `target`; what was there is removed last, or put back."""
    if target.is_symlink():
        raise OSError(f'{target} is a link: give the folder that it points to, {os.path.realpath(target)}')
    if not target.exists():
        os.replace(temporary, target)
        return
    old = _temporary(target, 'old')
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)      # the new one is in place; `remove_leftovers` clears away the rest


def _sync(path: Path) -> None:
    if os.name == 'nt' and path.is_dir():   # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
