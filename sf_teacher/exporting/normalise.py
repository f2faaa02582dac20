"""The plain teacher behind whatever it was trained in: copied, and asked for its preprocessing and its logits."""
import contextlib
import copy
import logging
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import timm
import torch
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..checks import check_size, logits_of
from ..errors import SFTeacherError
from .architecture import name_of
from .checkpoint import check_plain
from .hooks import HOOKS, makes_weights
from .numerics import default_numerics

_logger = logging.getLogger(__name__)

PROBE_IMAGES = 4
PROBE_SEED = 0
MOST_VALUES = 2 ** 27     # of one image: the probe holds four, 2 GiB

_WRAPPED_AS = {     # known by their type: a model of one's own may have a child of the same name
    ModelEma: 'ema', ModelEmaV2: 'module', ModelEmaV3: 'module', AveragedModel: 'module', DataParallel: 'module',
    DistributedDataParallel: 'module', OptimizedModule: '_orig_mod',
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of averaging, compilation and data parallelism."""
    for kind, name in _WRAPPED_AS.items():
        if isinstance(model, kind):
            return unwrapped(getattr(model, name))
    return model


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, in float32 on the CPU, contiguous, without users' hooks; its state_dict shares no memory.

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
    memo: dict[int, Any] = {id(getattr(m, name)): OrderedDict() for m in model.modules() for name in HOOKS}
    memo |= {id(m._forward_pre_hooks): OrderedDict(     # those of the old weight_norm and spectral_norm make the weight
        (i, hook) for i, hook in m._forward_pre_hooks.items() if makes_weights(hook))
        for m in model.modules()}
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
    if max(given.get('mean', (0.,))) > 1:
        _logger.warning('mean=%s lies above 1, and who uses the teacher scales images to 0..1 before it is subtracted: '
                        'divide mean and std by 255 if they are of pixels', mean)
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
