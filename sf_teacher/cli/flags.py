"""Flags from the fields of settings, settings from flags and a YAML file, and messages that speak of flags."""
from __future__ import annotations

import argparse
import ast
import inspect
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields
from itertools import groupby
from typing import Any, get_origin, get_type_hints

from ..data.settings import DataConfig
from ..training.settings import TrainConfig
from ..training.settings_file import in_yaml, read_yaml, to_yaml
from ..validation import Checked, Kind, Spelling, from_dict, shortened, spelled

TITLES = {TrainConfig: 'training', DataConfig: 'data'}


def add_settings(parser: argparse.ArgumentParser, cls: type[Checked], leave_out: Sequence[str] = ()) -> None:
    """Add a flag for each setting, grouped by the class that has it. What is not given is not in the namespace."""
    parser.add_argument('--config', metavar='FILE', help='YAML with settings by the names of the flags; flags win')
    parser.add_argument('--print-config', action='store_true',
                        help='print the settings as YAML for --config, each with its help, and stop')
    parser.usage = f'%(prog)s {" ".join(f"[{f.name.upper()}]" for f in fields(cls) if f.metadata["positional"])} ' \
                   f'[--FLAG VALUE ...]'
    hints = get_type_hints(cls)
    for title, group in groupby(_ordered(cls), lambda f: TITLES.get(_owner(cls, f), 'models and method')):
        flags = parser.add_argument_group(title)
        for f in group:
            if f.name not in leave_out:
                name = f.name if f.metadata['positional'] else _flag(f.name)
                flags.add_argument(name, default=argparse.SUPPRESS, help=help_of(f).replace('%', '%%'),
                                   **_words(Kind.of(hints[f.name]), f))


@contextmanager
def settings(args: argparse.Namespace, cls: type[Any], leave_out: Sequence[str] = ()) -> Iterator[Any]:
    """The settings: defaults, then the YAML file, then the flags. Messages inside speak of flags and of this file.

    Args:
        args: What was parsed.
        cls: The class of the settings.
        leave_out: Settings without a flag.

    Raises:
        SettingError: They do not go together, or the file cannot be read.
    """
    given = {f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)}
    given = {k: dict(v) if k.endswith('kwargs') else v for k, v in given.items()}
    values = read_yaml(args.config) if args.config else {}
    with spelled(Flags(cls, args.config, values.keys() - given.keys())):
        config = from_dict(cls, {**values, **given}, args.config or 'the command line')
        if args.print_config:
            print(to_yaml(config, {f.name: help_of(f) for f in _ordered(cls) if f.name not in leave_out}), end='')
            sys.exit()
        yield config


class Flags(Spelling):
    """Settings as flags, or as lines of the YAML file that they came from."""
    nothing = ''

    def __init__(self, cls: type[Checked], file: str | None, in_file: Any) -> None:
        self.cls, self.file, self.in_file = cls, file, in_file
        self.positional = {f.name for f in fields(cls) if f.metadata['positional']}

    def name(self, name: str) -> str:
        return name.upper() if name in self.positional else _flag(name)

    def value(self, name: str, value: Any) -> str:
        return f'{self.file}: ' * (name in self.in_file) + self.line(name, value)

    def line(self, name: str, value: Any) -> str:
        if name in self.in_file:
            return f'{name}: {shortened(in_yaml(value))}'
        if isinstance(value, bool):
            return self.name(name) if value else self.name(f'no_{name}')
        items = [f'{k}={v}' for k, v in value.items()] if isinstance(value, Mapping) else value
        words = [f'{v:g}' if isinstance(v, float) else str(v) for v in (
            items if isinstance(items, list | tuple) else [items])]
        return f'{self.name(name)} {shortened(shlex.join(words))}'

    def subject(self, owner: type, name: str, value: Any) -> str:
        return self.value(name, value) if issubclass(owner, self.cls) else super().subject(owner, name, value)


def help_of(f: Any) -> str:
    """The help of a setting with what it can be and its default."""
    text, default = f.metadata['help'], f.default_factory() if f.default_factory is not MISSING else f.default
    if '(default' not in text and not isinstance(default, bool | dict) and default not in ('', None, ()):
        text += f' (default: {" ".join(map(str, default)) if isinstance(default, tuple) else default})'
    return text + (f'; one of {", ".join(f.metadata["choices"])}' if f.metadata['choices'] else '')


def key_value(text: str) -> tuple[str, Any]:
    """A flag's ``KEY=VALUE``; what is no Python literal is a string."""
    key, equals, value = text.partition('=')
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    literal = {'true': 'True', 'false': 'False', 'none': 'None', 'null': 'None'}.get(value.lower(), value)
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return key, ast.literal_eval(literal)
    return key, value


def _number(text: str) -> Any:
    """A number, or what it is not for the settings to refuse."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def _ordered(cls: type[Any]) -> list[Any]:
    """The fields, a class's own before those that it inherits."""
    return sorted(fields(cls), key=lambda f: cls.__mro__.index(_owner(cls, f)))


def _owner(cls: type, f: Any) -> type:
    """The class that has a field first."""
    return next(c for c in reversed(cls.__mro__) if f.name in inspect.get_annotations(c))


def _words(kind: Kind, f: Any) -> dict[str, Any]:
    """What argparse has to know of a setting: how many words, and how each is read."""
    if f.metadata['positional']:
        return {'nargs': '*' if kind.many else '?'}
    if kind.item is bool:
        return {'action': 'store_true' if f.name.startswith('no_') else argparse.BooleanOptionalAction}
    if get_origin(kind.item) is dict:
        return {'type': key_value, 'nargs': '*', 'metavar': 'KEY=VALUE'}
    return {'type': str if kind.item is str else _number, 'nargs': '+' if kind.many else None,
            'metavar': f.name.rsplit('_', 1)[-1].upper()}
