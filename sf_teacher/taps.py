"""Where a teacher can be tapped, and its features taken along with its logits."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .errors import BoundaryError, SFTeacherError
from .layouts import Layout, infer_layout
from .stages import Boundary, Size, check_module, depths, feature_info, feature_name, no_features, refused_image
from .trace import dummy_image, hooked, tensors, twin, weights_of


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


def features(model: Any, names: Sequence[str] | None, x: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
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
            logits, maps = features(twin(model, on_meta), names, x.to('meta'))
        except SFTeacherError:
            raise
        except Exception:   # the model computes with values, or keeps tensors that are neither parameter nor buffer
            try:
                logits, maps = features(twin(model), names, x)
            except SFTeacherError:
                raise
            except Exception as error:
                raise SFTeacherError(refused_image(model, input_size, error)) from error
    if names is None:
        layouts = [Layout('NCHW', m.shape[1], (m.shape[2], m.shape[3])) for m in maps]
        found = [Boundary(feature_name(model, i), i, (layout,), depth, input_size[1] / layout.size[0])
                 for i, (layout, depth) in enumerate(zip(layouts, depths(model), strict=True))]
    else:
        found = [Boundary(name, None, (infer_layout(m, input_size, f'{name!r} of {type(model).__name__}'),))
                 for name, m in zip(names, maps, strict=True)]
    return found, logits
