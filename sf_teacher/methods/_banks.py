"""What the students of a pool share: which of them form a family, and which slices of a bank's tensors are whose."""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ._branches import Branch

FUSED = {'qkv': 3, 'kv': 2}     # layers whose outputs are several parts, each of which is sliced
Shape = tuple[int, ...]


@dataclass(frozen=True)
class BankSlice:
    """A parameter that a branch takes from its bank: a leading slice of a tensor, part by part.

    Args:
        key: Name in the bank.
        shape: The student's own shape.
        parts: Equal parts of the first dimension that are sliced each for itself.
        fixed: Dimensions in which members of a family must agree: a slice would be a corner of a kernel or of a grid.
        places: (module, attribute) in the branch; several for a weight that the student itself shares.
    """
    key: str
    shape: Shape
    parts: int
    fixed: tuple[int, ...]
    places: tuple[tuple[str, str], ...]

    def fits(self, other: 'BankSlice') -> bool:
        """Whether both can be slices of one tensor."""
        return len(self.shape) == len(other.shape) and self.parts == other.parts and self.fixed == other.fixed and all(
            self.shape[d] == other.shape[d] for d in self.fixed)

    def slice(self, tensor: torch.Tensor) -> torch.Tensor:
        """The student's view of a bank's tensor; the tensor itself where it is all of it."""
        if tuple(tensor.shape) == self.shape:
            return tensor
        if self.parts == 1:
            return tensor[tuple(slice(n) for n in self.shape)]
        split = tensor.unflatten(0, (self.parts, -1))
        inner = (slice(None), slice(self.shape[0] // self.parts), *(slice(n) for n in self.shape[1:]))
        return split[inner].flatten(0, 1)

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Write the student's weight to its place in a bank's tensor."""
        split = tensor.view(self.parts, -1, *tensor.shape[1:])
        own = value.reshape(self.parts, -1, *value.shape[1:])
        split[tuple(slice(n) for n in own.shape)] = own


def _is_norm(module: nn.Module) -> bool:
    return 'norm' in type(module).__name__.lower()


def block_classes(student: nn.Module) -> frozenset[str]:
    """The block classes of a student: all classes of modules with submodules, other than PyTorch's own containers."""
    return frozenset(f'{type(m).__module__}.{type(m).__qualname__}' for m in student.modules()
                     if any(True for _ in m.children()) and not type(m).__module__.startswith('torch.nn'))


def find_slices(branch: Branch) -> list[BankSlice]:
    """What a branch takes from a bank: every parameter but those of normalisation layers and of prefix tokens."""
    modules = dict(branch.named_modules())
    places: dict[int, list[str]] = {}
    for name, p in branch.named_parameters(remove_duplicate=False):
        places.setdefault(id(p), []).append(name)
    slices = []
    for name, p in branch.named_parameters():
        owner = name.rpartition('.')[0]
        module = modules[owner]
        if _is_norm(module) or (name.startswith('transform.') and '.proj.' not in name):
            continue
        spatial = tuple(range(2, p.ndim))
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            spatial = tuple(range(p.ndim - 1))      # grids, tables, tokens: only the channels at the end are sliced
        pairs = tuple((n.rpartition('.')[0], n.rpartition('.')[2]) for n in places[id(p)])
        fused = FUSED.get(owner.rpartition('.')[2], 1)
        key = name.replace('.', '/')
        if name.startswith('transform.'):       # students may need other kernels there, and share the tail all the same
            key += '@' + 'x'.join(map(str, p.shape[2:]))
        slices.append(BankSlice(key, tuple(p.shape), fused, spatial, pairs))
    return slices


def find_families(
        classes: Sequence[frozenset[str]],
        sources: Sequence[Sequence[int]],
        slices: Sequence[Sequence[Sequence[BankSlice]]],
) -> list[int]:
    """The family of each student: the first whose members have the same classes and fitting weights, or a new one."""
    families: list[int] = []
    for m in range(len(classes)):
        mine = {(s, piece.key): piece for s, own in zip(sources[m], slices[m], strict=True) for piece in own}
        for family in range(max(families, default=-1) + 1):
            others = [o for o in range(m) if families[o] == family]
            theirs = [((s, piece.key), piece) for o in others for s, own in zip(sources[o], slices[o], strict=True)
                      for piece in own]
            if classes[others[0]] == classes[m] and all(k not in mine or mine[k].fits(piece) for k, piece in theirs) \
                    and any(k in mine for k, _ in theirs):
                families.append(family)
                break
        else:
            families.append(max(families, default=-1) + 1)
    return families


def take(branch: Branch, piece: BankSlice) -> nn.Parameter:
    """Take a parameter out of a branch; its name stays registered, with None."""
    path, name = piece.places[0]
    p = branch.get_submodule(path)._parameters[name]
    for path, name in piece.places:
        branch.get_submodule(path)._parameters[name] = None
    assert p is not None
    return p


def undecayed(student: nn.Module) -> set[str]:
    """Names of a student's parameters that it excludes from weight decay."""
    return {f'{path}.{name}' if path else name for path, m in student.named_modules()
            if hasattr(m, 'no_weight_decay') for name in m.no_weight_decay()}
