"""Student-friendly teachers for knowledge distillation."""
from .errors import BoundaryError, SFTeacherError
from .methods import SFTN, Method
from .task import StudentFriendlyTask, wrap
from .version import __version__

__all__ = ['SFTN', 'BoundaryError', 'Method', 'SFTeacherError', 'StudentFriendlyTask', '__version__', 'wrap']
