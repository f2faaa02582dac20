"""A row of the table of bad inputs, and the place where it is tried."""
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf_teacher import SFTeacherError, cli
from tests.training import training_runs as runs


class Exit(Exception):
    """A command ended with a code other than 0: the code, and all that it said."""


@dataclass(frozen=True)
class Place:
    """Where a row is tried: `here` is empty and the working directory; the rest is shared and must stay as it is."""
    here: Path
    shared: Path

    @property
    def data(self) -> Path:
        """24 images of 4 classes to train on, 24 to validate."""
        return self.shared / 'data'

    @property
    def teacher(self) -> Path:
        """A folder as export writes it for timm, of 4 classes and images of (3, 16, 16)."""
        return self.shared / 'teacher'

    def contents(self) -> dict[Path, int]:
        """Every file and folder with its time of change."""
        return {path: path.lstat().st_mtime_ns for root in (self.here, self.shared) for path in root.rglob('*')}


def make_shared(root: Path) -> Path:
    """What the places of a session share."""
    runs.folder(root / 'data')
    runs.fixed_size_teacher(root / 'teacher')
    return root


@dataclass(frozen=True)
class Row:
    """A bad input.

    Args:
        surface: What it is given to.
        given: What is given.
        call: Gives it.
        message: Regular expression of what is said; a dot is any character.
        error: What is raised.
        prepare: Writes the files that the call reads.
    """
    surface: str
    given: str
    call: Callable[[Place], object]
    message: str
    error: type[Exception] = SFTeacherError
    prepare: Callable[[Place], object] = lambda place: None

    def __str__(self) -> str:
        return f'{self.surface}: {self.given}'


def rows(
        surface: str,
        cases: Mapping[str, tuple[Callable[[], object], str]],
        error: type[Exception] = SFTeacherError,
) -> Iterator[Row]:
    """Rows of what needs no files."""
    for given, (call, message) in cases.items():
        yield Row(surface, given, lambda place, call=call: call(), message, error)


def command(place: Place, name: str, *args: str) -> None:
    """Run a command whose arguments replace or extend good ones; `~NAME` leaves one out.

    Raises:
        Exit: It ended with a code other than 0.
    """
    good: dict[str, Any] = {'--data': str(place.data), '--output': 'run', '--batch-size': '8', '--epochs': '1',
                            '--device': 'cpu', '--in-memory': None}
    good |= {'train': {'TEACHER': 'test_resnet', '--student': 'test_resnet', '--input-size': '3 16 16'},
             'distill': {'--teacher': str(place.teacher), '--student': 'test_resnet'}}[name]
    for arg in args:
        key, _, value = arg.partition(' ')
        good.pop(key.removeprefix('~'), None)
        if not key.startswith('~'):
            good[key] = value.format(data=place.data, teacher=place.teacher) or None
    words = [name, *(good.pop('TEACHER', '').split())]
    words += [word for key, value in good.items() for word in (key, *(value or '').split())]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = stop.code
    assert 'Traceback' not in said.getvalue()
    if code not in (0, None):
        raise Exit(f'{code}: {" ".join(said.getvalue().split())}')


def commands(name: str, cases: list[tuple[list[str], str]]) -> Iterator[Row]:
    """Rows of a command line."""
    for args, message in cases:
        yield Row(f'sf-teacher {name}', ' '.join(args), lambda place, args=args: command(place, name, *args), message,
                  Exit)
