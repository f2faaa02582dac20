"""Emptied modules that answer as they once did, so that a student's own forward runs without its front part."""
import functools
import types
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .trace import Call, Trace


class TailState:
    """What the emptied modules of one tail need to know of the forward under way."""

    def __init__(self) -> None:
        self.sources: list[tuple[str, int]] = []    # of each feature: module and position among what it returns
        self.features: tuple[torch.Tensor, ...] = ()
        self.batch = 1
        self.dense = False  # whether the model modifies placeholders in place, so that they must be real zeros
        self.rows = 1   # rows of the first feature per image


class _Placeholder:
    """A tensor that nothing behind the boundary uses: only its shape [rows per image, ...] and dtype matter."""

    def __init__(self, like: torch.Tensor) -> None:
        self.shape, self.dtype = like.shape, like.dtype

    def answer(self, state: TailState) -> torch.Tensor:
        dtype = state.features[0].dtype if self.dtype.is_floating_point else self.dtype
        zero = torch.zeros((), dtype=dtype, device=state.features[0].device)
        zeros = zero.expand(self.shape[0] * state.batch, *self.shape[1:]) if self.shape else zero
        return zeros.clone(memory_format=torch.contiguous_format) if state.dense else zeros


class _Constant:
    """A tensor that does not depend on the image, such as patch positions; kept as a buffer of its module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    def answer(self, state: TailState) -> torch.Tensor:
        value = getattr(self.module, self.name)
        return value.expand(state.batch, *value.shape[1:]) if value.ndim > 1 and value.shape[0] == 1 else value


class _Feature:
    """The feature that the caller of the tail passes in; a copy where the model modifies it in place."""

    def __init__(self, index: int, modified: bool) -> None:
        self.index, self.modified = index, modified

    def answer(self, state: TailState) -> torch.Tensor:
        feature = state.features[self.index]
        return feature.clone() if self.modified else feature


def _answer(state: TailState, output: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of an emptied module."""
    def answer(leaf: Any) -> Any:
        return leaf.answer(state) if isinstance(leaf, _Placeholder | _Constant | _Feature) else leaf

    return tree_map(answer, output)


class _Left(types.SimpleNamespace):
    """What stays readable of a weight or a module that is no longer there."""

    def __deepcopy__(self, memo: Any) -> '_Left':
        return self


def _left_of(module: nn.Module) -> _Left:
    """Plain attributes of a module, shapes and dtypes of its weights, and the same of its submodules."""
    plain = {name: value for name, value in vars(module).items()
             if not name.startswith('_') and isinstance(value, str | int | float | tuple | None)}
    return _Left(**plain, **_shapes(module), **{name: _left_of(child) for name, child in module.named_children()})


def _shapes(module: nn.Module) -> dict[str, _Left]:
    return {name: _Left(shape=p.shape, ndim=p.ndim, dtype=p.dtype)
            for name, p in module._parameters.items() if p is not None}


def _clear(module: nn.Module, kept: Sequence[str] = ()) -> None:
    """Empty a module in place, so that its plain attributes (patch sizes, grids) and the shapes and dtypes of its
    weights stay readable; submodules at the paths `kept` stay, as empty as the module."""
    shapes = _shapes(module)
    module._parameters.clear()
    module._buffers.clear()
    vars(module).update(shapes)
    for name, child in list(module.named_children()):
        if any(f'{path}.'.startswith(f'{name}.') for path in kept):
            _clear(child, [path.removeprefix(f'{name}.') for path in kept if path.startswith(f'{name}.')])
        else:
            del module._modules[name]
            vars(module)[name] = _left_of(child)


def stub(model: nn.Module, name: str, call: Call, trace: Trace, state: TailState, features: Set[Any]) -> None:
    """Empty the module of this name and let it answer as it did.

    Tensors whose autograd nodes are `features` are replaced by the caller's, those that came from the image by
    placeholders; all others (patch positions) keep their values. Submodules that the model calls again from outside the
    module answer by themselves.
    """
    outside = trace.called_later(name)
    _clear(model.get_submodule(name), [path.removeprefix(f'{name}.') for path in outside])
    for path in outside:
        _answer_as_called(model, path, trace.calls[path][-1], trace, state, frozenset())
    _answer_as_called(model, name, call, trace, state, features)


def _answer_as_called(
        model: nn.Module,
        name: str,
        call: Call,
        trace: Trace,
        state: TailState,
        features: Set[Any],
) -> None:
    """Give an empty module a forward that answers as in one call, see `stub`."""
    module: Any = model.get_submodule(name)
    nodes = iter(enumerate(call.nodes))

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        position, node = next(nodes)
        if node in features:
            state.sources.append((name, position))
            return _Feature(len(state.sources) - 1, modified=leaf._version > 0)
        if trace.is_from_image(node):
            return _Placeholder(leaf)
        constant = f'constant{position}'
        module.register_buffer(constant, leaf.clone(), persistent=False)
        return _Constant(module, constant)

    module.forward = functools.partial(_answer, state, tree_map(stand_in, call.output))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.__class__ = nn.Identity  # type: ignore[assignment]  # nothing is left for SyncBatchNorm to convert
