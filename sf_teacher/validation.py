"""What the configs are made of: dataclasses whose fields carry their own help and check themselves."""
from __future__ import annotations

import contextlib
import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import SFTeacherError

Config = TypeVar('Config', bound='Checked')


def option(
        default: Any,
        help: str,
        *,
        low: float | None = None,
        above: float | None = None,
        high: float | None = None,
        choices: tuple[str, ...] = (),
        free: bool = False,
        positional: bool = False,
) -> Any:
    """A setting.

    Args:
        default: Its default.
        help: One line for ``--help`` and the documentation.
        low: Smallest value allowed.
        above: Value that must be exceeded.
        high: Largest value allowed.
        choices: Values allowed.
        free: Whether a resumed run may change it, because the results do not depend on it.
        positional: Whether the command line takes it without a flag.
    """
    metadata = dict(help=help, low=low, above=above, high=high, choices=choices, free=free, positional=positional)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


NO_LIMITS = dict(low=None, above=None, high=None, choices=(), free=False, positional=False)


@dataclass(frozen=True)
class Checked:
    """A config that refuses values of the wrong type or range, naming the setting, the value and what is allowed."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = _typed(getattr(self, f.name), hints[f.name], f.name)
            for item in value if isinstance(value, tuple) else (value,):
                _check_range(f.name, item, f.metadata)
            object.__setattr__(self, f.name, value)

    def given(self, *names: str) -> list[str]:
        """Of these settings, those that are not the default."""
        return [name for name in names if getattr(self, name) != getattr(type(self), name)]


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """A config from plain values, refusing names that it does not have.

    Raises:
        SFTeacherError: Names the unknown setting and those like it.
    """
    known = [f.name for f in fields(cls)]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 3)
            raise SFTeacherError(f'{where}: there is no setting {name!r}' + (f'; like it: {", ".join(close)}' if close
                                                                             else f'; there are {", ".join(known)}'))
    return cls(**values)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        raise SFTeacherError(f'cannot read the config {path}: {error}') from error
    except yaml.YAMLError as error:
        raise SFTeacherError(f'{path} is not YAML: {error}') from error
    if not isinstance(values, dict):
        raise SFTeacherError(f'{path} must hold "setting: value" lines; it holds a {type(values).__name__}')
    return values


def to_yaml(config: Checked) -> str:
    """The config as YAML, in the order of its fields."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return yaml.safe_dump(values, sort_keys=False)


def changed(config: Checked, values: Mapping[str, Any]) -> list[str]:
    """The settings that differ from those of an earlier run and may not."""
    now = yaml.safe_load(to_yaml(config))
    return [f'{f.name}: {values.get(f.name)!r} then, {now[f.name]!r} now' for f in fields(config)
            if not f.metadata['free'] and values.get(f.name) != now[f.name]]


def _typed(value: Any, hint: Any, name: str) -> Any:
    """`value` as its annotation says, lists as tuples and whole numbers as floats where a float is meant."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(k for k in kinds if k is not type(None))
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(item, get_args(kind)[0], name) for item in value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)        # YAML reads 1e-3 as a string
    plain = get_origin(kind) or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        item = f' of {get_args(kind)[0].__name__}' if plain is tuple else ''
        raise SFTeacherError(f'{name}={value!r} must be a {plain.__name__}{item}; it is a {type(value).__name__}')
    return value


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if metadata['choices'] and value is not None and value not in metadata['choices']:
        raise SFTeacherError(f'{name}={value!r} must be one of {", ".join(metadata["choices"])}')
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    low, above, high = metadata['low'], metadata['above'], metadata['high']
    if not math.isfinite(value) or (low is not None and value < low) or (above is not None and value <= above) \
            or (high is not None and value > high):
        wanted = [f'>= {low:g}' if low is not None else '', f'> {above:g}' if above is not None else '',
                  f'<= {high:g}' if high is not None else '']
        raise SFTeacherError(f'{name}={value:g} must be {" and ".join(w for w in wanted if w) or "a finite number"}')
