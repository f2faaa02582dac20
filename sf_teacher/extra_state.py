"""What our tasks have in common: a plain model trained with a module beside it, which checkpoints keep apart."""
from __future__ import annotations

from typing import Any, ClassVar

from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn


class PlainWithExtra(TrainingTask):
    """A task whose trainable module, a `joint`, has the plain model and what is thrown away as attributes.

    Subclasses name them. What is evaluated is the plain model; a checkpoint has its weights under ``state_dict`` and
    the extra module's in the task's own state.
    """
    joint: ClassVar[type[nn.Module]]
    plain_name: ClassVar[str]
    extra_name: ClassVar[str]

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The plain model (compiled if the task is), or its EMA."""
        module = super().get_eval_model(module, ema)
        inner = unwrap_model(module) if module is not None else None
        return getattr(inner, self.plain_name) if isinstance(inner, self.joint) else module

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The extra module, which a checkpoint keeps beside the plain model's ``state_dict``."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        return {} if module is None else {
            self.extra_name: getattr(unwrap_model(module), self.extra_name).state_dict()}

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        """Load the extra module of a checkpoint."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if state and module is not None:
            getattr(unwrap_model(module), self.extra_name).load_state_dict(state[self.extra_name], strict=strict)
