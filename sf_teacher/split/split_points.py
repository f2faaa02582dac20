"""Where a student can be cut: which modules return timm's features, alone or together."""
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import BoundaryError, SFTeacherError
from .boundaries import (
    Boundary,
    Place,
    Size,
    depths,
    feature_info,
    find_place,
    has_module,
    no_features,
    refused_image,
    with_hierarchy,
)
from .layouts import Layout, Sample, match_layout
from .teacher_taps import features, layout_at
from .trace import Cut, Trace, dummy_image, hooked, jittered, rng_kept, tensors, twin


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
        names: Module paths, see `Place`; None for all of timm's features.

    Returns:
        The boundaries and the recorded forward that tails are built from. Features that are no cut are left out.

    Raises:
        BoundaryError: A named module is no boundary, or the model has none at all.
    """
    if names is None and not feature_info(model):
        raise BoundaryError(no_features(model, 'student'))
    places = [find_place(model, name) for name in names or ()]
    matches: list[dict[str, Layout]] = []
    try:
        with rng_kept(model):
            if feature_info(model):
                matches = _match_features(model, input_size)
            cuts = {name for match in matches for name in match} | {place.module for place in places}
            cuts |= {m for m in (f.get('module') for f in feature_info(model)) if m and has_module(model, m)}
            trace = Trace(model, input_size, cuts)
    except SFTeacherError:
        raise
    except Exception as error:
        raise SFTeacherError(refused_image(model, input_size, error)) from error
    known = {name: layout for match in matches for name, layout in match.items()}
    if names is not None:
        named = [Boundary(p.name, None, (), place=p, cut=trace.cut((p.module,), p.output)) for p in places]
        return [_measured(boundary, trace, known) for boundary in named], trace
    found: list[Boundary] = []
    for index, (match, depth) in enumerate(zip(matches, depths(model), strict=True)):
        cut = _find_cut(model, index, match, trace)
        if cut is not None and all(cut.modules != b.cut.modules for b in found if b.cut):
            found.append(_measured(Boundary(' & '.join(cut.modules), index, (), depth, cut=cut), trace, known))
    if not found:
        raise BoundaryError(
            f'{type(model).__name__} has no boundary to cut a student at: the image reaches its logits around each of '
            f'its {len(matches)} features. Name modules through which everything passes in `boundaries`, or choose '
            f'another student.')
    return with_hierarchy(found), trace


def _match_features(model: nn.Module, input_size: Size) -> list[dict[str, Layout]]:
    """For each timm feature the modules that return it, in the order they finish."""
    samples: list[tuple[str, Sample]] = []

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if len(tensors(output)) == 1:
            samples.append((name, Sample(tensors(output)[0])))

    x = dummy_image(model, input_size)
    copied = twin(model, jittered(model, x.dtype))
    with torch.no_grad(), hooked(copied, keep):
        _, references = features(copied, x)
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
        place = boundary.place or Place(name, name)
        layouts += [known[name]] if name in known and len(raws) == 1 else \
            [layout_at(trace.model, place, t, trace.input_size) for t in raws]
    return replace(boundary, layouts=tuple(layouts), reduction=trace.input_size[1] / layouts[0].size[0])
