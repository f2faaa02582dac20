"""Where a student can be split: which modules return timm's features, alone or together."""
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
from .clones import clone_model, perturbed_weights, preserved_rng
from .layouts import Layout, Sample, match_layout
from .tapping import features
from .teacher_taps import layout_at
from .trace import SplitPoint, Trace, dummy_image, hooked, tensors


def student_boundaries(
        model: nn.Module,
        input_size: Size,
        names: Sequence[str] | None = None,
) -> tuple[list[Boundary], Trace]:
    """Find where a student can be split.

    The split point of a timm feature is the outermost module that returns it; which module that is, and in what layout,
    is found by comparing what all modules return in one pass with the features of that pass. For a feature that no
    single module returns (several streams) it is all tensors that timm's module for it returns or, where a head uses
    every stage, all stages up to it together.

    Args:
        model: The student.
        input_size: (C, H, W).
        names: Module paths, see `Place`; None for all of timm's features.

    Returns:
        The boundaries and the recorded forward that tails are built from. Features without a split point are left out.

    Raises:
        BoundaryError: A named module is not a boundary, or the model has none at all.
    """
    if names is None and not feature_info(model):
        raise BoundaryError(no_features(model, 'student'))
    places = [find_place(model, name) for name in names or ()]
    matches: list[dict[str, Layout]] = []
    try:
        with preserved_rng(model):
            if feature_info(model):
                matches = _match_features(model, input_size)
            candidates = {name for match in matches for name in match} | {place.module for place in places}
            candidates |= {m for m in (f.get('module') for f in feature_info(model)) if m and has_module(model, m)}
            trace = Trace(model, input_size, candidates)
    except SFTeacherError:
        raise
    except Exception as error:
        raise SFTeacherError(refused_image(model, input_size, error)) from error
    layout_of = {name: layout for match in matches for name, layout in match.items()}
    if names is not None:
        named = [Boundary(p.name, None, (), place=p, split=trace.split_at((p.module,), p.output)) for p in places]
        return [_measured(boundary, trace, layout_of) for boundary in named], trace
    found: list[Boundary] = []
    for index, (match, depth) in enumerate(zip(matches, depths(model), strict=True)):
        split = _find_split_point(model, index, match, trace)
        if split is not None and all(split.modules != b.split.modules for b in found if b.split):
            boundary = Boundary(' & '.join(split.modules), index, (), depth, split=split)
            found.append(_measured(boundary, trace, layout_of))
    if not found:
        raise BoundaryError(
            f'{type(model).__name__} has no boundary at which a student could be split: the image reaches its logits '
            f'around each of its {len(matches)} features. Name modules through which everything passes in '
            f'`boundaries`, or choose another student.')
    return with_hierarchy(found), trace


def _match_features(model: nn.Module, input_size: Size) -> list[dict[str, Layout]]:
    """For each timm feature the modules that return it, in the order they finish."""
    samples: list[tuple[str, Sample]] = []

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if len(tensors(output)) == 1:
            samples.append((name, Sample(tensors(output)[0])))

    x = dummy_image(model, input_size)
    copied = clone_model(model, perturbed_weights(model, x.dtype))
    with torch.no_grad(), hooked(copied, keep):
        _, references = features(copied, x)
    result = []
    for reference in references:
        expected, signed = Sample(reference), bool((reference < 0).any())
        found = ((name, match_layout(sample, expected)) for name, sample in samples)
        result.append({name: replace(layout, signed=signed) for name, layout in found if layout is not None})
    return result


def _find_split_point(model: nn.Module, index: int, match: dict[str, Layout], trace: Trace) -> SplitPoint | None:
    """The split point of a feature: a module that returns it, else its several tensors, else all stages up to it."""
    info = [f.get('module') for f in feature_info(model)[:index + 1]]
    stages = tuple(m for m in info if m and has_module(model, m))
    outermost = [min((a for a in match if f'{name}.'.startswith(f'{a}.')), key=len) for name in match]
    attempts: list[tuple[str, ...]] = [(name,) for name in dict.fromkeys(outermost)]
    if len(stages) == len(info):
        attempts += [stages[-1:], stages]
    for names in attempts:
        try:
            return trace.split_at(names)
        except BoundaryError:
            continue
    return None


def _measured(boundary: Boundary, trace: Trace, layout_of: dict[str, Layout]) -> Boundary:
    split = boundary.split
    assert split is not None
    layouts: list[Layout] = []
    for name in split.modules:
        raws = split.features(trace.calls[name][0])
        place = boundary.place or Place(name, name)
        layouts += [layout_of[name]] if name in layout_of and len(raws) == 1 else \
            [layout_at(trace.model, place, t, trace.input_size) for t in raws]
    return replace(boundary, layouts=tuple(layouts), reduction=trace.input_size[1] / layouts[0].size[0])
