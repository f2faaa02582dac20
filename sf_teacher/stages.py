"""Which boundaries a model has: where a teacher is tapped, where a student can be cut, and which belong together."""
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .errors import BoundaryError, SFTeacherError
from .layouts import Layout, Sample, infer_layout, match_layout
from .trace import Cut, Trace, dummy_image, hooked, jittered, tensors, twin, weights_of

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Boundary:
    """The end of a stage.

    Args:
        name: Module path, or timm's name of the feature where that names no module.
        index: Position in timm's ``feature_info``; None for a boundary given by module path.
        layouts: Layout of each tensor that crosses the boundary; a teacher's is one map, NCHW.
        depth: Share of the model's features up to and including this one, in (0, 1].
        reduction: Height of the image over that of the map, as measured.
        cut: For a student, what lies behind the boundary.
    """
    name: str
    index: int | None
    layouts: tuple[Layout, ...]
    depth: float = math.nan
    reduction: float = math.nan
    cut: Cut | None = None

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


def forward_with_maps(
        model: Any,
        boundaries: Sequence[Boundary],
        x: torch.Tensor,
) -> tuple[Any, list[torch.Tensor]]:
    """Run a teacher once and take its features along.

    timm models are tapped by ``forward_intermediates``, everything else by forward hooks that live for this call only.
    Either way the logits are bit for bit those of ``model(x)``.

    Args:
        model: The teacher.
        boundaries: Where to tap, in order of depth and without repetition.
        x: Images [B, C, H, W].

    Returns:
        Logits [B, K] and one map [B, C_i, H_i, W_i] for each boundary.
    """
    if all(b.index is not None for b in boundaries):
        indices = [b.index for b in boundaries]
        final, maps = model.forward_intermediates(x, indices=indices, stop_early=False, output_fmt='NCHW')
        return model.forward_head(final), maps
    raws, logits = _run_hooked(model, [b.name for b in boundaries], x)
    return logits, [b.layouts[0].to_map(raws[b.name]) for b in boundaries]


def _run_hooked(model: nn.Module, names: Sequence[str], x: torch.Tensor) -> tuple[dict[str, torch.Tensor], Any]:
    got: dict[str, list[Any]] = {name: [] for name in names}
    with hooked(model, lambda name, module, args, output: got[name].append(output), names):
        logits = model(x)
    for name, outputs in got.items():
        if len(outputs) != 1 or len(tensors(outputs[0])) != 1:
            found = f'is called {len(outputs)} times in one forward' if len(outputs) != 1 else \
                f'returns {len(tensors(outputs[0]))} tensors'
            raise BoundaryError(f'{name!r} of {type(model).__name__} cannot be a teacher boundary: it {found}; a '
                                f'boundary is called once and returns one tensor. Choose another in `boundaries`.')
    return {name: tensors(outputs[0])[0] for name, outputs in got.items()}, logits


def _features(model: Any, names: Sequence[str] | None, x: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """Logits, and all of timm's maps or the raw outputs of the modules named."""
    if names is None:
        final, maps = model.forward_intermediates(x, stop_early=False, output_fmt='NCHW')
        return model.forward_head(final), maps
    raws, logits = _run_hooked(model, names, x)
    return logits, [raws[name] for name in names]


def teacher_boundaries(
        model: nn.Module,
        input_size: Size,
        names: Sequence[str] | None = None,
) -> tuple[list[Boundary], Any]:
    """Measure a teacher's boundaries with one dummy image, on the meta device where the model allows it.

    Args:
        model: The teacher.
        input_size: (C, H, W).
        names: Module paths; None for all of timm's features.

    Returns:
        The boundaries, in timm's or in the given order, and the logits of the dummy image (possibly on meta).
    """
    if names is None and not feature_info(model):
        raise BoundaryError(no_features(model, 'teacher'))
    for name in names or ():
        check_module(model, name)
    x = dummy_image(model, input_size)
    with torch.no_grad():
        try:
            on_meta = {name: torch.empty_like(t, device='meta') for name, t in weights_of(model).items()}
            logits, maps = _features(twin(model, on_meta), names, x.to('meta'))
        except SFTeacherError:
            raise
        except Exception:   # the model computes with values, or keeps tensors that are neither parameter nor buffer
            try:
                logits, maps = _features(twin(model), names, x)
            except SFTeacherError:
                raise
            except Exception as error:
                raise SFTeacherError(refused_image(model, input_size, error)) from error
    if names is None:
        layouts = [Layout('NCHW', m.shape[1], (m.shape[2], m.shape[3])) for m in maps]
        found = [Boundary(feature_name(model, i), i, (layout,), depth, input_size[1] / layout.size[0])
                 for i, (layout, depth) in enumerate(zip(layouts, _depths(model), strict=True))]
    else:
        found = [Boundary(name, None, (infer_layout(m, input_size, f'{name!r} of {type(model).__name__}'),))
                 for name, m in zip(names, maps, strict=True)]
    return found, logits


def student_boundaries(
        model: nn.Module,
        input_size: Size,
        names: Sequence[str] | None = None,
) -> tuple[list[Boundary], Trace]:
    """Find where a student can be cut.

    A timm feature is cut at the outermost module that returns it; which module that is, and in what layout, is found
    by comparing what all modules return in one pass with the features of that pass. A feature that no single module
    returns (several streams) is cut at all tensors that timm's module for it returns or, where a head uses every
    stage, at all stages up to it together.

    Args:
        model: The student.
        input_size: (C, H, W).
        names: Module paths; None for all of timm's features.

    Returns:
        The boundaries and the recorded forward that tails are built from. Features that are no cut are left out.

    Raises:
        BoundaryError: A named module is no boundary, or the model has none at all.
    """
    if names is None and not feature_info(model):
        raise BoundaryError(no_features(model, 'student'))
    for name in names or ():
        check_module(model, name)
    matches: list[dict[str, Layout]] = []
    try:
        if feature_info(model):
            matches = _match_features(model, input_size)
        cuts = {name for match in matches for name in match} | set(names or ())
        cuts |= {m for m in (f.get('module') for f in feature_info(model)) if m and has_module(model, m)}
        trace = Trace(model, input_size, cuts)
    except SFTeacherError:
        raise
    except Exception as error:
        raise SFTeacherError(refused_image(model, input_size, error)) from error
    known = {name: layout for match in matches for name, layout in match.items()}
    if names is not None:
        return [_measured(Boundary(name, None, (), cut=trace.cut((name,))), trace, known) for name in names], trace
    found: list[Boundary] = []
    for index, (match, depth) in enumerate(zip(matches, _depths(model), strict=True)):
        cut = _find_cut(model, index, match, trace)
        if cut is not None and all(cut.modules != b.cut.modules for b in found if b.cut):
            found.append(_measured(Boundary(' & '.join(cut.modules), index, (), depth, cut=cut), trace, known))
    if not found:
        raise BoundaryError(
            f'{type(model).__name__} has no boundary to cut a student at: the image reaches its logits around each of '
            f'its {len(matches)} features. Name modules through which everything passes in `boundaries`, or choose '
            f'another student.')
    return found, trace


def _match_features(model: nn.Module, input_size: Size) -> list[dict[str, Layout]]:
    """For each timm feature the modules that return it, in the order they finish."""
    samples: list[tuple[str, Sample]] = []

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if len(tensors(output)) == 1:
            samples.append((name, Sample(tensors(output)[0])))

    x = dummy_image(model, input_size)
    copied = twin(model, jittered(model, x.dtype))
    with torch.no_grad(), hooked(copied, keep):
        _, references = _features(copied, None, x)
    result = []
    for reference in references:
        few, signed = Sample(reference), bool((reference < 0).any())
        found = ((name, match_layout(sample, few)) for name, sample in samples)
        result.append({name: replace(layout, signed=signed) for name, layout in found if layout is not None})
    return result


def _find_cut(model: nn.Module, index: int, match: dict[str, Layout], trace: Trace) -> Cut | None:
    """A valid cut for a feature: a module that returns it, else its several tensors, else all stages up to it."""
    info = [f.get('module') for f in feature_info(model)[:index + 1]]
    stages = tuple(m for m in info if m and has_module(model, m))
    outermost = [min((a for a in match if f'{name}.'.startswith(f'{a}.')), key=len) for name in match]
    attempts: list[tuple[str, ...]] = [(name,) for name in dict.fromkeys(outermost)]
    if len(stages) == len(info):
        attempts += [stages[-1:], stages]
    for names in attempts:
        try:
            return trace.cut(names)
        except BoundaryError:
            continue
    return None


def _measured(boundary: Boundary, trace: Trace, known: dict[str, Layout]) -> Boundary:
    cut = boundary.cut
    assert cut is not None
    layouts: list[Layout] = []
    for name in cut.modules:
        raws = cut.features(trace.calls[name][0])
        where = f'{name!r} of {type(trace.model).__name__}'
        layouts += [known[name]] if name in known and len(raws) == 1 else \
            [infer_layout(t, trace.input_size, where) for t in raws]
    return replace(boundary, layouts=tuple(layouts), reduction=trace.input_size[1] / layouts[0].size[0])


def _depths(model: nn.Module) -> list[float]:
    """Relative depth of each timm feature; features of one module (several streams) share it."""
    modules = [f.get('module') or i for i, f in enumerate(feature_info(model))]
    order = list(dict.fromkeys(modules))
    return [(order.index(m) + 1) / len(order) for m in modules]


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


def check_module(model: nn.Module, name: str) -> None:
    """Raise BoundaryError with the names that exist, if a model has no module of this name."""
    parent = ''
    for part in name.split('.') if name else ['']:
        children = [n for n, _ in model.get_submodule(parent).named_children()]
        if part not in children:
            raise BoundaryError(f'{type(model).__name__} has no module {name!r}: {parent or "it"} has '
                                f'{", ".join(children) or "no submodules"}')
        parent = f'{parent}.{part}'.lstrip('.')


def no_features(model: nn.Module, role: str) -> str:
    children = ', '.join(name for name, _ in model.named_children())
    return (f'{role} {type(model).__name__} is no timm model, so its stages are not known: name modules in '
            f'`boundaries`, as pairs (teacher module, student module). It has {children or "no submodules"}.')


def refused_image(model: nn.Module, input_size: Size, error: Exception) -> str:
    return (f'{type(model).__name__} does not run on one image of input_size={tuple(input_size)} '
            f'({type(error).__name__}: {error}). Give the size it was built for as `input_size`, or build it for this '
            f"size (timm: img_size in teacher_kwargs or student_kwargs).")
