"""A checkpoint of whatever trained the teacher, read without executing anything in it, into the plain model."""
import argparse
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ..errors import SFTeacherError, first_line

_logger = logging.getLogger(__name__)

# where trainers put the weights, averaged ones first
_CONTAINERS = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema', 'state_dict', 'model', 'model_state_dict',
               'module', 'net')
_WRAPPERS = ('_orig_mod.', '_fsdp_wrapped_module.', '_checkpoint_wrapped_module.')     # inside of keys
_COUNTER = 'num_batches_tracked'    # in batch norm's state since torch 0.4.1, and not in that of frozen batch norm


def load_checkpoint(model: nn.Module, checkpoint: Any, path: Path, prefix: str | None = None) -> None:
    """Load the weights of a plain model, whatever it was trained in.

    They may be those of timm's train script, of this package, of a bare `state_dict`, of Lightning or any wrapper that
    puts one prefix before the names, of `torch.optim.swa_utils.AveragedModel` or of a task's `state_dict()`. Averaged
    weights go first.

    Args:
        model: Gets the weights.
        checkpoint: What `read_file` gave.
        path: The file, for messages.
        prefix: Which of several models in the checkpoint, e.g. ``'teacher.'``; by default there is one, or one of
            averaged weights.

    Raises:
        SFTeacherError: It holds another model, or several; `model` has not been changed.
    """
    state = _clean(checkpoint, path)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    chosen = _choose_prefix(state, wanted, prefix, path)
    found = {name.removeprefix(chosen): tensor for name, tensor in state.items() if name.startswith(chosen)}
    _compare(found, wanted, chosen, type(model).__name__, path)
    if others := len(state) - len(found):
        _logger.info('%s: %d tensors under %r are the model, %d others are not', path, len(found), chosen, others)
    model.load_state_dict(found)


def read_file(path: Path) -> Any:
    """What `torch.save` or safetensors wrote, of tensors, plain values and timm's arguments only.

    Raises:
        SFTeacherError: There is no such file, it is damaged, or holds anything else.
    """
    if path.is_dir():
        raise SFTeacherError(f'{path} is a folder. If it is a sharded checkpoint, make one file of it first: torch.'
                             f'distributed.checkpoint.format_utils.dcp_to_torch_save({str(path)!r}, FILE)')
    if not path.is_file():
        raise SFTeacherError(f'there is no checkpoint at {path}')
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):    # of timm's train script
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:      # a damaged file ends the reader in any way
        raise SFTeacherError(f'{path} cannot be loaded: {_reason(path, e)}') from e


def _reason(path: Path, error: Exception) -> str:
    """Why a file was not read, by the names of what it holds besides tensors."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:
        names = []
    sharded = [name for name in names if 'DTensor' in name or 'ShardedTensor' in name]
    quantised = [name for name in names if name.startswith(('torchao', 'bitsandbytes'))]
    if sharded:
        return f'it holds shards of tensors ({sharded[0]}). {_GATHER}'
    if quantised:
        return f'it holds a quantised model ({quantised[0]}). Save and export the float model'
    if names:
        return (f'it holds more than tensors and plain values ({", ".join(names[:3])}), and loading it could run '
                f'foreign code. Where you trust it, save the weights alone: torch.save(torch.load(FILE, weights_only='
                f'False)["state_dict"], OTHER)')
    detail = first_line(error)
    return f'it is damaged, or no file of torch.save or safetensors ({detail})'


_GATHER = ('Gather them in training, on all ranks, before saving: torch.distributed.checkpoint.state_dict.'
           'get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))')


def _clean(checkpoint: Any, path: Path) -> dict[str, torch.Tensor]:
    """The mapping of names to tensors that a checkpoint holds, without what wrappers add inside of names."""
    state = checkpoint
    if isinstance(state, Mapping):
        state = next((state[name] for name in _CONTAINERS if _holds_tensors(state.get(name))), state)
    items = state if isinstance(state, Mapping) else {}
    tensors = {name: tensor for name, tensor in items.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        what = f'{type(state).__name__} of {", ".join(map(str, list(items)[:5])) or "nothing"}'
        raise SFTeacherError(f'{path} holds no state_dict but a {what}. The weights may be there directly, or under '
                             f'{", ".join(map(repr, _CONTAINERS))}')
    for name, tensor in tensors.items():
        check_plain(name, tensor)
    cleaned = {}
    for name, tensor in tensors.items():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, '')
        cleaned[name] = tensor
    return cleaned


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, torch.Tensor) for each in value.values())


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Refuse a shard or a quantised tensor, from which no plain weight can be made here.

    Raises:
        SFTeacherError: Says what it is, and what to do before.
    """
    kind = type(tensor)
    if kind.__name__ in ('DTensor', 'ShardedTensor', 'FlatParameter'):
        raise SFTeacherError(f'{name} is a {kind.__name__}, a part of a tensor that several processes share. {_GATHER}')
    plain = kind in (torch.Tensor, nn.Parameter) or kind.__module__.startswith('torch.nn.')
    if tensor.is_quantized or not plain or (tensor.dtype.is_floating_point and tensor.dtype.itemsize < 2):
        raise SFTeacherError(f'{name} is quantised (a {kind.__module__}.{kind.__name__} of {tensor.dtype}): a teacher '
                             f'is exported with its float weights, export the model from before the quantisation')


def _choose_prefix(state: Collection[str], wanted: Collection[str], prefix: str | None, path: Path) -> str:
    """What stands before the names of the model in the checkpoint; where none fits, before most of them."""
    if prefix is not None:
        if not any(name.startswith(prefix) for name in state):
            shown = ', '.join(list(state)[:3])
            raise SFTeacherError(f'nothing in {path} begins with prefix={prefix!r}; its names are {shown}, ...')
        return prefix
    needed = [name for name in wanted if not name.endswith(_COUNTER)]
    last = max(needed, key=lambda name: name.count('.'))
    candidates = {name.removesuffix(last) for name in state if name == last or name.endswith('.' + last)}
    complete = [p for p in sorted(candidates) if all(p + name in state for name in needed)]
    if '' in complete:
        return ''
    averaged = [p for p in complete if {'ema', 'averaged'} & set(re.split(r'[._]', p))]
    chosen = averaged if len(averaged) == 1 else complete
    if len(chosen) > 1:
        raise SFTeacherError(f'{path} holds {len(chosen)} such models, under {", ".join(map(repr, chosen))}: say which '
                             f'one by prefix (--prefix)')
    if chosen:
        return chosen[0]
    tops = {'', *(name[:name.index('.') + 1] for name in state if '.' in name)}
    return max(sorted(tops), key=lambda p: sum(p + name in state for name in needed))


def _compare(
        found: Mapping[str, torch.Tensor],
        wanted: Mapping[str, torch.Tensor],
        prefix: str,
        model: str,
        path: Path,
) -> None:
    """Refuse another model's weights, in three lines."""
    missing = [name for name in wanted if name not in found and not name.endswith(_COUNTER)]
    extra = [name for name in found if name not in wanted]
    other = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if not (missing or extra or other):
        return
    kinds = [f'{len(names)} {kind} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
             for kind, names in (('missing', missing), ('of no use', extra)) if names]
    kinds += [f'{len(other)} of another shape (size mismatch for {other[0]}: {tuple(found[other[0]].shape)}, in the '
              f'model {tuple(wanted[other[0]].shape)})'] if other else []
    raise SFTeacherError(
        f'{path} does not hold the weights of this {model}, which has {len(wanted)} tensors: {"; ".join(kinds)}.\n'
        f'In the checkpoint are {len(found)}{f" under {prefix!r}" if prefix else ""}: {", ".join(list(found)[:3])}, '
        f'...; in the model {", ".join(list(wanted)[:3])}, ...\n'
        f'Was it trained as another model, with other classes or arguments? Give what it was trained as '
        f'(--model, --num-classes, --model-args)')
