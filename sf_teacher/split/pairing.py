"""Which of a model's boundaries are used, and which of a teacher's belongs to which of a student's."""
import itertools
import math
from collections.abc import Sequence

from torch import nn

from ..errors import SFTeacherError
from .boundaries import Boundary


def default_boundaries(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """Choose among all boundaries of a model.

    Hierarchical models: the last boundary of each resolution, without the stem (half the image's resolution or more)
    and without the model's last, behind which only norm and head remain. Isotropic models: three, evenly spaced in
    depth.
    """
    usable = [b for b in boundaries if b.depth < 1.] or list(boundaries)
    if len({b.size for b in boundaries}) == 1:
        steps = {max(round(len(boundaries) * k / 4), 1) / len(boundaries) for k in (1, 2, 3)}
        return [b for b in usable if any(math.isclose(b.depth, s) for s in steps)] or usable[-3:]
    runs = [list(run) for _, run in itertools.groupby(usable, key=lambda b: b.size)]
    lasts = [run[-1] for run in runs if run[-1].depth < 1.]
    return [b for b in lasts if b.reduction >= 3] or lasts or usable


def pair_boundaries(teacher: Sequence[Boundary], student: Sequence[Boundary]) -> list[tuple[Boundary, Boundary]]:
    """Pair boundaries in order of depth: the pairing whose depths, then whose resolutions, differ least.

    The depth of a boundary that was named by its module path is not known; then only resolutions count.

    Raises:
        SFTeacherError: Resolutions do not decide.
    """
    short, long = (teacher, student) if len(teacher) <= len(student) else (student, teacher)
    known = not any(math.isnan(b.depth) for b in (*teacher, *student))

    def difference(chosen: Sequence[Boundary]) -> tuple[float, float]:
        depth = sum(abs(a.depth - b.depth) for a, b in zip(short, chosen, strict=True)) if known else 0.
        resolution = sum(abs(math.log(a.size[0] / b.size[0])) for a, b in zip(short, chosen, strict=True))
        return round(depth, 6), round(resolution, 6)

    best, *others = sorted(itertools.combinations(long, len(short)), key=difference)
    if not known and others and difference(others[0]) == difference(best):
        raise SFTeacherError(
            f'several boundaries of the student go as well with {", ".join(b.name for b in teacher)}: name pairs '
            f'(teacher boundary, student boundary) in `boundaries`; the student has '
            f'{", ".join(b.name for b in student)}')
    return list(zip(short, best, strict=True)) if short is teacher else list(zip(best, short, strict=True))


def pick_boundary(boundaries: Sequence[Boundary], key: int | str, model: nn.Module, role: str) -> Boundary:
    """The boundary of this index or name.

    Raises:
        SFTeacherError: There is none.
    """
    for boundary in boundaries:
        if key in (boundary.index, boundary.name):
            return boundary
    allowed = ', '.join(f'{b.index} ({b.name})' for b in boundaries)
    raise SFTeacherError(f'{role} {type(model).__name__} has no boundary {key!r}: it has {allowed}')
