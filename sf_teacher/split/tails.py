"""The tail of a student: from the feature at a boundary to the logits, by the student's own forward.

No graph is rewritten and no architecture is known by name. A copy of the student keeps its forward; every module that
only works before the boundary is emptied and answers with a placeholder of the shape it had at build time, scaled
to the batch; the boundary answers with the feature that the caller passes in.
"""
import copy

import torch
from torch import nn

from ..checks import logits_of
from ..errors import SFTeacherError
from .clones import keep_in_eval, norms_in_eval, weights_of, without_hooks
from .stubs import TailState, stub
from .trace import SplitPoint, Trace


class Tail(nn.Module):
    """The part of a student behind a boundary: features to logits.

    Its parameters are exactly those between the boundary and the logits, under the student's own names (below
    ``model.``); the student itself is left as it is. Runs in eval and train mode, with the student's own dropout,
    drop-path and normalisation layers.

    Args:
        model: The student. It is copied; the weights before the boundary are not.
        split: The boundary, from ``trace.split_at(...)``.
        trace: A recorded forward of `model`.

    Shape:
        - features: one tensor for each that the boundary's modules return, batch first, in their layouts.
        - output: the student's logits [B, K].
    """

    def __init__(self, model: nn.Module, split: SplitPoint, trace: Trace) -> None:
        super().__init__()
        if getattr(model, 'grad_checkpointing', False):
            raise SFTeacherError(
                f'{type(model).__name__} has gradient checkpointing on, which walks over modules that its tail does '
                f'not have. Call student.set_grad_checkpointing(False); on the teacher it may stay on.')
        self.boundary, self.output, self._state = split.modules, split.output, TailState()
        before = _modules_before(model, split, trace)
        weights = [t for name in before for t in weights_of(model.get_submodule(name)).values()]
        inside = tuple(f'{name}.' for name in split.modules)
        self._before = [name for name in before if not name.startswith(inside)]
        self.model = copy.deepcopy(model, without_hooks(model) | {id(t): t for t in weights})
        self.answer_as(split, trace)
        _drop_unreached(self.model, split, trace)
        self.untrained = sorted(set(model.state_dict()) - set(self.model.state_dict()))    # the student's other keys
        self.norms_in_eval = norms_in_eval(model)
        self.train(model.training)

    @property
    def features(self) -> list[tuple[str, int]]:
        """Of each feature the module, and the position among the tensors that it returns."""
        return self._state.sources

    def train(self, mode: bool = True) -> 'Tail':
        """As `nn.Module.train`; batch norms that were in eval mode when the student was in train mode stay in it."""
        super().train(mode)
        keep_in_eval(self.model, self.norms_in_eval)
        return self

    def answer_as(self, split: SplitPoint, trace: Trace) -> None:
        """Empty the modules that only work before the boundary, and let them answer as they did in `trace`."""
        self.input_size = trace.input_size
        self._state.sources = []
        for name in self._before:
            stub(self.model, name, trace.calls[name][-1], trace, self._state, frozenset())
        for name in split.modules:
            stub(self.model, name, trace.calls[name][0], trace, self._state, split.nodes)
        self._state.rows = split.features(trace.calls[split.modules[0]][0])[0].shape[0]

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        state, batch = self._state, features[0].shape[0] // self._state.rows
        if state.features:
            raise RuntimeError('two forwards of one tail at a time: use DistributedDataParallel, not DataParallel')
        state.features, state.batch = features, batch
        try:
            return self._run(features[0], batch)
        except RuntimeError as error:   # met when the tail is checked at build time, not in training
            if state.dense or 'single memory location' not in str(error):
                raise
            state.dense = True
            return self._run(features[0], batch)
        finally:
            state.features = ()

    def _run(self, like: torch.Tensor, batch: int) -> torch.Tensor:
        return logits_of(self.model, self.model(like.new_zeros(()).expand(batch, *self.input_size)))

    def extra_repr(self) -> str:
        return f'after {", ".join(self.boundary)}'


def _around(split: SplitPoint) -> set[str]:
    """The boundary's modules and all that contain them."""
    return {''}.union(*({name[:i] for i, c in enumerate(name + '.') if c == '.'} for name in split.modules))


def _modules_before(model: nn.Module, split: SplitPoint, trace: Trace) -> list[str]:
    """Outermost modules that nothing behind the boundary needs."""
    around = _around(split)
    reached = [name for name, calls in trace.calls.items()
               if any(split.nodes.intersection(call.nodes) for call in calls)]
    used = {name[:i] for name in (*reached, *split.parameters) for i, c in enumerate(name + '.') if c == '.'}
    found: list[str] = []
    for name, module in model.named_modules():
        calls = trace.calls.get(name)
        if not calls or name in around or name in used or (found and name.startswith(found[-1] + '.')):
            continue
        has_parameters = next(module.parameters(), None) is not None
        if has_parameters or (len(calls) == 1 and trace.depends_on_image(calls[0])):
            found.append(name)
    return found


def _drop_unreached(model: nn.Module, split: SplitPoint, trace: Trace) -> None:
    """Parameters before the boundary that no emptied module owns (a ViT's pos_embed) become zero buffers, unsaved."""
    around = _around(split)
    for name, p in list(model.named_parameters()):
        owner, _, leaf = name.rpartition('.')
        if name not in split.parameters and (owner in around or owner not in trace.calls):
            module = model.get_submodule(owner)
            del module._parameters[leaf]
            module.register_buffer(leaf, torch.zeros_like(p.detach()), persistent=False)
