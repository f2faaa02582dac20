"""From the boundaries that a user named to those of the models: measured, chosen, in order of depth."""
from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..checks import shown
from ..errors import SFTeacherError
from .boundaries import Boundary, Size, feature_info, feature_name
from .pairing import pick_boundary
from .teacher_taps import teacher_boundaries

Boundaries = Sequence[int | str | tuple[int | str, int | str]]


@dataclass(frozen=True)
class Selection:
    """A teacher's boundaries, and those chosen of it and of each student.

    Args:
        teacher: All boundaries of the teacher, in order of depth.
        chosen: Those that the user named, or None for the default.
        student_modules: For each student the boundaries that the user named (indices or module paths), or None.
        num_classes: K, of the teacher.
    """
    teacher: Sequence[Boundary]
    chosen: Sequence[Boundary] | None
    student_modules: Sequence[Sequence[int | str] | None]
    num_classes: int


def select_boundaries(
        teacher: nn.Module,
        students: Sequence[nn.Module],
        boundaries: Boundaries | None,
        input_size: Size,
) -> Selection:
    """Measure a teacher's boundaries and pick those that the user named; arguments as in `StudentFriendlyTask`.

    Raises:
        SFTeacherError: There is no such boundary, or they do not fit together.
    """
    if boundaries is not None and (isinstance(boundaries, str) or not isinstance(boundaries, Sequence)):
        given = [boundaries] if isinstance(boundaries, str | int) else \
            list(boundaries.items()) if isinstance(boundaries, Mapping) else ['layer1', 'layer2']
        raise SFTeacherError(f'boundaries={shown(boundaries)} must be a list of names, indices or pairs: give '
                             f'boundaries={given!r}')
    if wrong := [b for b in boundaries or () if isinstance(b, bool)]:
        raise SFTeacherError(f'boundaries: {wrong[0]!r} is neither a name, an index nor a pair of them')
    if odd := [b for b in boundaries or () if isinstance(b, tuple | list) and len(b) != 2]:
        raise SFTeacherError(f'boundaries: {odd[0]!r} is not a pair (teacher boundary, student boundary)')
    pairs: list[tuple[int | str, int | str | None]] = [
        (b[0], b[1]) if isinstance(b, tuple | list) else (b, None) for b in boundaries or ()]
    if boundaries is not None and not pairs:
        raise SFTeacherError('boundaries=[] leaves nothing to attach a branch to: name boundaries, or omit it')
    described = {f.get('module') for f in feature_info(teacher)}
    names = None
    if any(isinstance(t, str) and t not in described for t, _ in pairs):    # then all of them by module path
        count = len(feature_info(teacher))
        pairs = [(feature_name(teacher, t) if isinstance(t, int) and 0 <= t < count else t, s) for t, s in pairs]
        names = list(dict.fromkeys(str(t) for t, _ in pairs))
    found, logits = teacher_boundaries(teacher, input_size, names)
    chosen: list[Boundary] | None = [pick_boundary(found, t, teacher, 'teacher') for t, _ in pairs] or None
    modules = [s for _, s in pairs if s is not None]
    if modules and (len(modules) < len(pairs) or not students):
        raise SFTeacherError(f'boundaries={list(boundaries or ())!r} ' + (
            'mixes pairs and single teacher boundaries: give either for all' if students else
            'names boundaries of a student, and there is none: give those of the teacher alone'))
    if chosen and not modules:      # in order of depth, in which they are paired and stacked
        order = [id(b) for b in found]
        chosen.sort(key=lambda b: order.index(id(b)))
        if twice := [a.name for a, b in itertools.pairwise(chosen) if a is b]:
            raise SFTeacherError(f'`boundaries` names {", ".join(twice)} more than once: name each once')
    return Selection(found, chosen, [modules or None for _ in students], logits.shape[-1])


def count_classes(model: nn.Module, input_size: Size) -> int:
    """K, the number of logits of a model, by one dummy image.

    Raises:
        SFTeacherError: It does not run on images of this size, or returns something else than logits.
    """
    return teacher_boundaries(model, input_size, [])[1].shape[-1]
