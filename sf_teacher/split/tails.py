"""The tail of a student: from the feature at a boundary to the logits, by the student's own forward.

No graph is rewritten and no architecture is known by name. A copy of the student keeps its forward; every module that
only works before the boundary is emptied in place and answers with a blank of the shape it had at build time, scaled
to the batch; the boundary answers with the feature that the caller passes in.
"""
import copy
import functools
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..checks import logits_of
from ..errors import SFTeacherError
from .trace import Call, Cut, Trace, drop_hooks


class Tail(nn.Module):
    """The part of a student behind a boundary: features to logits.

    Its parameters are exactly those between the boundary and the logits, under the student's own names (below
    ``model.``); the student itself is left as it is. Runs in eval and train mode, with the student's own dropout,
    drop-path and normalisation layers.

    Args:
        model: The student. It is copied; the weights before the boundary are not.
        cut: The boundary, from ``trace.cut(...)``.
        trace: A recorded forward of `model`.

    Shape:
        - features: one tensor for each that the boundary's modules return, batch first, in their layouts.
        - output: the student's logits [B, K].
    """

    def __init__(self, model: nn.Module, cut: Cut, trace: Trace) -> None:
        super().__init__()
        if getattr(model, 'grad_checkpointing', False):
            raise SFTeacherError(
                f'{type(model).__name__} has gradient checkpointing on, which walks over modules that its tail does '
                f'not have. Call student.set_grad_checkpointing(False); on the teacher it may stay on.')
        self.boundary, self.output, self._slot = cut.modules, cut.output, _Slot()
        before = _modules_before(model, cut, trace)
        weights = [t for name in before for t in (*_at(model, name).parameters(), *_at(model, name).buffers())]
        inside = tuple(f'{name}.' for name in cut.modules)
        self._before = [name for name in before if not name.startswith(inside)]
        self.model = copy.deepcopy(model, {id(t): t for t in weights})
        drop_hooks(self.model)
        self.answer_as(cut, trace)
        _drop_unreached(self.model, cut, trace)
        self.untrained = sorted(set(model.state_dict()) - set(self.model.state_dict()))    # the student's other keys
        self.norms_in_eval = norms_in_eval(model)
        self.train(model.training)

    def train(self, mode: bool = True) -> 'Tail':
        """As `nn.Module.train`; batch norms that were in eval mode when the student was in train mode stay in it."""
        super().train(mode)
        keep_in_eval(self.model, self.norms_in_eval)
        return self

    def answer_as(self, cut: Cut, trace: Trace) -> None:
        """Empty the modules that only work before the boundary, and let them answer as they did in `trace`."""
        self.input_size = trace.input_size
        self.features: list[tuple[str, int]] = []   # module and position among the tensors it returns
        for name in self._before:
            _stub(_at(self.model, name), name, trace.calls[name][-1], trace, self)
        for name in cut.modules:
            _stub(_at(self.model, name), name, trace.calls[name][0], trace, self, cut.nodes)
        self._slot.rows = cut.features(trace.calls[cut.modules[0]][0])[0].shape[0]

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        slot, batch = self._slot, features[0].shape[0] // self._slot.rows
        if slot.features:
            raise RuntimeError('two forwards of one tail at a time: use DistributedDataParallel, not DataParallel')
        slot.features, slot.batch = features, batch
        try:
            return self._run(features[0], batch)
        except RuntimeError as error:   # met when the tail is checked at build time, not in training
            if slot.dense or 'single memory location' not in str(error):
                raise
            slot.dense = True
            return self._run(features[0], batch)
        finally:
            slot.features = ()

    def _run(self, like: torch.Tensor, batch: int) -> torch.Tensor:
        return logits_of(self.model, self.model(like.new_zeros(()).expand(batch, *self.input_size)))

    def extra_repr(self) -> str:
        return f'after {", ".join(self.boundary)}'


class _Slot:
    """What the emptied modules of one tail need to know of the forward under way."""

    def __init__(self) -> None:
        self.features: tuple[torch.Tensor, ...] = ()
        self.batch = 1
        self.dense = False  # whether the model writes into blanks, so that they must be real zeros
        self.rows = 1   # rows of the first feature per image


class _Blank:
    """A tensor that nothing behind the boundary uses: only its shape [rows per image, ...] and dtype matter."""

    def __init__(self, like: torch.Tensor) -> None:
        self.shape, self.dtype = like.shape, like.dtype

    def answer(self, slot: _Slot) -> torch.Tensor:
        dtype = slot.features[0].dtype if self.dtype.is_floating_point else self.dtype
        zero = torch.zeros((), dtype=dtype, device=slot.features[0].device)
        blank = zero.expand(self.shape[0] * slot.batch, *self.shape[1:]) if self.shape else zero
        return blank.clone(memory_format=torch.contiguous_format) if slot.dense else blank


class _Constant:
    """A tensor that does not depend on the image, such as patch positions; kept as a buffer of its module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    def answer(self, slot: _Slot) -> torch.Tensor:
        value = getattr(self.module, self.name)
        return value.expand(slot.batch, *value.shape[1:]) if value.ndim > 1 and value.shape[0] == 1 else value


class _Feature:
    """The feature that the caller of the tail passes in; a copy where the model writes into it."""

    def __init__(self, index: int, written: bool) -> None:
        self.index, self.written = index, written

    def answer(self, slot: _Slot) -> torch.Tensor:
        feature = slot.features[self.index]
        return feature.clone() if self.written else feature


def _answer(slot: _Slot, output: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of an emptied module."""
    return tree_map(lambda leaf: leaf.answer(slot) if isinstance(leaf, (_Blank, _Constant, _Feature)) else leaf, output)


def norms_in_eval(model: nn.Module) -> set[str]:
    """Batch norms that the user has set to eval mode, in a model that is otherwise in train mode."""
    return {name for name, m in model.named_modules()
            if model.training and not m.training and isinstance(m, nn.modules.batchnorm._BatchNorm)}


def keep_in_eval(model: nn.Module, names: Set[str]) -> None:
    """Set the modules of these names to eval mode, as far as the model has them."""
    for name, module in model.named_modules():
        if name in names:
            module.eval()


def _at(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name)


def _clear(module: nn.Module, kept: Sequence[str] = ()) -> None:
    """Empty a module in place, so that its plain attributes (patch sizes, grids) stay readable; submodules at the
    paths `kept` stay, as empty as the module."""
    module._parameters.clear()
    module._buffers.clear()
    for name, child in list(module.named_children()):
        if any(f'{path}.'.startswith(f'{name}.') for path in kept):
            _clear(child, [path.removeprefix(f'{name}.') for path in kept if path.startswith(f'{name}.')])
        else:
            del module._modules[name]


def _stub(module: nn.Module, name: str, call: Call, trace: Trace, tail: Tail, features: Set[Any] = frozenset()) -> None:
    """Empty a module and let it answer as it did: tensors whose nodes are `features` with the caller's, those that came
    from the image with blanks, all others (patch positions) with their values. Submodules that the model also calls
    from outside the module answer by themselves."""
    outside = trace.called_later(name)
    _clear(module, [path.removeprefix(f'{name}.') for path in outside])
    for path in outside:
        _answer_as_called(_at(tail.model, path), path, trace.calls[path][-1], trace, tail, frozenset())
    _answer_as_called(module, name, call, trace, tail, features)


def _answer_as_called(
        module: nn.Module,
        name: str,
        call: Call,
        trace: Trace,
        tail: Tail,
        features: Set[Any],
) -> None:
    """Give an empty module a forward that answers as in one call, see `_stub`."""
    nodes = iter(enumerate(call.nodes))

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        position, node = next(nodes)
        if node in features:
            tail.features.append((name, position))
            return _Feature(len(tail.features) - 1, written=leaf._version > 0)
        if trace.is_from_image(node):
            return _Blank(leaf)
        constant = f'constant{position}'
        module.register_buffer(constant, leaf.clone(), persistent=False)
        return _Constant(module, constant)

    module.forward = functools.partial(_answer, tail._slot, tree_map(stand_in, call.output))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.__class__ = nn.Identity  # type: ignore[assignment]  # nothing is left for SyncBatchNorm to convert


def _around(cut: Cut) -> set[str]:
    """The boundary's modules and all that contain them."""
    return {''}.union(*({name[:i] for i, c in enumerate(name + '.') if c == '.'} for name in cut.modules))


def _modules_before(model: nn.Module, cut: Cut, trace: Trace) -> list[str]:
    """Outermost modules that nothing behind the boundary needs."""
    around = _around(cut)
    reached = [name for name, calls in trace.calls.items() if any(cut.nodes.intersection(call.nodes) for call in calls)]
    used = {name[:i] for name in (*reached, *cut.parameters) for i, c in enumerate(name + '.') if c == '.'}
    found: list[str] = []
    for name, module in model.named_modules():
        calls = trace.calls.get(name)
        if not calls or name in around or name in used or (found and name.startswith(found[-1] + '.')):
            continue
        has_parameters = next(module.parameters(), None) is not None
        if has_parameters or (len(calls) == 1 and trace.depends_on_image(calls[0])):
            found.append(name)
    return found


def _drop_unreached(model: nn.Module, cut: Cut, trace: Trace) -> None:
    """Parameters before the boundary that no emptied module owns (a ViT's pos_embed) become zero buffers, unsaved."""
    around = _around(cut)
    for name, p in list(model.named_parameters()):
        owner, _, leaf = name.rpartition('.')
        if name not in cut.parameters and (owner in around or owner not in trace.calls):
            module = _at(model, owner)
            del module._parameters[leaf]
            module.register_buffer(leaf, torch.zeros_like(p.detach()), persistent=False)
