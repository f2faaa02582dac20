"""Which boundaries a model has: where a teacher is tapped, where a student can be split, and how users name them."""
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..checks import shown
from ..errors import BoundaryError, SFTeacherError
from .layouts import Layout
from .trace import SplitPoint, tensors

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """Which tensor of a model a boundary is, as users name it: ``module``, ``module:output``, ``module:layout``.

    Args:
        name: What the user wrote, e.g. ``layer1:0`` or ``stages.2:0:NHWC``.
        module: Module path.
        output: Position among the tensors that the module returns; None where it returns one.
        kind: ``"NCHW"`` or ``"NHWC"``, where the user said so.
    """
    name: str
    module: str
    output: int | None = None
    kind: str | None = None

    def pick(self, output: Any) -> list[torch.Tensor]:
        """The tensors of this place in what the module returned; empty where it returned fewer."""
        found = tensors(output)
        return found if self.output is None else found[self.output:self.output + 1]


@dataclass(frozen=True)
class Boundary:
    """The end of a stage.

    Args:
        name: Module path, or timm's name of the feature where that names no module.
        index: Position in timm's ``feature_info``; None for a boundary given by module path.
        layouts: Layout of each tensor that crosses the boundary; a teacher's is one map, NCHW.
        depth: Share of the model's features up to and including this one, in (0, 1].
        reduction: Height of the image over that of the map, as measured.
        hierarchical: Whether the model's features have several resolutions; False for a ViT.
        place: Which tensor it is, for a boundary given by module path.
        split: For a student, what lies behind the boundary.
        modified: Whether the model modifies the feature in place later, so that branches need a copy of it.
    """
    name: str
    index: int | None
    layouts: tuple[Layout, ...]
    depth: float = math.nan
    reduction: float = math.nan
    hierarchical: bool = True
    place: Place | None = None
    split: SplitPoint | None = None
    modified: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.layouts[0].size

    def __str__(self) -> str:
        return f'{self.name} [{" & ".join(map(str, self.layouts))}]'


def feature_info(model: nn.Module) -> list[dict[str, Any]]:
    """timm's description of a model's features, as a list; empty for models that timm did not build."""
    info = getattr(model, 'feature_info', None) or []
    return list(getattr(info, 'info', info)) if hasattr(model, 'forward_intermediates') else []


def feature_name(model: nn.Module, index: int) -> str:
    """The module that timm names for a feature, or ``feature N`` where it names none."""
    return feature_info(model)[index].get('module') or f'feature {index}'


def depths(model: nn.Module) -> list[float]:
    """Relative depth of each timm feature; features of one module (several streams) share it."""
    modules = [f.get('module') or i for i, f in enumerate(feature_info(model))]
    order = list(dict.fromkeys(modules))
    return [(order.index(m) + 1) / len(order) for m in modules]


def widest_stream(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """Of parallel streams, which have several boundaries of one depth (CrossViT), that with the most channels."""
    by_depth = itertools.groupby(sorted(boundaries, key=lambda b: b.depth), key=lambda b: b.depth)
    return [max(streams, key=lambda b: b.layouts[0].channels) for _, streams in by_depth]


def with_hierarchy(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """All boundaries of a model, with what they say together: whether it has several resolutions."""
    hierarchical = len({b.size for b in widest_stream(boundaries)}) > 1
    return [replace(b, hierarchical=hierarchical) for b in boundaries]


def default_input_size(model: nn.Module, kwargs: dict[str, Any] | None = None) -> Size:
    """The image size (C, H, W) a model was built for."""
    size = tuple((getattr(model, 'pretrained_cfg', None) or {}).get('input_size') or ())
    if not size:
        raise SFTeacherError(f'the image size that {type(model).__name__} was made for is not known: give '
                             f'input_size=(channels, height, width)')
    image = (kwargs or {}).get('img_size') or getattr(getattr(model, 'patch_embed', None), 'img_size', None)
    height, width = (image, image) if isinstance(image, int) else image or size[1:]
    return getattr(model, 'in_chans', size[0]), height, width


def has_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def find_place(model: nn.Module, name: str) -> Place:
    """The place that a user names.

    Raises:
        BoundaryError: There is no such module; the message has those that exist.
    """
    if name and has_module(model, name):
        return Place(name, name)
    module, *rest = name.split(':')
    kind = rest.pop() if rest and rest[-1] in ('NCHW', 'NHWC') else None
    if len(rest) > 1 or not all(part.isascii() and part.isdigit() for part in rest):
        raise BoundaryError(f'{shown(name)} does not name a boundary of {type(model).__name__}: behind the name of a '
                            f'module may follow the position among the tensors that it returns, and NCHW or NHWC, as '
                            f"in 'layer1:0', 'stages.2:NHWC' or 'layer1:0:NHWC'")
    _check_module(model, module)
    return Place(name, module, int(rest[0]) if rest else None, kind)


def _check_module(model: nn.Module, name: str) -> None:
    parent = ''
    for part in name.split('.') if name else ['']:
        children = [n for n, _ in model.get_submodule(parent).named_children()]
        if part not in children:
            raise BoundaryError(f'{type(model).__name__} has no module {shown(name)}: {parent or "it"} has '
                                f'{", ".join(children) or "no submodules"}')
        parent = f'{parent}.{part}'.lstrip('.')


def no_features(model: nn.Module, role: str) -> str:
    children = ', '.join(name for name, _ in model.named_children())
    return (f'{role} {type(model).__name__} is not a timm model, so its stages are not known: name modules in '
            f'`boundaries`, as pairs (teacher module, student module). It has {children or "no submodules"}.')


def refused_image(model: nn.Module, input_size: Size, error: Exception) -> str:
    return (f'{type(model).__name__} does not run on one image of input_size={tuple(input_size)} '
            f'({type(error).__name__}: {error}). Give what it was built for, (channels, height, width), as '
            f'`input_size`, or build it for this (timm: img_size or in_chans in teacher_kwargs or student_kwargs).')
