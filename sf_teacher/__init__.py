"""Student-friendly teachers for knowledge distillation."""
from .build import wrap
from .errors import BoundaryError, SFTeacherError
from .methods import SFTN, Method
from .task import StudentFriendlyTask
from .version import __version__

__all__ = ['SFTN', 'BoundaryError', 'Method', 'SFTeacherError', 'StudentFriendlyTask', '__version__', 'wrap']
