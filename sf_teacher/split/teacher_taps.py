"""Where a teacher can be tapped, and its features taken along with its logits."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import BoundaryError, SFTeacherError
from .boundaries import Boundary, Size, check_module, depths, feature_info, feature_name, no_features, refused_image
from .layouts import Layout, infer_layout
from .trace import dummy_image, hooked, rng_kept, tensors, twin, weights_of


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
    copied = [b.name for b in boundaries if b.written]
    got: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        raw = tensors(output)[0]
        got[name] = raw.clone() if name in copied else raw

    with hooked(model, keep, [b.name for b in boundaries]):
        logits = model(x)
    return logits, [b.layouts[0].to_map(got[b.name]) for b in boundaries]


def features(model: Any, x: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """Logits and all of timm's maps."""
    final, maps = model.forward_intermediates(x, stop_early=False, output_fmt='NCHW')
    return model.forward_head(final), maps


def _outputs(model: nn.Module, names: Sequence[str], x: torch.Tensor) -> tuple[Any, dict[str, tuple]]:
    """Logits, and by name, in order of execution, a module's output and whether it was overwritten afterwards."""
    got: dict[str, list[Any]] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        got.setdefault(name, []).extend([(t, t._version) for t in tensors(output)])
        calls[name] += 1

    calls = dict.fromkeys(names, 0)
    with hooked(model, keep, names):
        logits = model(x)
    for name in names:
        if calls[name] != 1 or len(got[name]) != 1:
            found = f'is called {calls[name]} times in one forward' if calls[name] != 1 else \
                f'returns {len(got[name])} tensors'
            raise BoundaryError(f'{name!r} of {type(model).__name__} cannot be a teacher boundary: it {found}; a '
                                f'boundary is called once and returns one tensor. Choose another in `boundaries`.')
    return logits, {name: (t, t._version != version) for name, ((t, version),) in got.items()}


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
        The boundaries, in timm's order or in that in which the modules are run, and the logits of the dummy image
        (possibly on meta).
    """
    if names is None and not feature_info(model):
        raise BoundaryError(no_features(model, 'teacher'))
    for name in names or ():
        check_module(model, name)
    x = dummy_image(model, input_size)
    run: Any = features if names is None else lambda model, x: _outputs(model, names, x)
    with rng_kept(model), torch.no_grad():
        try:
            on_meta = {name: torch.empty_like(t, device='meta') for name, t in weights_of(model).items()}
            logits, maps = run(twin(model, on_meta), x.to('meta'))
        except SFTeacherError:
            raise
        except Exception:   # the model computes with values, or keeps tensors that are neither parameter nor buffer
            try:
                logits, maps = run(twin(model), x)
            except SFTeacherError:
                raise
            except Exception as error:
                raise SFTeacherError(refused_image(model, input_size, error)) from error
    if names is None:
        layouts = [Layout('NCHW', m.shape[1], (m.shape[2], m.shape[3])) for m in maps]
        found = [Boundary(feature_name(model, i), i, (layout,), depth, input_size[1] / layout.size[0])
                 for i, (layout, depth) in enumerate(zip(layouts, depths(model), strict=True))]
    else:
        found = []
        for name, (raw, written) in maps.items():
            where = f'{name!r} of {type(model).__name__}'
            layout = infer_layout(raw, input_size, where)
            if layout.rows > 1:
                raise BoundaryError(f'{where} cannot be a teacher boundary: for one image it returns '
                                    f'{tuple(raw.shape)}, patches folded into the batch, whose places in the image '
                                    f'its shape does not tell. Choose another in `boundaries`.')
            found.append(Boundary(name, None, (layout,), written=written))
    return found, logits
