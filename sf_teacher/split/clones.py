"""Clones of a model, on which everything is tried, so that nothing of what a user gave changes."""
import contextlib
import copy
import itertools
import random
from collections import OrderedDict
from collections.abc import Iterator, Set
from typing import Any, TypeVar

import numpy
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import SFTeacherError

Model = TypeVar('Model', bound=nn.Module)


def clone_model(model: Model, weights: dict[str, torch.Tensor] | None = None, hooks: bool = False) -> Model:
    """A copy of a model, in eval mode and, but for `hooks`, without forward hooks, that holds `weights`; by default
    copies of its own.

    Whatever is tried on the copy (hooks, caches that a forward fills, counters that it advances) leaves no trace on the
    model, as long as `weights` are not the model's own tensors.

    Raises:
        SFTeacherError: The model cannot be copied.
    """
    weights = weights or copied_weights(model)
    memo = hooks_as_they_are(model) if hooks else without_hooks(model)
    memo |= {id(b): weights[n] for n, b in model.named_buffers()}
    memo |= {id(p): nn.Parameter(weights[n], p.is_floating_point() or p.is_complex())
             for n, p in model.named_parameters()}
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise SFTeacherError(f'{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Remove what '
                             f'copy.deepcopy(model) fails on, e.g. a tensor kept from an earlier forward, the masks of '
                             f'torch.nn.utils.prune (prune.remove), or the old torch.nn.utils.weight_norm '
                             f'(remove_weight_norm; torch.nn.utils.parametrizations.weight_norm works).') from error
    return copied.train().eval()    # train() first: it drops what some eval forwards cache (attention biases)


def clone_on_meta(model: Model) -> Model:
    """A clone without values, for a dry run that tells shapes; run it under `ShapesOnly`, which is much faster.

    Raises:
        SFTeacherError: The model cannot be copied.
    """
    return clone_model(model, {name: torch.empty_like(t, device='meta') for name, t in weights_of(model).items()})


class ShapesOnly(TorchFunctionMode):
    """Answers norms and GELU on the meta device by their shape alone; torch takes them apart in Python there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.batch_norm, F.layer_norm, F.gelu) and args and args[0].is_meta and _keeps_shape(func, *args):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _keeps_shape(func: Any, x: torch.Tensor, size: Any = None, *others: Any) -> bool:
    """Whether the call is surely no error."""
    if func is F.layer_norm:
        return bool(size) and tuple(x.shape[-len(size):]) == tuple(size)
    return func is F.gelu or (size is not None and x.shape[1:2] == size.shape and x.numel() > x.shape[1])


def without_hooks(model: nn.Module) -> dict[int, Any]:
    """For the memo of ``copy.deepcopy``: empty dicts in place of the forward and backward hooks that users have put on.

    Pre-hooks are copied, because old-style weight norm is one. Dicts that are empty anyway are named too: a module has
    a dozen, and to copy them takes almost half the time of the copy.
    """
    return {id(d): OrderedDict() for m in model.modules() for d in vars(m).values()
            if type(d) is OrderedDict and (not d or d is m._forward_hooks or d is m._backward_hooks)}


def hooks_as_they_are(model: nn.Module) -> dict[int, Any]:
    """For the memo of ``copy.deepcopy``: forward hooks that are not copied, as they may belong to anything; methods of
    the model itself are."""
    own = {id(m) for m in model.modules()}
    return {id(hook): hook for m in model.modules() for hook in m._forward_hooks.values()
            if id(getattr(hook, '__self__', None)) not in own}


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, unsaved ones too, by name."""
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


def copied_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters and buffers by name, detached."""
    return {name: t.detach().clone() for name, t in weights_of(model).items()}


@contextlib.contextmanager
def preserved_rng(model: nn.Module) -> Iterator[None]:
    """Put the random numbers of torch (on the CPU and the model's devices), numpy and Python back afterwards."""
    devices = {t.device.index for t in weights_of(model).values() if t.device.type == 'cuda'}
    of_numpy, of_python = numpy.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        numpy.random.set_state(of_numpy)
        random.setstate(of_python)


def perturbed_weights(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights for a clone with which the logits depend on the image.

    Fresh models hide errors: residual blocks that start as identities (a norm's zero weight, a small layer scale) and
    heads that start at zero. Noise on vectors and on all-zero tensors makes all of them count.
    """
    generator = torch.Generator().manual_seed(0)
    values = {name: b.detach().to(dtype if b.is_floating_point() else b.dtype, copy=True)
              for name, b in model.named_buffers()}
    shared: dict[int, torch.Tensor] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) not in shared:
            shared[id(p)] = p.detach().to(dtype if p.is_floating_point() else p.dtype, copy=True)
            if p.is_floating_point() and (p.ndim <= 1 or not p.any()):
                noise = torch.randn(p.shape, generator=generator, dtype=dtype, device='cpu')
                shared[id(p)] = shared[id(p)] + 0.1 * noise.to(p.device)
        values[name] = shared[id(p)]
    return values


def calibrate_batch_norm(copied: nn.Module, images: torch.Tensor) -> None:
    """Give a clone's batch norms the statistics of `images`: with the initial ones, a deep fresh model may give the
    same logits for all images."""
    norms = [m for m in copied.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for m in norms:
        m.training, m.momentum = True, 1.
    with torch.no_grad():
        copied(images)
    for m in norms:
        m.training = False


def norms_in_eval(model: nn.Module) -> set[str]:
    """Batch norms that the user has set to eval mode, in a model that is otherwise in train mode."""
    return {name for name, m in model.named_modules()
            if model.training and not m.training and isinstance(m, nn.modules.batchnorm._BatchNorm)}


def keep_in_eval(model: nn.Module, names: Set[str]) -> None:
    """Set the modules of these names to eval mode, as far as the model has them."""
    for name, module in model.named_modules():
        if name in names:
            module.eval()
