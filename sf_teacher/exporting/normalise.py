"""The plain teacher behind whatever it was trained in: copied, identified, and asked for its logits."""
import contextlib
import copy
import dataclasses
import json
import math
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import timm
import torch
from torch import nn

from ..checks import check_size, logits_of
from ..errors import SFTeacherError
from .checkpoint import check_plain
from .numerics import default_attention, default_numerics, take_attention
from .reload import CheckError, check_arguments

PROBE_IMAGES = 4
PROBE_SEED = 0
MOST_VALUES = 2 ** 27     # of one image: the probe holds four, 2 GiB

_HOOKS = (
    '_forward_hooks', '_forward_hooks_with_kwargs', '_forward_hooks_always_called',
    '_forward_pre_hooks', '_forward_pre_hooks_with_kwargs', '_backward_hooks', '_backward_pre_hooks',
)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, in float32 on the CPU, contiguous, without hooks; its state_dict shares no memory.

    Raises:
        SFTeacherError: A float64 weight does not survive float32, or the model cannot be copied.
    """
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    if frozen := [name for name, kind in kinds.items() if kind.startswith('FrozenBatchNorm')]:
        raise SFTeacherError(
            f'{frozen[0]} is a {kinds[frozen[0]]}, which the architecture does not have: '
            'export timm.layers.unfreeze_batch_norm_2d(copy.deepcopy(model)), the same numbers in ordinary batch norm, '
            'whose logits in eval mode differ by rounding only'
        )
    # what deepcopy finds in its memo it takes as copied: the hooks' owners are never touched, gradients stay behind
    memo: dict[int, Any] = {id(getattr(m, name)): OrderedDict() for m in model.modules() for name in _HOOKS}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise SFTeacherError(f'{name} is on the meta device: the model has no weights to export')
        check_plain(name, tensor)
        # not .contiguous(), which leaves a 1x1 kernel its channels_last strides, and with them other convolutions
        plain = tensor.detach().to(
            'cpu', torch.float32 if tensor.is_floating_point() else tensor.dtype,
            copy=True, memory_format=torch.contiguous_format,
        )
        if tensor.dtype == torch.float64 and not torch.equal(plain.double(), tensor.detach().cpu()):
            raise SFTeacherError(
                f'{name} is float64 and changes in float32, in which teachers are exported; if that is no loss, '
                'export model.float()'
            )
        memo[id(tensor)] = nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain
    for module in model.modules():      # what an eval forward with gradients cached (attention biases)
        for value in vars(module).values():
            for kept in value.values() if isinstance(value, dict) else [value]:
                if isinstance(kept, torch.Tensor) and not kept.is_leaf:
                    memo.setdefault(id(kept), kept.detach().to('cpu', copy=True))
    try:
        teacher = copy.deepcopy(model, memo).eval()
    except Exception as e:
        raise SFTeacherError(f'{name_of(model)} cannot be copied for export: {type(e).__name__}: {e}') from e
    if others := [key for key, value in teacher.state_dict().items() if not isinstance(value, torch.Tensor)]:
        raise SFTeacherError(f"the state_dict of {name_of(model)} holds more than tensors: {', '.join(others)}")
    teacher.register_state_dict_post_hook(_untie)
    return teacher


def _untie(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    # safetensors refuses tensors that share memory; some architectures share them by design (coat)
    for key, tensor in state.items():
        state[key] = tensor.clone()


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


def data_config(
        teacher: nn.Module,
        input_size: Sequence[int] | None,
        mean: Sequence[float] | float | None,
        std: Sequence[float] | float | None,
) -> dict[str, list[Any]]:
    """The preprocessing to export: what was given, for the rest what the teacher's timm configuration says."""
    given: dict[str, tuple[Any, ...]] = {}
    if input_size is not None:
        given['input_size'] = check_size(
            [int(n) if isinstance(n, Integral) else n for n in input_size] if isinstance(input_size, Iterable)
            else input_size)
    given |= {key: _numbers(key, value) for key, value in (('mean', mean), ('std', std)) if value is not None}
    if not getattr(teacher, 'pretrained_cfg', None):
        if missing := [key for key in ('input_size', 'mean', 'std') if key not in given]:
            raise SFTeacherError(f"{name_of(teacher)} does not say what it was trained on: pass {', '.join(missing)}")
        resolved: dict[str, Any] = given
    else:
        given.setdefault('input_size', timm.models.get_model_input_config(teacher)['input_size'])
        try:
            resolved = timm.data.resolve_input_data_config(teacher, args=given)
        except ValueError as e:
            raise SFTeacherError(f'the preprocessing does not fit {name_of(teacher)}: {e}') from e
    size = check_size(resolved['input_size'])
    if math.prod(size) > MOST_VALUES:
        raise SFTeacherError(f'input_size={size} is {math.prod(size):.3g} values an image, of which {MOST_VALUES:.2g} '
                             'are the most: give (channels, height, width) in pixels')
    config: dict[str, list[Any]] = {'input_size': list(size)}
    for key in ('mean', 'std'):
        values = _numbers(key, resolved[key])
        if len(values) not in (1, size[0]):
            raise SFTeacherError(f'{key} must have one value or {size[0]} values, got {len(values)}: {list(values)}')
        config[key] = list(values) * (size[0] // len(values))
    return config


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    """Finite numbers, above 0 for std, from one or several."""
    try:
        values = tuple(float(number) for number in (value if isinstance(value, Iterable) else (value,)))
    except (TypeError, ValueError):
        values = ()
    if isinstance(value, str) or not values or not all(math.isfinite(n) and (key != 'std' or n > 0) for n in values):
        what = 'numbers > 0' if key == 'std' else 'finite numbers'
        raise SFTeacherError(f'{key}={value!r} must be {what}, one or one per channel, of images scaled to 0..1')
    return values


@torch.inference_mode()
def probe(teacher: nn.Module, input_size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A few fixed inputs (N, C, H, W) and the teacher's logits (N, num_classes), whatever the caller has set."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    inputs = torch.randn(PROBE_IMAGES, *input_size, generator=generator, dtype=torch.float32, device='cpu')
    try:
        with default_numerics():
            logits = teacher(inputs)
            with contextlib.suppress(SFTeacherError):   # described below
                logits = logits_of(teacher, logits)
    except Exception as e:
        raise SFTeacherError(
            f'{name_of(teacher)} does not run at input_size {tuple(input_size)}: {type(e).__name__}: {e}'
        ) from e
    num_classes = getattr(teacher, 'num_classes', None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or num_classes not in (None, logits.shape[1]):
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f'a {type(logits).__name__}'
        raise SFTeacherError(
            f"a teacher's output is one tensor of logits (N, num_classes={num_classes or '?'}), "
            f'that of {name_of(teacher)} is {what}'
        )
    if not logits.isfinite().all():
        raise SFTeacherError(f'the logits of {name_of(teacher)} are not finite: did its training diverge?')
    return inputs, logits.clone()


def class_names_of(model: nn.Module) -> list[str] | None:
    """Names of the classes in the order of the logits, as a timm configuration holds them; None where it does not."""
    names = (getattr(model, 'pretrained_cfg', None) or {}).get('label_names')
    if isinstance(names, Mapping):      # JSON makes strings of the indices
        names = [names.get(i, names.get(str(i))) for i in range(len(names))]
    if not names or None in names or len(names) != getattr(model, 'num_classes', len(names)):
        return None
    return [str(name) for name in names]


def check_class_names(names: Sequence[str], num_classes: int) -> list[str]:
    """Names of classes as a list, or an error that says what they are not."""
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise SFTeacherError(f'class_names must be one string a class, in the order of the logits; got {names!r}')
    if len(names) != num_classes:
        raise SFTeacherError(f'there are {len(names)} class_names and the teacher has {num_classes} classes')
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise SFTeacherError(f'class_names holds {", ".join(map(repr, twice[:3]))} more than once: their order would '
                             f'not say which is which')
    return list(names)


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


def metadata(value: Any) -> dict[str, Any]:
    """What is said of the training, as JSON gives it back, without what it tells of the machine: paths lose theirs."""
    return _without_paths(primitives('metadata', value))


_PATH = re.compile(     # a separator that no relative path, URL or tag has before it, and the last part of what follows
    r'(?<![\w./<])(?:file://)?(?:~[\w.-]*|[A-Za-z]:|/(?!/))(?:[^\s<>\'",;/\\]*[/\\])*([^\s<>\'",;/\\]*)')


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_paths(key): _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    whole = value.removeprefix('local-dir:')
    if PurePosixPath(whole).is_absolute() or PureWindowsPath(whole).is_absolute():      # it may hold spaces
        return PureWindowsPath(whole).name      # knows both kinds of separators
    return _PATH.sub(lambda match: match[1] if '/' in match[0] or '\\' in match[0] else match[0], value)


def primitives(name: str, value: Any) -> dict[str, Any]:
    """`value` as JSON gives it back: dataclasses as dicts with their name, paths as strings, scalars as numbers."""
    try:
        return json.loads(json.dumps(dict(value or {}), default=_to_primitive))
    except (TypeError, ValueError) as e:
        raise SFTeacherError(f'{name} must consist of numbers, strings, lists and dicts: {e}') from e


def _to_primitive(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {'name': type(value).__name__, **dataclasses.asdict(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, 'item'):
        return value.item()
    raise TypeError(f'this is a {type(value).__name__}: {value!r}')


def name_of(model: nn.Module) -> str:
    """What to call a model in a message."""
    return (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
