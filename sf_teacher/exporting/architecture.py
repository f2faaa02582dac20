"""What a teacher is called, and with which name and arguments timm, or a factory, builds it."""
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import nn

from ..errors import SFTeacherError
from .json_values import primitives
from .numerics import default_attention, take_attention
from .reload import CheckError, check_arguments


def name_of(model: nn.Module) -> str:
    """What to call a model in a message."""
    return (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__


def identify(teacher: nn.Module, model_args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments with which timm builds this very structure.

    timm records the arguments of `create_model` and supported changes (`reset_classifier`, `set_input_size`).

    Raises:
        SFTeacherError: timm does not build a model with the same keys and shapes.
    """
    arch = (getattr(teacher, 'pretrained_cfg', None) or {}).get('architecture')
    if not arch or not timm.is_model(arch) or not timm.model_entrypoint(arch).__module__.startswith('timm.'):
        raise SFTeacherError(
            f'{name_of(teacher)} is not a model that timm builds by name, so it cannot be exported as a timm folder; '
            'pass factory="package.module:function" with a function that builds it'
        )
    recorded = getattr(teacher, '_model_args', {})
    if recorded.get('features_only') or not getattr(teacher, 'num_classes', 0):
        raise SFTeacherError(
            f'{arch} has no classifier (features_only or num_classes=0), a teacher needs logits; give it one with '
            'reset_classifier(num_classes)'
        )
    try:
        args = primitives('model_args', timm.models.get_model_args(teacher, dict(model_args)))
        check_arguments(arch, args, 'this model or model_args')
    except (ValueError, CheckError) as e:
        raise SFTeacherError(f'{arch} was not exported: {e}') from e
    try:
        with torch.device('meta'), default_attention():
            fresh = timm.create_model(arch, **args)
    except Exception as e:
        raise SFTeacherError(f'timm does not build {arch} with {args}: {type(e).__name__}: {e}') from e
    take_attention(teacher, fresh)
    if differences := _differences(teacher.state_dict(), fresh.state_dict()):
        raise SFTeacherError(
            f'this {arch} is not the one that timm builds with {args}: {differences}. If it was built with other '
            'arguments, pass model_args={...}; if it was edited after it was built, pass '
            'factory="package.module:function" with a function that builds it'
        )
    return arch, args


def _differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], show: int = 3) -> str:
    texts = [f'{key} is in the model only' for key in found if key not in expected]
    texts += [f'{key} is missing' for key in expected if key not in found]
    texts += [
        f'{key} is {tuple(found[key].shape)}, not {tuple(expected[key].shape)}'
        for key in found if key in expected and found[key].shape != expected[key].shape
    ]
    return '; '.join(texts[:show]) + (f'; and {len(texts) - show} more' if len(texts) > show else '')


def restore_constants(teacher: nn.Module, arch: str, model_args: Mapping[str, Any]) -> None:
    """Give a teacher that was trained in half precision back the constants that its state_dict does not hold.

    Position tables and the like were rounded with the weights, but whoever loads the teacher computes them anew.
    """
    with torch.random.fork_rng(devices=[]):
        fresh = timm.create_model(arch, **model_args)
    stored = teacher.state_dict().keys()
    for name, buffer in fresh.named_buffers():
        if name not in stored:
            owner, _, leaf = name.rpartition('.')
            setattr(teacher.get_submodule(owner), leaf, buffer)


def factory_path(factory: str | Callable[..., nn.Module]) -> str:
    """ "package.module:function" of a factory that another process can import."""
    if callable(factory):
        factory = f'{factory.__module__}:{factory.__qualname__}'
    module, _, function = factory.partition(':')
    names = [*module.split('.'), *function.split('.')]
    if module == '__main__' or not all(name.isidentifier() for name in names):
        raise SFTeacherError(
            f'factory={factory!r} cannot be imported by another process; it is "package.module:function", a function '
            'on the top level of a module other than the script that is running'
        )
    return factory


def check_factory_arguments(model_args: dict[str, Any]) -> None:
    """Refuse arguments that `verify` would not hand to a factory, because a folder is not to decide them."""
    try:
        check_arguments(None, model_args, 'model_args')
    except CheckError as e:
        raise SFTeacherError(f'{e}; write them into the factory') from e
