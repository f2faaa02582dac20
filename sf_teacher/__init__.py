"""Student-friendly teachers for knowledge distillation."""
from .build import wrap
from .errors import BoundaryError, SFTeacherError
from .export import export
from .kd_task import StudentFriendlyKDTask
from .methods import GTN, SFTN, TESKD, Method
from .task import StudentFriendlyTask
from .verify import verify
from .version import __version__

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
    'export',
    'verify',
    'wrap',
]
