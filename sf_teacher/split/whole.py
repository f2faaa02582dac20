"""Copies of whole students, for methods that run them beside the teacher and cut nothing."""
import copy

from torch import nn

from ..checks import check_classes
from .boundaries import Size
from .clones import preserved_rng, without_hooks
from .selection import count_classes
from .tail_check import check_hooks
from .trace import Trace


def copy_whole(student: nn.Module, input_size: Size, num_classes: int) -> nn.Module:
    """A copy of a student with its weights, its modes and what of it is frozen, without forward hooks.

    Raises:
        SFTeacherError: It does not run on these images, has other classes, or its copy does not do what it does.
    """
    check_classes(student, count_classes(student, input_size), num_classes)
    with preserved_rng(student):
        check_hooks(student, input_size)
        Trace(student, input_size, ())      # refuses one whose copies compute with the student's own weights
    return copy.deepcopy(student, without_hooks(student))
