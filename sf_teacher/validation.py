"""Options of methods and settings of runs: dataclasses whose fields carry their help and check themselves.

Types and ranges are checked by pydantic (docs/decisions.md says why), imported when the first options are made.
Messages speak as the user wrote: arguments in Python, flags on the command line, keys in a YAML file.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import cache
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import SettingError

Config = TypeVar('Config', bound='Checked')
LARGEST = 2 ** 31 - 1       # of a whole number without a limit of its own
_SHOWN = 80                 # characters of a value in a message
_NAMES = {bool: ('True or False', ''), int: ('a whole number', 'whole numbers'),
          float: ('a finite number', 'finite numbers'), str: ('text', 'texts'), dict: ('settings by name', '')}


def option(
        default: Any,
        help: str,
        *,
        source: str = '',
        low: float | None = None,
        above: float | None = None,
        high: float | None = None,
        choices: tuple[str, ...] = (),
        free: bool = False,
        positional: bool = False,
) -> Any:
    """A field of a `Checked` dataclass.

    Args:
        default: Its default.
        help: One line for ``--help`` and the documentation.
        source: Where the default comes from: ``"paper"``, ``"code"``, ``"reported"`` or ``"ours"``.
        low: Smallest number allowed.
        above: Number that must be exceeded.
        high: Largest number allowed.
        choices: Texts allowed.
        free: Whether a resumed run may change it, because the results do not depend on it.
        positional: Whether the command line takes it without a flag.
    """
    metadata = dict(help=help, source=source, low=low, above=above, high=high, choices=choices, free=free,
                    positional=positional)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Checked:
    """Options that refuse values of the wrong type or range. Lists become tuples, whole numbers floats as annotated."""

    def __post_init__(self) -> None:
        problems, cls = [], type(self)
        for f, kind, validate in _validators(cls):      # type: ignore[arg-type]    # classes are hashable
            try:
                object.__setattr__(self, f.name, validate(getattr(self, f.name)))
            except ValueError as error:
                problems.append(_problem(cls, f, kind, getattr(self, f.name), error))
        if problems:
            raise SettingError('\n'.join(problems))

    def _require(self, condition: bool, name: str, allowed: str) -> None:
        """Refuse the value of an option: it must be what `allowed` says."""
        if not condition:
            subject = _spelling.get().subject(type(self), name, getattr(self, name))
            raise SettingError(f'{subject} must be {allowed}')

    def _written(self, name: str) -> str:
        """An option with its value, for a message."""
        return setting(name, getattr(self, name))

    def given(self, *names: str) -> list[str]:
        """Of these settings, those that are not the default."""
        return [name for name in names if getattr(self, name) != getattr(type(self), name)]

    @classmethod
    def decisive(cls) -> list[str]:
        """The names of the options that results depend on: all that are not `free`."""
        return [f.name for f in fields(cls) if not f.metadata['free']]


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Options from plain values, refusing names that there are not.

    Raises:
        SettingError: Names the unknown one and those like it, or see `Checked`.
    """
    known = [f.name for f in fields(cls)]
    for name in values:
        if name not in known:
            raise SettingError(f'{where}: there is no setting {name!r}{like_it(name, known)}')
    return cls(**values)


def like_it(name: Any, known: Iterable[str], otherwise: str | None = None, cutoff: float = 0.6) -> str:
    """The end of a message about an unknown name: those like it, or else `otherwise`, or all where they are few."""
    known = list(known)
    close = difflib.get_close_matches(str(name).lower(), known, cutoff=cutoff)
    if close:
        return f'; like it: {", ".join(close)}'
    if otherwise is not None:
        return otherwise
    return f'; there are {", ".join(known)}' if len(known) <= 20 else ''


# How the user wrote the settings

class Spelling:
    """How settings are written where they come from; here as arguments in Python."""
    nothing = ' or None'        # how a message says that a setting may be nothing

    def name(self, name: str) -> str:
        """A setting: ``lr``."""
        return name

    def line(self, name: str, value: Any) -> str:
        """A setting with a value that it should have: ``lr=0.1``."""
        return f'{name}={shortened(repr(value))}'

    def value(self, name: str, value: Any) -> str:
        """A setting with its value: ``lr=0``."""
        return self.line(name, value)

    def subject(self, owner: type, name: str, value: Any) -> str:
        """The beginning of a message about it: ``TrainConfig(lr=0): lr``."""
        return f'{owner.__name__}({name}={shortened(repr(value))}): {name}'


_spelling: ContextVar[Spelling] = ContextVar('spelling', default=Spelling())     # noqa: B039, has no state


@contextmanager
def spelled(spelling: Spelling) -> Iterator[None]:
    """Let messages speak of settings in this way."""
    token = _spelling.set(spelling)
    try:
        yield
    finally:
        _spelling.reset(token)


def setting(name: str, *value: Any) -> str:
    """A setting for a message, with its value if given: ``lr=0``, ``--lr 0`` or ``run.yaml: lr: 0``."""
    return _spelling.get().value(name, *value) if value else _spelling.get().name(name)


def shortened(text: str) -> str:
    """The beginning of a text that is too long for a message."""
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


# Types and ranges

class Kind(NamedTuple):
    """An annotation: what each value is, whether there are many, and whether there may be none."""
    item: Any
    many: bool
    optional: bool

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """Read an annotation such as ``float``, ``tuple[int, ...] | None`` or ``dict[str, Any]``."""
        kinds = [k for k in get_args(hint) if k is not type(None)]
        optional = get_origin(hint) in (Union, UnionType) and len(kinds) == 1
        inner = kinds[0] if optional else hint
        many = get_origin(inner) is tuple
        return cls(get_args(inner)[0] if many else inner, many, optional)


@cache
def _validators(cls: type) -> list[tuple[Any, Kind, Any]]:
    """Of each field: the field, its kind, and the function that checks a value and returns it."""
    from pydantic import ConfigDict, TypeAdapter

    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    hints = get_type_hints(cls) if fields(cls) else {}
    kinds = [(f, Kind.of(hints[f.name])) for f in fields(cls)]
    return [(f, kind, TypeAdapter(_limited(kind, f.metadata), config=strict).validate_python) for f, kind in kinds]


def _limited(kind: Kind, metadata: Mapping[str, Any]) -> Any:
    """The annotation with the limits of its numbers or texts."""
    from pydantic import Field, Strict

    hint: Any = kind.item
    if hint is str and metadata.get('choices'):
        hint = Literal[metadata['choices']]
    elif hint in (int, float):
        largest = LARGEST if hint is int else None
        hint = Annotated[hint, Field(ge=metadata.get('low'), gt=metadata.get('above'),
                                     le=largest if metadata.get('high') is None else metadata['high'])]
    if kind.many:
        hint = Annotated[tuple[hint, ...], Strict(False)]     # of lists too
    return hint | None if kind.optional else hint


def _problem(cls: type, f: Any, kind: Kind, value: Any, error: Any) -> str:
    """What is wrong with a value, what is allowed, and for a wrong type how it is written right."""
    spelling, limits, choices = _spelling.get(), [], f.metadata.get('choices')
    if kind.item in (int, float):
        limits = [(sign, f.metadata.get(k)) for k, sign in (('low', '>='), ('above', '>'), ('high', '<='))]
        if error.errors()[0]['type'] == 'less_than_equal' and limits[2][1] is None:
            limits[2] = '<=', LARGEST
    allowed = ('a list of ' if kind.many else '') + (
        f'one of {", ".join(choices)}' if choices else _NAMES.get(get_origin(kind.item) or kind.item, (
            f'a {kind.item}', f'{kind.item}'))[kind.many])
    allowed = f'{allowed} ' + ' and '.join(f'{sign} {limit}' for sign, limit in limits if limit is not None)
    text = f'{spelling.subject(cls, f.name, value)} must be {allowed.strip()}' + spelling.nothing * kind.optional
    if choices and isinstance(value, str):
        return text + like_it(value, choices, '')
    right: Any = None       # the value in the right type
    if kind.many and isinstance(value, str | int | float):
        right = [value]
    elif get_origin(kind.item) is dict:
        right = {'NAME': 'VALUE'}
    elif kind.item is str and isinstance(value, int | float):
        right = str(value)
    elif kind.item is float and isinstance(value, str):     # plain YAML reads 1e-3 as a text
        with suppress(ValueError):
            right = float(value) if isfinite(float(value)) else None
    return text if right is None else f'{text}, e.g. {spelling.line(f.name, right)}'
