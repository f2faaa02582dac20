"""One recorded forward of a model: what each module returned, and what lies between a split point and the logits."""
import contextlib
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from ..checks import logits_of
from ..errors import BoundaryError, SFTeacherError
from .clones import clone_model


@contextlib.contextmanager
def hooked(model: nn.Module, hook: Any, names: Iterable[str] | None = None) -> Iterator[None]:
    """Call ``hook(name, module, args, output)`` after every submodule (or those named), for the time of the context."""
    handles = []
    try:
        for name in [n for n, _ in model.named_modules() if n] if names is None else names:
            handles.append(model.get_submodule(name).register_forward_hook(functools.partial(hook, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def dummy_image(model: nn.Module, input_size: tuple[int, int, int], batch: int = 1) -> torch.Tensor:
    """Noise of a fixed seed [batch, C, H, W], in the model's dtype and on its device; the global RNG stays as it is."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(0), device='cpu')
    return noise.to(device=like.device, dtype=like.dtype)


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors in what a module returned, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


@dataclass(frozen=True)
class Call:
    """What a module returned in one call."""
    output: Any             # detached; on meta what came from the image, but at a module that may become a boundary
    nodes: tuple[Any, ...]  # autograd node of each tensor in the output, or None
    index: int              # how many calls of modules had ended before


class Trace:
    """A recorded forward of `model` on one dummy image, with the autograd graph kept (without the activations).

    Each module named in `candidates` returns a clone, so that its output has an autograd node of its own even where the
    module is an identity; to split the model at the module is then to split the graph at that node.

    Args:
        model: Any module that maps an image [1, C, H, W] to logits.
        input_size: (C, H, W) of the dummy image.
        candidates: Names of the modules that may become a boundary.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int], candidates: Iterable[str]) -> None:
        self.model, self.input_size = model, input_size
        self.calls: dict[str, list[Call]] = defaultdict(list)
        named, order = set(candidates), itertools.count()

        def record(name: str, module: nn.Module, args: Any, output: Any) -> Any:
            if name in named:
                output = tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) and t.requires_grad else t, output)

            def kept(t: Any) -> Any:
                if not isinstance(t, torch.Tensor):
                    return t
                shape_only = name not in named and self.is_from_image(t.grad_fn)
                return t.detach().to('meta') if shape_only else t.detach()

            nodes = tuple(t.grad_fn for t in tensors(output))
            self.calls[name].append(Call(tree_map(kept, output), nodes, next(order)))
            return output if name in named else None

        x = dummy_image(model, input_size).requires_grad_()
        copied = clone_model(model)
        self._names = {id(p): name for name, p in copied.named_parameters()}
        with torch.enable_grad(), _no_saved_tensors(), hooked(copied, record):
            above: Any = x.view_as(x).grad_fn
            self._image = above.next_functions[0][0]
            self._from_image = {self._image: True}
            self.logits = logits_of(copied, copied(x))
        _check_own_weights(model, self.logits)
        self._roots = [self.logits.grad_fn] if self.logits.grad_fn is not None else []

    def called_later(self, name: str) -> list[str]:
        """Submodules that are called once more after their parent `name` has returned."""
        end = self.calls[name][-1].index
        return [n for n, calls in self.calls.items() if n.startswith(f'{name}.') and calls[-1].index > end]

    def depends_on_image(self, call: Call) -> bool:
        """Whether any tensor of the call was computed from the image."""
        return any(map(self.is_from_image, call.nodes))

    def is_from_image(self, node: Any) -> bool:
        """Whether a tensor with this autograd node (None: without one) was computed from the image."""
        stack = [] if node is None or node in self._from_image else [node]
        while stack:
            unvisited = [parent for parent in _parents(stack[-1]) if parent not in self._from_image]
            if not unvisited:
                visited = stack.pop()
                self._from_image[visited] = any(self._from_image[parent] for parent in _parents(visited))
            stack += unvisited
        return self._from_image.get(node, False)

    def split_at(self, names: tuple[str, ...], output: int | None = None) -> 'SplitPoint':
        """What reaches the logits when the outputs of the modules `names`, together, are replaced by a feature.

        Args:
            names: Module paths.
            output: Position of the one tensor to replace, of several that the one module returns; None for all.

        Raises:
            BoundaryError: The model cannot be split there: a module is called more than once or never, it returns no
                tensor that depends on the image, or the image also reaches the logits around them.
        """
        where = f'{", ".join(map(repr, names))} of {type(self.model).__name__}'
        stops: set[Any] = set()
        for name in names:
            calls = self.calls.get(name, [])
            if len(calls) != 1:
                raise BoundaryError(
                    f'{where} cannot be a boundary: {name!r} is called {len(calls)} times in one forward, and a '
                    f'boundary must be called exactly once. Choose another module in `boundaries`.')
            if not self.depends_on_image(calls[0]):
                raise BoundaryError(
                    f'{where} cannot be a boundary: the output of {name!r} does not depend on the image. '
                    f'Choose another module in `boundaries`.')
            nodes = calls[0].nodes
            if output is not None and output >= len(nodes):
                raise BoundaryError(f'{where} cannot be a boundary: {name!r} returns {len(nodes)} tensors, counted '
                                    f'from 0, and there is none at position {output}.')
            stops.update(filter(self.is_from_image, nodes if output is None else nodes[output:output + 1]))
        reached = _reach(self._roots, stops)
        if self._image in reached:
            raise BoundaryError(
                f'{where} cannot be a boundary: the image also reaches the logits around it (a module inside a '
                f'residual block, or one of several streams). Choose a module through which everything passes.')
        if not stops & reached:
            raise BoundaryError(
                f'{where} cannot be a boundary: the logits do not depend on it. Choose another module in `boundaries`.')
        weights = {id(node.variable) for node in reached if hasattr(node, 'variable')}
        return SplitPoint(names, output, {name for i, name in self._names.items() if i in weights}, reached)


@dataclass(frozen=True)
class SplitPoint:
    """A valid boundary: the modules whose outputs it replaces, and what lies between it and the logits."""
    modules: tuple[str, ...]
    output: int | None      # position of the one tensor replaced; None for all that the logits need
    parameters: set[str]    # names of the parameters between the boundary and the logits
    nodes: set[Any]         # autograd nodes between them, the boundary's own included

    def features(self, call: Call) -> list[torch.Tensor]:
        """Of what a boundary's module returned, the tensors that the logits need."""
        return [t for t, node in zip(tensors(call.output), call.nodes, strict=True) if node in self.nodes]


def _check_own_weights(model: nn.Module, logits: torch.Tensor) -> None:
    """Refuse a model whose copy, which gave these logits, computes with the model's weights instead of its own.

    Raises:
        SFTeacherError: Says which, and how to write it.
    """
    roots = [logits.grad_fn] if logits.grad_fn is not None else []
    used = {id(node.variable) for node in _reach(roots, ()) if hasattr(node, 'variable')}
    if names := [name for name, p in model.named_parameters() if id(p) in used]:
        raise SFTeacherError(
            f'a copy of {type(model).__name__} computes with weights that are not its own but those of the model that '
            f'it was made from ({", ".join(names[:3])}), so that training would change them: its forward goes through '
            f'a lambda or a function that keeps the model (self.f = lambda x: self.head(x)). Make that a method')


def _no_saved_tensors() -> Any:
    """Autograd graphs without what a backward would need: gigabytes for a large student."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: None, lambda nothing: nothing)


def _parents(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _reach(roots: Iterable[Any], stops: Iterable[Any]) -> set[Any]:
    """Autograd nodes reached from `roots` without going past any of `stops` (which are included)."""
    seen: set[Any] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if node not in stops:
                stack.extend(_parents(node))
    return seen
