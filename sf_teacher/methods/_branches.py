"""Branch sets: modules attached to a teacher's boundaries that give the logits of student branches."""
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..checks import check_classes
from ..errors import SFTeacherError
from ..split.boundaries import Boundary
from ..split.pairing import default_boundaries, pair_boundaries, pick_boundary
from ..split.split_points import student_boundaries
from ..split.tail_check import check_tails
from ..split.tails import Tail
from ..split.transforms import Transform
from .base import Context

_logger = logging.getLogger(__name__)


@dataclass
class BranchOutput:
    """What a branch set returns: logits [B, K] by branch name, and loss terms of its own, already weighted."""
    logits: dict[str, torch.Tensor]
    terms: dict[str, torch.Tensor] = field(default_factory=dict)


class Branch(nn.Module):
    """Transform and tail: a teacher's map [B, C, H, W] to a student's logits [B, K]."""

    def __init__(self, teacher: Boundary, student: Boundary, tail: Tail, act: str) -> None:
        super().__init__()
        self.source, self.student, self.target = teacher, replace(student, split=None), student.name
        self.transform = Transform(teacher.layouts[0].channels, teacher.size, student.layouts, act)
        self.tail = tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(*self.transform(x))

    def __str__(self) -> str:
        return f'{self.transform} -> tail of {type(self.tail.model).__name__}'


class BranchSet(nn.Module):
    """Branches at a teacher's boundaries. Subclasses set `boundaries` and return a `BranchOutput`."""
    boundaries: list[Boundary]

    def forward(self, maps: list[torch.Tensor], teacher_logits: torch.Tensor) -> BranchOutput:
        """Run the branches.

        Args:
            maps: The teacher's maps at `boundaries`, in that order.
            teacher_logits: z_T [B, K].
        """
        raise NotImplementedError

    def describe(self) -> list[str]:
        """One line for each branch."""
        raise NotImplementedError


class StudentBranches(BranchSet):
    """SFTN: at each pair of boundaries a transform and the tail of a student.

    Args:
        context: Teacher and students.
        shared: Whether the branches of one student share the weights of the layers they have in common; their
            normalisation statistics stay their own.
        act: See `Transform`.
        detach: Whether the branches leave the teacher's features alone.
    """

    def __init__(self, context: Context, shared: bool = False, act: str = 'auto', detach: bool = False) -> None:
        super().__init__()
        self.detach = detach
        if not context.students:
            raise SFTeacherError('SFTN needs a student: wrap(teacher, "resnet18"), a timm name or a module')
        self.branches = nn.ModuleList()
        self.names: list[str] = []
        sources: list[Boundary] = []
        modules_of = context.selection.student_modules
        for index, (student, modules) in enumerate(zip(context.students, modules_of, strict=True)):
            branches = _student_branches(context, student, modules, act)
            if shared:
                _share([branch.tail for branch in branches])
            label = f'{index}.' if len(context.students) > 1 else ''
            self.names += [f'{label}{b.source.name}-{b.target}' for b in branches]
            sources += [b.source for b in branches]
            self.branches.extend(branches)
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise SFTeacherError(f'`boundaries` pairs {", ".join(sorted(twice))} more than once: name each pair once')
        order = [b for b in context.selection.teacher if any(b is source for source in sources)]
        self.boundaries = order
        self.sources = [next(i for i, b in enumerate(order) if b is source) for source in sources]

    def forward(
            self,
            maps: list[torch.Tensor],
            teacher_logits: torch.Tensor,
            sample: int | None = None,
            share: float = 1.,
    ) -> BranchOutput:
        """Run the branches.

        Args:
            maps: The teacher's maps [B, C_i, H_i, W_i] at `boundaries`, in that order.
            teacher_logits: z_T [B, K].
            sample: The step, to run one branch, see `sampled`; all by default. The others' gradients are zeros, as
                DistributedDataParallel needs them.
            share: Share b / B of the batch that is run, its first images, two at least; the logits are [b, K].
        """
        maps = [m.detach() for m in maps] if self.detach else maps
        if share < 1:
            maps = [m[:max(math.ceil(share * len(m)), 2)] for m in maps]     # batch norm learns nothing of one image
        drawn = range(len(self.names)) if sample is None else [sampled(sample, len(self.names))]
        logits = {self.names[i]: self.branches[i](maps[self.sources[i]]) for i in drawn}
        if sample is not None:
            used = {id(p) for i in drawn for p in self.branches[i].parameters()}
            logits = with_zero_gradients(logits, self, used)
        return BranchOutput(logits)

    def describe(self) -> list[str]:
        return [f'{name}: {branch}' for name, branch in zip(self.names, self.branches, strict=True)]


@torch.compiler.disable     # compiled, the step would be a constant
def sampled(step: int, count: int) -> int:
    """Which of `count` branches a step runs: each once in `count` steps, in an order that is drawn anew each time.

    It is a function of the step, so the same on all ranks and after a resumed run, and uniform at every step.
    """
    turn, position = divmod(step, count)
    return random.Random(f'branches:{turn}').sample(range(count), count)[position]


def _student_branches(
        context: Context,
        student: nn.Module,
        modules: Sequence[int | str] | None,
        act: str,
) -> list[Branch]:
    selection = context.selection
    chosen = list(selection.chosen) if selection.chosen is not None else default_boundaries(selection.teacher)
    if modules is None:
        found, trace = student_boundaries(student, context.input_size)
        usable = default_boundaries(found)
        if selection.chosen is not None and len(usable) < len(chosen):
            usable = found
            if len(usable) < len(chosen):
                raise SFTeacherError(
                    f'`boundaries` names {len(chosen)} of the teacher ({", ".join(b.name for b in chosen)}), but '
                    f'student {type(student).__name__} can be split at {len(found)} only '
                    f'({", ".join(b.name for b in found)}): name fewer, or pairs with module paths of the student')
        pairs = pair_boundaries(chosen, usable, every=selection.chosen is not None)
    elif any(isinstance(m, int) for m in modules):
        found, trace = student_boundaries(student, context.input_size)
        pairs = list(zip(chosen, [pick_boundary(found, m, student, 'student') for m in modules], strict=True))
    else:
        found, trace = student_boundaries(student, context.input_size, [str(m) for m in modules])
        pairs = list(zip(chosen, found, strict=True))
    tails = [Tail(student, s.split, trace) for _, s in pairs if s.split]
    check_classes(student, trace.logits[0].shape[-1], context.num_classes)
    check_tails(trace, tails)
    if not any(p.requires_grad for tail in tails for p in tail.parameters()):
        _logger.warning('Student %s is frozen (requires_grad is off): of its branches only the transforms will be '
                        'trained', type(student).__name__)
    return [Branch(t, s, tail, act) for (t, s), tail in zip(pairs, tails, strict=True)]


def _share(tails: list[Tail]) -> None:
    """Let the tails of one student hold the same parameters wherever they have the same ones."""
    owners: dict[str, nn.Parameter] = {}
    for tail in tails:
        for name, p in list(tail.model.named_parameters()):
            if name in owners:
                owner, _, leaf = name.rpartition('.')
                setattr(tail.model.get_submodule(owner), leaf, owners[name])
            else:
                owners[name] = p


def with_zero_gradients(logits: dict[str, torch.Tensor], module: nn.Module, used: set[int]) -> dict[str, torch.Tensor]:
    """The same logits, with a gradient of zero for every trained parameter of a module whose id is not in `used`."""
    idle = [p for p in module.parameters() if p.requires_grad and id(p) not in used]
    if not idle:
        return logits
    name = next(iter(logits))
    return {**logits, name: logits[name] + ZeroGradient.apply(*idle)}


class ZeroGradient(torch.autograd.Function):
    """Zero, with a gradient of zero for every tensor given, in one node of the graph."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros_like(t) for t in ctx.saved_tensors)
