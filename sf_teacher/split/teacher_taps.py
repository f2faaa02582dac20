"""Where a teacher can be tapped: measured with one dummy image."""
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..checks import logits_of
from ..errors import BoundaryError, SFTeacherError
from .boundaries import (
    Boundary,
    Place,
    Size,
    depths,
    feature_info,
    feature_name,
    find_place,
    no_features,
    refused_image,
    with_hierarchy,
)
from .clones import ShapesOnly, clone_model, clone_on_meta, preserved_rng
from .layouts import Layout, infer_layout, map_kinds
from .tapping import features, gives_features
from .trace import dummy_image, hooked


def _outputs(model: nn.Module, places: Sequence[Place], x: torch.Tensor) -> tuple[torch.Tensor, dict[Place, Any]]:
    """Logits, and by place, in order of execution, the tensor there and whether it was modified in place afterwards."""
    got: dict[Place, list[Any]] = {}
    calls = dict.fromkeys((place.module for place in places), 0)

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        calls[name] += 1
        for place in places:
            if place.module == name:
                got.setdefault(place, []).extend([(t, t._version) for t in place.pick(output)])

    with hooked(model, keep, calls):
        logits = logits_of(model, model(x))
    for place in places:
        if calls[place.module] != 1 or len(got[place]) != 1:
            found = f'is called {calls[place.module]} times in one forward' if calls[place.module] != 1 else \
                'does not return so many tensors' if place.output is not None else f'returns {len(got[place])} tensors'
            raise BoundaryError(f'{place.name!r} of {type(model).__name__} cannot be a teacher boundary: it {found}; a '
                                f'boundary is called once and is one tensor. Choose another in `boundaries`, or name '
                                f"one of several tensors by its position, as in '{place.module}:0'.")
    return logits, {place: (t, t._version != version) for place, ((t, version),) in got.items()}


def layout_at(model: nn.Module, place: Place, raw: torch.Tensor, input_size: Size) -> Layout:
    """The layout of the feature `raw` at a place, see `infer_layout`.

    A shape that fits both NCHW and NHWC is told by an image twice as wide, where the model runs on one up to there:
    then the map is wider and the channels are as many as before.

    Raises:
        BoundaryError: The tensor is not a feature, or its layout is not known.
    """
    kind, (channels, height, width) = place.kind, input_size
    if kind is None and raw.ndim == 4 and len(map_kinds(raw.shape, input_size)) == 2:
        seen: list[tuple[int, ...]] = []

        def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
            seen.extend(tuple(t.shape) for t in place.pick(output) if t.shape != raw.shape)

        copied = clone_model(model)
        with suppress(Exception), preserved_rng(model), torch.no_grad(), hooked(copied, keep, [place.module]):
            copied(dummy_image(model, (channels, height, 2 * width)))
        widened = [b != a for a, b in zip(raw.shape, seen[0], strict=True)] if seen else []
        kind = 'NCHW' if widened == [False, False, False, True] else \
            'NHWC' if widened == [False, False, True, False] else None
    return infer_layout(raw, input_size, f'{place.name!r} of {type(model).__name__}', kind)


def _dry_run(model: nn.Module, run: Any, x: torch.Tensor, training: bool = False) -> Any:
    """What `run` returns for a copy of the model: on the meta device, where the model allows it."""
    try:
        with ShapesOnly():
            return run(clone_on_meta(model).train(training), x.to('meta'))
    except SFTeacherError:
        raise
    except Exception:   # the model computes with values, or keeps tensors that are neither parameter nor buffer
        return run(clone_model(model).train(training), x)


def _check_dtype(model: nn.Module, maps: Any) -> None:
    """Refuse features of another dtype than the branches get, which is that of the model's first weight."""
    dtype = dummy_image(model, (1, 1, 1)).dtype
    found = {place.name: raw.dtype for place, (raw, _) in maps.items()} if isinstance(maps, dict) \
        else {feature_name(model, i): m.dtype for i, m in enumerate(maps)}
    for name, other in found.items():
        if other != dtype and not torch.is_autocast_enabled(next(model.parameters()).device.type):
            raise BoundaryError(f'{name!r} of {type(model).__name__} cannot be a teacher boundary: it is {other}, and '
                                f'branches are {dtype}, as the first weight of the teacher is. Convert the teacher to '
                                f'one dtype (teacher.float(); for mixed precision use torch.autocast), or choose other '
                                f'`boundaries`')


def _check_train_mode(model: nn.Module, run: Any, x: torch.Tensor, maps: Any) -> set[Place]:
    """Check that a teacher gives logits and the same features in train mode; places modified in place only there.

    Raises:
        SFTeacherError: It does not.
    """
    try:
        _, others = _dry_run(model, run, x, training=True)
    except SFTeacherError:
        raise
    except Exception as error:
        raise SFTeacherError(
            f'teacher {type(model).__name__} does not give its features in train mode ({type(error).__name__}: '
            f'{error}). Build it without what it does in training only (timm: patch_drop_rate=0; torchvision: '
            f'aux_logits=False), or give larger images as `input_size`') from error
    pairs = zip(maps, others, strict=True) if isinstance(maps, list) else ((maps[p][0], others[p][0]) for p in maps)
    for eval_map, train_map in pairs:
        if eval_map.shape[1:] != train_map.shape[1:]:
            raise SFTeacherError(
                f'teacher {type(model).__name__} gives a feature of shape {tuple(eval_map.shape[1:])} for an image in '
                f'eval mode and {tuple(train_map.shape[1:])} in train mode. If it drops tokens in training, build it '
                f'without (timm: patch_drop_rate=0), or choose other `boundaries`')
    return set() if isinstance(maps, list) else {place for place, (_, modified) in others.items() if modified}


def teacher_boundaries(
        model: nn.Module,
        input_size: Size,
        names: Sequence[str] | None = None,
) -> tuple[list[Boundary], Any]:
    """Measure a teacher's boundaries with one dummy image, on the meta device where the model allows it.

    Args:
        model: The teacher.
        input_size: (C, H, W).
        names: Module paths, see `Place`; None for all of timm's features.

    Returns:
        The boundaries, in timm's order or in that in which the modules are run, and the logits of the dummy image
        (possibly on meta).
    """
    if names is None and not feature_info(model):
        raise BoundaryError(no_features(model, 'teacher'))
    places = [find_place(model, name) for name in names or ()]
    run: Any = features if names is None else lambda model, x: _outputs(model, places, x)
    with preserved_rng(model), torch.no_grad():
        try:
            logits, maps = _dry_run(model, run, dummy_image(model, input_size))
        except SFTeacherError:
            raise
        except Exception as error:
            raise SFTeacherError(refused_image(model, input_size, error)) from error
        _check_dtype(model, maps)
        in_training = _check_train_mode(model, run, dummy_image(model, input_size, batch=2), maps)
    if names is None:
        layouts = [Layout('NCHW', m.shape[1], (m.shape[2], m.shape[3])) for m in maps]
        found = [Boundary(feature_name(model, i), i, (layout,), depth, input_size[1] / layout.size[0])
                 for i, (layout, depth) in enumerate(zip(layouts, depths(model), strict=True))]
        found = with_hierarchy(found)
        if not gives_features(model, input_size):
            at = {b.name: b for b in teacher_boundaries(model, input_size, [b.name for b in found])[0]}
            found = [replace(b, layouts=at[b.name].layouts, place=at[b.name].place, modified=at[b.name].modified)
                     for b in found]
    else:
        found = []
        for place, (raw, changed) in maps.items():
            layout = layout_at(model, place, raw, input_size)
            if layout.rows > 1:
                raise BoundaryError(f'{place.name!r} of {type(model).__name__} cannot be a teacher boundary: for one '
                                    f'image it returns {tuple(raw.shape)}, patches folded into the batch, whose places '
                                    f'in the image its shape does not tell. Choose another in `boundaries`.')
            found.append(Boundary(place.name, None, (layout,), place=place, modified=changed or place in in_training))
    return found, logits
