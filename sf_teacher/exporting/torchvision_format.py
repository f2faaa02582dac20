"""Which teachers torchvision builds too, under the same keys or under others, told by comparing and never by a list.

`torchvision_names.py` beside this file is written by ``python -m sf_teacher.exporting.torchvision_format``.
"""
import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from ..errors import SFTeacherError
from ..validation import like_it

TOLERANCE = 1e-5    # of the largest logit: the two compute the same, possibly in another order
NAMES = Path(__file__).with_name('torchvision_names.py')
AUXILIARY = {'inception_v3': {'aux_logits': False, 'init_weights': False}}  # torchvision adds a classifier
State = Mapping[str, torch.Tensor]


def shared_names() -> list[str]:
    """Architectures that timm and torchvision build under one name."""
    return [name for name in timm.list_models() if name in torchvision.models.list_models()]


def relation(arch: str) -> str:
    """Compare an architecture of this name in timm and torchvision, on weights that hide nothing.

    Returns:
        ``"same"``: keys, shapes and logits agree, so a checkpoint of one loads into the other. ``"mapped"``: shapes
        and logits agree once the keys are translated. ``"different"``: they are two models.
    """
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(arch, num_classes=7).eval()
    state, generator = model.state_dict(), torch.Generator().manual_seed(0)
    for name, tensor in state.items():  # residual branches that start at zero, statistics that start at 0 and 1
        if tensor.is_floating_point():
            noise = 0.05 * torch.randn(tensor.shape, generator=generator)
            tensor += noise.abs() if name.endswith('running_var') else noise
    inputs = torch.randn(2, 3, 96, 96, generator=generator)
    with torch.inference_mode():
        logits = model(inputs)
    try:
        found = to_torchvision(arch, state, inputs, logits)
    except SFTeacherError:
        return 'different'
    return 'same' if list(found) == list(state) else 'mapped'


def to_torchvision(
        arch: str,
        state: State,
        inputs: torch.Tensor,
        logits: torch.Tensor,
        **kwargs: Any,
) -> dict[str, torch.Tensor]:
    """Translate a timm model's weights to those of torchvision's model of the same name.

    Both list the same tensors in the same order, or they are not translated; what decides is that torchvision's model
    gives the same logits.

    Args:
        arch: Name in timm and in torchvision.
        state: The timm model's state_dict.
        inputs: Images [B, C, H, W] of the size the model is used at.
        logits: The timm model's logits for them [B, K], in eval mode.
        **kwargs: Further arguments of torchvision's model.

    Returns:
        The state_dict of ``torchvision.models.ARCH(num_classes=K)``; the keys are those of `state` where the two agree.

    Raises:
        SFTeacherError: torchvision has no such model, or it is another one.
    """
    if arch not in torchvision.models.list_models():
        raise _refused(arch, f'torchvision has no model of this name{like_it(arch, shared_names())}')
    with torch.device('meta'):
        model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=logits.shape[1], **kwargs)
    model, wanted = model.eval(), model.state_dict()
    if len(wanted) != len(state):
        raise _refused(arch, f'it has {len(state)} tensors and torchvision\'s has {len(wanted)}')
    if {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in state.items()}:
        translated = dict(state)
    else:
        translated = {}
        for (theirs, shape), (ours, tensor) in zip(((k, v.shape) for k, v in wanted.items()), state.items(),
                                                   strict=True):
            if tensor.numel() != shape.numel() or theirs.rpartition('.')[2] not in _leaves(ours):
                raise _refused(arch, f'{ours} {tuple(tensor.shape)} has no counterpart in torchvision\'s, which has '
                                     f'{theirs} {tuple(shape)} in its place')
            translated[theirs] = tensor.reshape(shape)
    model.load_state_dict(translated, assign=True)
    with torch.inference_mode():
        difference = (model(inputs) - logits).abs().max().item()
    if not difference <= TOLERANCE * logits.abs().max().item():
        raise _refused(arch, f'torchvision\'s model gives other logits on the same weights, by up to {difference:.2g}')
    return translated


def torchvision_model(arch: str, state: State, inputs: torch.Tensor, logits: torch.Tensor) -> nn.Module:
    """torchvision's model of this name with a timm model's weights, in eval mode; arguments as `to_torchvision`.

    Raises:
        SFTeacherError: torchvision has no such model, even without the auxiliary classifier that only training uses.
    """
    kwargs = AUXILIARY.get(arch, {})
    translated = to_torchvision(arch, state, inputs, logits, **kwargs)
    model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=logits.shape[1], **kwargs)
    model.load_state_dict(translated)
    return model.eval()


def _leaves(key: str) -> tuple[str, ...]:
    """Names that a tensor may have on torchvision's side."""
    leaf = key.rpartition('.')[2]
    return ('layer_scale',) if leaf == 'gamma' else (leaf,)


def _refused(arch: str, reason: str) -> SFTeacherError:
    from .torchvision_names import MAPPED, SAME

    return SFTeacherError(
        f"{arch} cannot be exported in torchvision's format: {reason}. That format exists for "
        f"{', '.join(SAME + MAPPED)}. Export without it: the folder loads in timm, and in torchdistill under the key "
        f"'sf_teacher.timm_teacher'")


def is_same(arch: str | None, state: State, inputs: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether torchvision's model of this name takes this very teacher's weights as they are, and gives its logits."""
    if arch is None or arch not in torchvision.models.list_models():
        return False
    try:
        return list(to_torchvision(arch, state, inputs, logits)) == list(state)
    except SFTeacherError:
        return False


def _generate() -> Iterator[str]:
    relations = {name: relation(name) for name in shared_names()}
    yield f'"""Written by `python -m {__spec__.name}` with timm {timm.__version__} and torchvision ' \
          f'{torchvision.__version__.partition("+")[0]}.\n\nDo not edit."""\n'
    for wanted, comment in (('same', 'keys, shapes and logits agree'), ('mapped', 'logits agree, keys do not')):
        yield f'\n# {comment}\n{wanted.upper()} = (\n'
        yield from (f"    '{name}',\n" for name, found in relations.items() if found == wanted)
        yield ')\n'


if __name__ == '__main__':
    argparse.ArgumentParser(description='Write the names that torchvision and timm share.').parse_args()
    NAMES.write_text(''.join(_generate()))
