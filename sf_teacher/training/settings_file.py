"""Settings in YAML: read without surprises, written with or without their help."""
from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import SettingError
from ..validation import Checked, setting

DEEPEST = 10            # levels of nesting
LARGEST = 2 ** 20       # bytes of a file


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys, aliases (which can grow without bound) and deep nesting; 1e-3 is a number."""
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        event = self.peek_event()   # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, 'anchor', None):
            raise yaml.MarkedYAMLError(problem='anchors (&) and aliases (*) are not read: write it out',
                                       problem_mark=event.start_mark)
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f'nested more than {DEEPEST} deep', problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise yaml.MarkedYAMLError(problem=f'{key.value!r} was given on line {lines[key.value]} already: '
                                           f'leave out one of them', problem_mark=key.start_mark)
            lines[key.value if isinstance(key, yaml.ScalarNode) else id(key)] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes in quotes the texts that `_Loader` would take for numbers."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        'tag:yaml.org,2002:float', re.compile(r'[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$'), list('-+0123456789'))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        SettingError: It cannot be read or is not ``setting: value`` lines; names the line.
    """
    try:
        if not Path(path).is_file():
            raise SettingError(f'cannot read the config {path}: no such file')
        with open(path, 'rb') as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise SettingError(f'cannot read the config {path}: {error}') from error
    if len(text) > LARGEST:
        raise SettingError(f'cannot read the config {path}: it is larger than {LARGEST >> 20} MiB')
    try:
        values = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f', line {error.problem_mark.line + 1}' if error.problem_mark else ''
        raise SettingError(f'{path}{line} is not YAML: {error.problem}') from error
    except (yaml.YAMLError, ValueError) as error:
        raise SettingError(f'{path} is not YAML: {error}') from error
    if not isinstance(values, dict):
        raise SettingError(f'{path} must hold "setting: value" lines; it holds a {type(values).__name__}')
    return values


def in_yaml(value: Any) -> str:
    """A value as one line of YAML."""
    value = list(value) if isinstance(value, tuple) else value
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=1000, sort_keys=False)
    return text.removesuffix('...\n').strip()


def to_yaml(config: Checked, comments: Mapping[str, str] | None = None) -> str:
    """Settings as YAML, a line each.

    Args:
        config: The settings.
        comments: The settings to write, in this order, with the text to put above each; by default all, without.

    Raises:
        SettingError: A value is neither number nor text, nor a list or mapping of them.
    """
    lines = []
    for name, comment in (comments or {f.name: '' for f in fields(config)}).items():
        try:
            line = f'{name}: {in_yaml(getattr(config, name))}\n'
        except yaml.YAMLError as error:
            raise SettingError(f'{setting(name, getattr(config, name))} cannot be written to YAML: give numbers, '
                               f'texts, lists and mappings only') from error
        lines += [f'# {part}\n' for part in textwrap.wrap(comment, 118)] + [line]
    return ''.join(lines)


def changed(config: Checked, values: Mapping[str, Any]) -> list[str]:
    """The settings that differ from those of an earlier run and may not."""
    now, default = (yaml.load(to_yaml(c), _Loader) for c in (config, type(config)()))
    then = {name: values.get(name, default[name]) for name in config.decisive()}    # a run may be older than a setting
    return [f'{name}: {value!r} then, {now[name]!r} now' for name, value in then.items() if value != now[name]]
