"""A plain model and a method's module in one forward, so that distributed training synchronises both."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from .errors import SFTeacherError
from .methods.base import Criterion, Method, Progress, Step
from .split.boundaries import Boundary
from .split.clones import keep_in_eval, norms_in_eval
from .split.tapping import forward_with_maps


class JointModel(nn.Module):
    """What a task trains.

    Args:
        model: The plain model, which stays as it is.
        extra: The method's module, or None.
        method: The method.
        progress: Epoch and step, kept up to date by the task.
        num_classes: K, of the logits that the method was built for.

    Shape:
        - input: images [B, C, H, W], and in the student's phase the frozen teacher's logits [B, K].
        - output: logits [B, K], the maps tapped, and what the method's module returned (None where it is not run).
    """

    def __init__(
            self,
            model: nn.Module,
            extra: nn.Module | None,
            method: Method,
            progress: Progress,
            num_classes: int,
    ) -> None:
        super().__init__()
        self.model, self.extra, self.method, self.progress = model, extra, method, progress
        self.num_classes, self.norms_in_eval = num_classes, norms_in_eval(model)
        if extra is not None and not method.active:
            extra.requires_grad_(False)

    def train(self, mode: bool = True) -> JointModel:
        """As `nn.Module.train`; batch norms that were in eval mode when the model was in train mode stay in it."""
        super().train(mode)
        keep_in_eval(self.model, self.norms_in_eval)
        return self

    @property
    def boundaries(self) -> Sequence[Boundary]:
        """Where the plain model is tapped."""
        return getattr(self.extra, 'boundaries', ()) if self.method.active else ()

    def forward(
            self,
            input: torch.Tensor,
            reference: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor], Any]:
        logits, maps = forward_with_maps(self.model, self.boundaries, input)
        if logits.shape[-1] != self.num_classes:
            raise SFTeacherError(f'{type(self.model).__name__} gives {logits.shape[-1]} logits now, and '
                                 f'{self.num_classes} when the task was made: its classifier was changed. Change it '
                                 f'first (reset_classifier), then make the task and the optimizer')
        if not self.method.active:
            return logits, maps, None
        return logits, maps, self.method.run(self.step(input, logits, maps, reference=reference))

    def step(
            self,
            input: torch.Tensor,
            logits: torch.Tensor,
            maps: list[torch.Tensor],
            output: Any = None,
            target: Any = None,
            criterion: Criterion | None = None,
            reference: torch.Tensor | None = None,
            sample_index: torch.Tensor | None = None,
    ) -> Step:
        """One step as the method's terms see it."""
        return Step(input, target, self.model, logits, maps, self.extra, output, criterion, self.progress, reference,
                    sample_index)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the model and the students exclude from weight decay."""
        return {f'{path}.{name}' if path else name
                for path, module in self.named_modules() if module is not self and hasattr(module, 'no_weight_decay')
                for name in module.no_weight_decay()}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float, ...]]:
        """The plain model's layers for layer-wise learning rates; the method's module counts as its last layer."""
        model: Any = self.model
        if not hasattr(model, 'group_matcher'):
            return lambda name: (0,)
        layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values())
        return lambda name: (layers.get(name.removeprefix('model.'), last),)
