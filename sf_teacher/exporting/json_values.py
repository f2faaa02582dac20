"""What an export says in JSON: plain values, without what they tell of the machine."""
import dataclasses
import json
import os
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import SFTeacherError


def metadata(value: Any) -> dict[str, Any]:
    """What is said of the training, as JSON gives it back, without what it tells of the machine: paths lose theirs."""
    return _without_paths(primitives('metadata', value))


_PATH = re.compile(     # a separator that no relative path, URL or tag has before it, and the last part of what follows
    r'(?<![\w./<])(?:file://)?(?:~[\w.-]*|[A-Za-z]:|/(?![/\s]|$))(?:[^\s<>\'",;/\\]*[/\\])*([^\s<>\'",;/\\]*)')


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_paths(key): _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    whole = value.removeprefix('local-dir:')
    if PurePosixPath(whole).is_absolute() or PureWindowsPath(whole).is_absolute():      # it may hold spaces
        return PureWindowsPath(whole).name      # knows both kinds of separators
    return _PATH.sub(lambda match: match[1] if '/' in match[0] or '\\' in match[0] else match[0], value)


def primitives(name: str, value: Any) -> dict[str, Any]:
    """`value` as JSON gives it back: dataclasses as dicts with their name, paths as strings, scalars as numbers."""
    try:
        return json.loads(json.dumps(dict(value or {}), default=_to_primitive))
    except (TypeError, ValueError) as e:
        raise SFTeacherError(f'{name} must consist of numbers, strings, lists and dicts: {e}') from e


def _to_primitive(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {'name': type(value).__name__, **dataclasses.asdict(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, 'item'):
        return value.item()
    raise TypeError(f'this is a {type(value).__name__}: {value!r}')
