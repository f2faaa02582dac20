"""Which of a model's boundaries are used, and which of a teacher's belongs to which of a student's."""
import itertools
import math
from collections.abc import Sequence

from torch import nn

from ..checks import shown
from ..errors import SFTeacherError
from .boundaries import Boundary, widest_stream


def default_boundaries(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """Choose among all boundaries of a model.

    Hierarchical models: the last boundary of each resolution, without the stem (half the image's resolution or more)
    and without the model's last, behind which only norm and head remain. Isotropic models: three, evenly spaced in
    depth. Of parallel streams (several boundaries of one depth) the widest counts.
    """
    boundaries = widest_stream(boundaries)
    usable = [b for b in boundaries if b.depth < 1.] or boundaries
    if len({b.size for b in boundaries}) == 1:
        steps = {max(round(len(boundaries) * k / 4), 1) / len(boundaries) for k in (1, 2, 3)}
        return [b for b in usable if any(math.isclose(b.depth, s) for s in steps)] or usable[-3:]
    return stage_ends(usable)


def stage_ends(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """The last boundary of each resolution, without the stem (half the image's or more) where there are others."""
    lasts = [list(run)[-1] for _, run in itertools.groupby(boundaries, key=lambda b: b.size)]
    return [b for b in lasts if b.reduction >= 3] or lasts


def pair_boundaries(
        teacher: Sequence[Boundary],
        student: Sequence[Boundary],
        every: bool = True,
) -> list[tuple[Boundary, Boundary]]:
    """Pair boundaries in order of depth, each with at most one.

    Two hierarchical models: as many pairs of one resolution as there are, then as many pairs as fit in between, then
    the least difference in resolution, then in depth. Otherwise (a ViT has one resolution): the least difference in
    depth, then in resolution. The depth of a boundary that was named by its module path is not known; then only
    resolutions count.

    Args:
        teacher: Boundaries in order of depth.
        student: The same.
        every: Whether each boundary of the shorter list must have a partner, even of another resolution, as those do
            that a user has named. Without, two hierarchical models may leave out a boundary that has none of its own
            resolution.

    Raises:
        SFTeacherError: Resolutions do not decide.
    """
    named = any(math.isnan(b.depth) for b in (*teacher, *student))
    hierarchical = all(b.hierarchical for b in (*teacher, *student))
    count = min(len(teacher), len(student))

    def rank(pairs: Sequence[tuple[Boundary, Boundary]]) -> tuple[float, ...]:
        octaves = [abs(math.log2(t.size[0] / s.size[0])) for t, s in pairs]
        same = -sum(octave < 0.5 for octave in octaves), -len(pairs)
        resolution = round(sum(octaves), 6)
        depth = 0. if named else round(sum(abs(t.depth - s.depth) for t, s in pairs), 6)
        return (*same, resolution, depth) if hierarchical else (depth, resolution)

    best, *others = sorted((
        list(zip(some_t, some_s, strict=True))
        for k in range(1 if hierarchical and not every else count, count + 1)
        for some_t in itertools.combinations(teacher, k)
        for some_s in itertools.combinations(student, k)
    ), key=rank)
    if named and others and rank(others[0]) == rank(best):
        raise SFTeacherError(
            f'several boundaries of the student go as well with {", ".join(b.name for b in teacher)}: name pairs '
            f'(teacher boundary, student boundary) in `boundaries`; the student has '
            f'{", ".join(b.name for b in student)}')
    return best


def pick_boundary(boundaries: Sequence[Boundary], key: int | str, model: nn.Module, role: str) -> Boundary:
    """The boundary of this index or name.

    Raises:
        SFTeacherError: There is none.
    """
    for boundary in boundaries:
        if key in (boundary.index, boundary.name):
            return boundary
    allowed = ', '.join(f'{b.index} ({b.name})' for b in boundaries)
    raise SFTeacherError(f'{role} {type(model).__name__} has no boundary {shown(key)}: it has {allowed}')
