"""Users' hooks, which an exported teacher does not have."""
from typing import Any

import torch
from torch import nn

from ..checks import logits_of
from ..errors import SFTeacherError
from .architecture import name_of
from .numerics import default_numerics

HOOKS = (
    '_forward_hooks', '_forward_hooks_with_kwargs', '_forward_hooks_always_called',
    '_forward_pre_hooks', '_forward_pre_hooks_with_kwargs', '_backward_hooks', '_backward_pre_hooks',
)


def check_hooks(model: nn.Module, teacher: nn.Module, inputs: torch.Tensor, logits: torch.Tensor) -> None:
    """Refuse a model whose hooks change its logits, which its plain copy does not have.

    Args:
        model: As it was given.
        teacher: Its plain copy, which runs with the model's forward hooks for once.
        inputs: Images [N, C, H, W].
        logits: Of the plain copy for them [N, K].

    Raises:
        SFTeacherError: Names modules that have hooks.
    """
    found = [name for name, m in model.named_modules() if m._forward_hooks or any(
        not makes_weights(hook) for hook in m._forward_pre_hooks.values())]
    if not found:
        return
    names = [name for name in HOOKS if name.startswith('_forward')]
    plain = [{name: getattr(m, name) for name in names} for m in teacher.modules()]
    try:
        for given, copied in zip(model.modules(), teacher.modules(), strict=True):
            vars(copied).update({name: getattr(given, name) for name in names})
        with torch.inference_mode(), default_numerics():
            changed = not torch.allclose(logits_of(model, teacher(inputs)), logits, equal_nan=True)
    except Exception:
        changed = True
    finally:
        for copied, own in zip(teacher.modules(), plain, strict=True):
            vars(copied).update(own)
    if changed:
        raise SFTeacherError(
            f'forward hooks of {name_of(model)} (at {", ".join(map(repr, found[:3]))}) change its logits, and what is '
            f'exported has no hooks. Remove them (handle.remove()), or write what they do into a module and export '
            f'with factory=')


def makes_weights(hook: Any) -> bool:
    """Whether a pre-hook is that of the old weight_norm or spectral_norm."""
    return type(hook).__module__.startswith('torch.nn.utils.')
