"""A teacher's features, taken along with its logits in one forward."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..checks import logits_of
from ..errors import SFTeacherError
from .boundaries import Boundary, Size
from .clones import clone_model, perturbed_weights, preserved_rng
from .trace import dummy_image, hooked


def forward_with_maps(
        model: Any,
        boundaries: Sequence[Boundary],
        x: torch.Tensor,
) -> tuple[Any, list[torch.Tensor]]:
    """Run a teacher once and take its features along.

    timm models are tapped by ``forward_intermediates``; everything else, and those whose own forward does something
    else (`gives_features`), by forward hooks that live for this call only. Either way the logits are bit for bit those
    of ``model(x)``.

    Args:
        model: The teacher.
        boundaries: Where to tap, in order of depth and without repetition.
        x: Images [B, C, H, W].

    Returns:
        Logits [B, K] and one map [B, C_i, H_i, W_i] for each boundary.
    """
    if not boundaries:
        return logits_of(model, model(x)), []
    if all(b.place is None for b in boundaries):
        indices = [b.index for b in boundaries]
        final, maps = model.forward_intermediates(x, indices=indices, stop_early=False, output_fmt='NCHW')
        return logits_of(model, model.forward_head(final)), maps
    got: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        for b in boundaries:
            if b.place and b.place.module == name:
                raw, = b.place.pick(output)
                got[b.name] = raw.clone() if b.modified else raw

    with hooked(model, keep, {b.place.module for b in boundaries if b.place}):
        logits = logits_of(model, model(x))
    if missing := [b.name for b in boundaries if b.name not in got]:
        raise SFTeacherError(f'teacher {type(model).__name__} did not run {", ".join(missing)} in this forward: a '
                             f'boundary is a module that every image passes. Choose others in `boundaries`')
    return logits, [b.layouts[0].to_map(got[b.name]) for b in boundaries]


def features(model: Any, x: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """Logits and all of timm's maps."""
    final, maps = model.forward_intermediates(x, stop_early=False, output_fmt='NCHW')
    return logits_of(model, model.forward_head(final)), maps


def gives_features(model: Any, input_size: Size) -> bool:
    """Whether timm's way to a model's features leads to the logits of the model itself.

    It passes by hooks on the model itself and by a forward that is not timm's.

    Raises:
        SFTeacherError: A forward was put in its place that copies of the model would share.
    """
    methods = [name for name in ('forward', 'forward_features', 'forward_head') if hasattr(model, name)]
    for name in methods:
        if name in vars(model) and getattr(vars(model)[name], '__self__', None) is not model:
            raise SFTeacherError(f'{name} of this {type(model).__name__} was put in the place of its own and is no '
                                 f'method of it: copies would compute with the weights of the first. Write it into a '
                                 f'subclass, or bind it by types.MethodType(function, model)')
    owners = [next((c for c in type(model).__mro__ if name in vars(c)), type(model)) for name in methods]
    if all(owner.__module__.startswith('timm.') for owner in owners) and not vars(model).keys() & methods \
            and not model._forward_hooks and not model._forward_pre_hooks:
        return True
    images = dummy_image(model, input_size)
    values = perturbed_weights(model, images.dtype)
    with preserved_rng(model), torch.no_grad():
        logits = logits_of(model, clone_model(model, values, hooks=True)(images))
        return torch.equal(logits, features(clone_model(model, values), images)[0])
