"""What is attached to a teacher, and where: from what the user named to one module with branches."""
import itertools
from collections.abc import Sequence

import torch
from torch import nn

from .errors import SFTeacherError
from .methods._branches import BranchOutput, BranchSet, Plan
from .split.boundaries import Boundary, Size, feature_info, feature_name
from .split.pairing import pick_boundary
from .split.teacher_taps import forward_with_maps, teacher_boundaries

Boundaries = Sequence[int | str | tuple[int | str, int | str]]


def make_plan(teacher: nn.Module, students: list[nn.Module], boundaries: Boundaries | None, input_size: Size) -> Plan:
    """Measure a teacher's boundaries and pick those that the user named; arguments as in `StudentFriendlyTask`."""
    if isinstance(boundaries, str | int):
        raise SFTeacherError(f'boundaries={boundaries!r} must be a list: give boundaries=[{boundaries!r}]')
    if odd := [b for b in boundaries or () if isinstance(b, tuple | list) and len(b) != 2]:
        raise SFTeacherError(f'boundaries: {odd[0]!r} is no pair (teacher boundary, student boundary)')
    pairs: list[tuple[int | str, int | str | None]] = [
        (b[0], b[1]) if isinstance(b, tuple | list) else (b, None) for b in boundaries or ()]
    if boundaries is not None and not pairs:
        raise SFTeacherError('boundaries=[] leaves nothing to attach a branch to: name boundaries, or omit it')
    known = {f.get('module') for f in feature_info(teacher)}
    names = None
    if any(isinstance(t, str) and t not in known for t, _ in pairs):    # then all of them by module path
        count = len(feature_info(teacher))
        pairs = [(feature_name(teacher, t) if isinstance(t, int) and 0 <= t < count else t, s) for t, s in pairs]
        names = list(dict.fromkeys(str(t) for t, _ in pairs))
    found, logits = teacher_boundaries(teacher, input_size, names)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise SFTeacherError(f'teacher {type(teacher).__name__} must return logits [B, K], one tensor; it returns '
                             f'{tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__}')
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
    return Plan(found, chosen, students, [modules or None for _ in students], input_size, logits.shape[-1])


class BranchedTeacher(nn.Module):
    """A teacher and its branches in one forward, so that distributed training synchronises the gradients of both.

    Args:
        teacher: The plain model, which stays as it is.
        branches: Branch set built for it.
        active: Whether the branches are executed.

    Shape:
        - input: images [B, C, H, W].
        - output: the teacher's logits [B, K] and the branches' output, or None where they are not executed.
    """

    def __init__(self, teacher: nn.Module, branches: BranchSet, active: bool = True) -> None:
        super().__init__()
        self.teacher, self.branches, self.active = teacher, branches, active
        if not active:
            branches.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, BranchOutput | None]:
        if not self.active:
            return self.teacher(x), None
        logits, maps = forward_with_maps(self.teacher, self.branches.boundaries, x)
        return logits, self.branches(maps, logits)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the teacher and the students exclude from weight decay."""
        return {f'{path}.{name}' if path else name
                for path, module in self.named_modules() if module is not self and hasattr(module, 'no_weight_decay')
                for name in module.no_weight_decay()}
