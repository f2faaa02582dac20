"""GTN's branches: a pool of students, families of which share one bank of weights; one student is run a step."""
import contextlib
import math
import random
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from ..errors import SFTeacherError
from ..functional import kl_divergence
from ._banks import block_classes, find_families, find_slices, take, undecayed
from ._branches import Branch, BranchOutput, BranchSet, StudentBranches, with_zero_gradients
from .base import Context


class SampledPool(BranchSet):
    """GTN: the branches of several students, of which one student's run a step (after the abstract; details ours).

    Students share banks if they have the same block classes and, wherever they have a parameter of the same name, the
    same kernel sizes. A bank has for every name a tensor of the elementwise largest shape; each student's weight is the
    leading slice of it, fused qkv weights part by part. Normalisation layers (weights and statistics) and everything
    that is no slice of a common tensor stay the student's own. There is a bank for each family and teacher boundary, as
    in SFTN branches have weights of their own; the projections of the transforms are in it too. A bank starts with the
    weights of its students, the larger ones' over the smaller ones'.

    The path is a function of seed and step, so that it is the same on all ranks and after a resumed run; in eval mode
    the step does not advance. What is not on the path gets a gradient of zero, as DistributedDataParallel needs it.

    With ``sampler="learned"`` a path is drawn from p = softmax(alpha), and alpha is trained by the score function
    estimator: the term ``path`` is path_weight * (KL - baseline) * log p(path) with the path's divergence from the
    teacher and its running mean, both detached, so that paths which suit the teacher become likelier. The term
    ``path_negentropy`` is entropy_weight * (log M - H(p)): 0 for uniform p and entropy_weight * log M when the
    distribution has collapsed on one of the M students.

    Args:
        context: Teacher and students.
        sampler: ``"uniform"`` or ``"learned"``.
        seed: Of the sequence of paths.
        path_weight: See above.
        entropy_weight: See above.
        require_sharing: Refuse a pool in which some student shares with no other.
        act: See `Transform`.
        detach: Whether the branches leave the teacher's features alone.
    """

    def __init__(
            self,
            context: Context,
            sampler: str = 'uniform',
            seed: int = 0,
            path_weight: float = 1.,
            entropy_weight: float = 0.1,
            require_sharing: bool = False,
            act: str = 'auto',
            detach: bool = False,
    ) -> None:
        super().__init__()
        if not context.students:
            raise SFTeacherError('GTN needs a pool of students, timm names or modules: wrap(teacher, ["resnet10t", '
                                 '"resnet18"], method="gtn")')
        self.seed, self.detach, self.step = seed, detach, 0
        self.path_weight, self.entropy_weight = path_weight, entropy_weight
        made = StudentBranches(context, act=act)
        self.boundaries = made.boundaries
        count = iter(zip(made.branches, made.names, made.sources, strict=True))
        self.students = [type(s).__name__ for s in context.students]
        self.members = nn.ModuleList()
        self.names: list[list[str]] = []
        self.sources: list[list[int]] = []
        for members in _by_student(made, len(context.students)):
            own = [next(count) for _ in range(members)]
            self.members.append(nn.ModuleList(branch for branch, _, _ in own))
            self.names.append([name for _, name, _ in own])
            self.sources.append([source for _, _, source in own])
        self.slices = [[find_slices(branch) for branch in member] for member in self._members()]
        self.families = find_families([block_classes(s) for s in context.students], self.sources, self.slices)
        if require_sharing and (alone := [f for f in range(max(self.families) + 1) if self.families.count(f) == 1]):
            names = ', '.join(f'{self.families.index(f)} ({self.students[self.families.index(f)]})' for f in alone)
            raise SFTeacherError(f'require_sharing=True, but students {names} can share weights with no other of the '
                                 f'pool, as block classes or kernel sizes differ: leave them out, or require_sharing')
        self._excluded = [undecayed(s) for s in context.students]
        self.banks = nn.ModuleDict()
        for family, source in sorted({(f, s) for f, own in zip(self.families, self.sources, strict=True) for s in own}):
            self.banks[f'{family}-{source}'] = self._bank(family, source)
        self.alpha = nn.Parameter(torch.zeros(len(self.members))) if sampler == 'learned' else None
        if self.alpha is not None:
            self.baseline: torch.Tensor
            self.register_buffer('baseline', torch.zeros(()))

    def _bank(self, family: int, source: int) -> nn.ParameterDict:
        """The bank of a family at a boundary, filled with the weights of its members, which no longer own them."""
        users = [(branch, slices) for m, member in enumerate(self._members()) if self.families[m] == family
                 for branch, slices, s in zip(member, self.slices[m], self.sources[m], strict=True) if s == source]
        bank = nn.ParameterDict()
        for key in dict.fromkeys(piece.key for _, slices in users for piece in slices):
            parts = [(piece, take(branch, piece)) for branch, slices in users for piece in slices if piece.key == key]
            shape = [max(sizes) for sizes in zip(*(piece.shape for piece, _ in parts), strict=True)]
            whole = next((p for piece, p in parts if piece.shape == tuple(shape) and len(parts) == 1), None)
            if whole is None:
                whole = nn.Parameter(parts[0][1].new_zeros(shape), any(p.requires_grad for _, p in parts))
                with torch.no_grad():
                    for piece, p in sorted(parts, key=lambda part: part[1].numel()):
                        piece.write(whole, p)
            bank[key] = whole
        return bank

    def probabilities(self) -> torch.Tensor:
        """The distribution of the path [M]."""
        return torch.full((len(self.members),), 1 / len(self.members)) if self.alpha is None else self.alpha.softmax(0)

    def path(self) -> int:
        """The student of this step."""
        at = random.Random(f'{self.seed}:{self.step}').random()
        if self.alpha is None:
            return int(at * len(self.members))
        total = 0.
        for index, p in enumerate(self.probabilities().tolist()):
            total += p
            if at < total:
                return index
        return len(self.members) - 1

    @torch.compiler.disable     # compiled, the step would be a constant
    def _next(self) -> tuple[int, bool]:
        """The student of this step and whether it is the first step; training goes on to the next."""
        member, first = self.path(), self.step == 0
        self.step += self.training
        return member, first

    @contextlib.contextmanager
    def with_weights(self, member: int, position: int) -> Iterator[Branch]:
        """A student's branch with its weights from the bank, for the time of the context."""
        branch: Any = cast(nn.ModuleList, self.members[member])[position]
        bank: Any = self.banks[f'{self.families[member]}-{self.sources[member][position]}']
        placed: list[tuple[nn.Module, str]] = []
        try:
            for piece in self.slices[member][position]:
                weight = piece.slice(bank[piece.key])
                weight = weight if weight is bank[piece.key] else weight.contiguous()
                for path, name in piece.places:
                    module = branch.get_submodule(path)
                    module.__dict__[name] = weight      # goes before the parameter of this name, which is None
                    placed.append((module, name))
            yield branch
        finally:
            for module, name in placed:
                module.__dict__.pop(name, None)

    def forward(self, maps: list[torch.Tensor], teacher_logits: torch.Tensor) -> BranchOutput:
        member, first = self._next()
        maps = [m.detach() for m in maps] if self.detach else maps
        logits: dict[str, torch.Tensor] = {}
        for position, (name, source) in enumerate(zip(self.names[member], self.sources[member], strict=True)):
            with self.with_weights(member, position) as branch:
                logits[name] = branch(maps[source])
        terms = self._terms(member, first, logits, teacher_logits) if self.alpha is not None else {}
        if self.training:
            logits = with_zero_gradients(logits, self, self._used(member))
        return BranchOutput(logits, terms)

    def _terms(
            self,
            member: int,
            first: bool,
            logits: dict[str, torch.Tensor],
            teacher: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            cost = torch.stack([kl_divergence(teacher, z) for z in logits.values()]).mean()
            advantage = torch.zeros_like(cost) if first else cost - self.baseline
            if self.training:
                self.baseline.copy_(cost if first else 0.9 * self.baseline + 0.1 * cost)
        p = self.probabilities()
        log_p = p.log()
        return {'path': self.path_weight * advantage * log_p[member],
                'path_negentropy': self.entropy_weight * (math.log(len(p)) + (p * log_p).sum())}

    def _used(self, member: int) -> set[int]:
        """Ids of the parameters that are on the path."""
        used = {id(self.alpha)} | {id(p) for p in self.members[member].parameters()}
        for position, source in enumerate(self.sources[member]):
            bank: Any = self.banks[f'{self.families[member]}-{source}']
            used |= {id(bank[piece.key]) for piece in self.slices[member][position]}
        return used

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.step)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.step = int(state)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Tensors of the banks that a student excludes from weight decay."""
        return {f'banks.{self.families[m]}-{source}.{piece.key}' for m, excluded in enumerate(self._excluded)
                for source, slices in zip(self.sources[m], self.slices[m], strict=True) for piece in slices
                if piece.key.replace('/', '.').removeprefix('tail.model.') in excluded}

    def describe(self) -> list[str]:
        lines = []
        for m, member in enumerate(self._members()):
            others = self.families.count(self.families[m]) - 1
            lines.append(f'student {m}, {self.students[m]}, one path of {len(self.members)}, family '
                         f'{self.families[m]}, shares weights with {others or "no"} other{"s" * (others != 1)}:')
            lines += [f'  {name}: {branch.transform} -> tail of {self.students[m]}'
                      for name, branch in zip(self.names[m], member, strict=True)]
        return lines

    def _members(self) -> list[Any]:
        return list(self.members)


def _by_student(made: StudentBranches, students: int) -> list[int]:
    """How many branches each student has."""
    if students == 1:
        return [len(made.names)]
    return [sum(name.startswith(f'{i}.') for name in made.names) for i in range(students)]
