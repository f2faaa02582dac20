"""The methods by name: every public file of this folder, imported when it is first asked for, and those of users."""
from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import SettingError, SFTeacherError
from ..validation import like_it

if TYPE_CHECKING:
    from .base import Method

Class = TypeVar('Class', bound='type[Method]')
PHASES = ('teacher', 'student')
_NOT_METHODS = ('base', 'registry')


class Registry(Mapping[str, 'type[Method]']):
    """Method classes by key, teachers' phase and students' alike. To list the keys imports no method."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Method]] = {}
        self._listeners: list[Callable[[type[Method]], None]] = []
        package = importlib.import_module(__package__)
        self._files = [m.name for m in pkgutil.iter_modules(package.__path__)
                       if not m.name.startswith('_') and m.name not in _NOT_METHODS]

    def __getitem__(self, key: str) -> type[Method]:
        if key not in self._classes and key in self._files:
            importlib.import_module(f'.{key}', __package__)
        return self._classes[key]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._files, *self._classes]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def of_phase(self, phase: str) -> list[str]:
        """The keys of the methods that act in the training of the ``"teacher"`` or the ``"student"``."""
        return [key for key in self if self[key].phase == phase]

    def add(self, cls: type[Method]) -> None:
        """See `register_method`."""
        key, name = getattr(cls, 'key', None), cls.__name__
        if not isinstance(key, str) or not key.isidentifier() or key != key.lower():
            raise SFTeacherError(f'{name}.key={key!r} must be a name in lower case, e.g. key: ClassVar[str] = "mine"')
        if cls.phase not in PHASES:
            raise SFTeacherError(f'{name}.phase={cls.phase!r} must be one of {", ".join(map(repr, PHASES))}')
        if not is_dataclass(cls) or not getattr(cls, '__dataclass_params__').frozen:    # noqa: B009, not in typeshed
            raise SFTeacherError(f'{name} must be a frozen dataclass: put @dataclass(frozen=True) below '
                                 f'@register_method')
        taken = self._classes.get(key)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SFTeacherError(f'the method name {key!r} is taken by {taken.__module__}.{taken.__qualname__}: give '
                                 f'{name} another key')
        if taken is None and key in self._files and cls.__module__ != f'{__package__}.{key}':
            raise SFTeacherError(f'the method name {key!r} is taken by {__package__}.{key}: give {name} another key')
        self._classes[key] = cls
        for listener in self._listeners:
            listener(cls)

    def for_each(self, listener: Callable[[type[Method]], None]) -> None:
        """Call `listener` with every method, those that are registered later included."""
        for key in self:
            listener(self[key])
        self._listeners.append(listener)


METHODS = Registry()


def register_method(cls: Class) -> Class:
    """Make a method known by its key: to `wrap`, the command line, torchdistill's registries and the documentation.

    Args:
        cls: A frozen dataclass that subclasses `Method`, with a ``key``.

    Raises:
        SFTeacherError: It has no usable key, or another method has it.

    Examples:

        ```python
        @register_method
        @dataclass(frozen=True)
        class Mine(Method):
            key: ClassVar[str] = 'mine'
        ```
    """
    METHODS.add(cls)
    return cls


def get_method(method: str | Method, phase: str = 'teacher') -> Method:
    """A method's config from its name (default settings) or as it is.

    Raises:
        SFTeacherError: There is no method of this name in this phase.
    """
    from .base import Method
    if isinstance(method, Method):
        if method.phase != phase:
            raise SFTeacherError(f'{type(method).__name__} acts in the training of the {method.phase}, not of the '
                                 f'{phase}: ' + ('use StudentFriendlyKDTask, or sf-teacher distill'
                                                 if method.phase == 'student' else 'use wrap, or sf-teacher train'))
        return method
    if not isinstance(method, str) or method.lower() not in METHODS or METHODS[method.lower()].phase != phase:
        known = METHODS.of_phase(phase)
        raise SettingError(f'unknown method {method!r}{like_it(method, known, "")}: give one of '
                           f'{", ".join(map(repr, known))} or a config such as {METHODS[known[0]].__name__}()')
    return METHODS[method.lower()]()


def make_method(name: str, kwargs: Mapping[str, Any], phase: str = 'teacher') -> Method:
    """A method's config from its name and settings.

    Raises:
        SFTeacherError: There is no such method, or it has no such setting; with close names.
    """
    return configured(type(get_method(name, phase)), kwargs)


def configured(cls: type[Method], kwargs: Mapping[str, Any]) -> Method:
    """A method's config from settings that a user wrote.

    Raises:
        SFTeacherError: It has no such setting; with close names.
    """
    known = [f.name for f in fields(cls)]
    for key in kwargs:
        if key not in known:
            raise SettingError(f'{cls.__name__} has no setting {key!r}{like_it(key, known)}')
    return cls(**kwargs)
