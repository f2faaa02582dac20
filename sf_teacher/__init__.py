"""Student-friendly teachers for knowledge distillation: the public names, each imported when it is first asked for.

Only names that are part of the API are here. The rooms behind it, and the direction of their imports:
cli -> analysis -> training -> factory -> task -> methods, exporting -> split -> functional, checks, validation, errors.
"""
import importlib
from typing import TYPE_CHECKING, Any

from .errors import BoundaryError, SFTeacherError
from .version import __version__

if TYPE_CHECKING:
    from .exporting.exporter import export
    from .exporting.verify import check_folder, verify
    from .factory import wrap
    from .kd_task import StudentFriendlyKDTask
    from .methods.base import Method
    from .methods.gtn import GTN
    from .methods.registry import register_method
    from .methods.sftn import SFTN
    from .methods.teskd import TESKD
    from .task import StudentFriendlyTask

__all__ = [
    'GTN',
    'SFTN',
    'TESKD',
    'BoundaryError',
    'Method',
    'SFTeacherError',
    'StudentFriendlyKDTask',
    'StudentFriendlyTask',
    '__version__',
    'check_folder',
    'export',
    'register_method',
    'verify',
    'wrap',
]

_MODULES = {
    'GTN': 'methods.gtn',
    'SFTN': 'methods.sftn',
    'TESKD': 'methods.teskd',
    'Method': 'methods.base',
    'StudentFriendlyKDTask': 'kd_task',
    'StudentFriendlyTask': 'task',
    'register_method': 'methods.registry',
    'export': 'exporting.exporter',
    'check_folder': 'exporting.verify',
    'verify': 'exporting.verify',
    'wrap': 'factory',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'.{_MODULES[name]}', __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
