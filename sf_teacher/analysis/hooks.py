"""`sf-teacher inspect TEACHER --hooks`: the modules that feature methods hook, and what torchvision's are called here.

Toolboxes name a teacher's features by module paths, and their configs are written for torchvision's ResNets. What a
path is called in another model is found by what the modules compute, never by a list of names.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..checks import check_size
from ..errors import SFTeacherError
from ..factory import create_model
from ..split.boundaries import Boundary, Size, default_input_size, widest_stream
from ..split.pairing import stage_ends
from ..split.teacher_taps import teacher_boundaries
from ..split.trace import hooked
from .columns import columns

STAGES, POOLED, CLASSIFIER = ('layer1', 'layer2', 'layer3', 'layer4'), 'avgpool', 'fc'
USES = {'stage': 'AT, FitNets, FT, VID, SPKD, ICKD', 'activation': 'KR (before the stage\'s last activation)',
        'pooled': 'CRD, SSKD, PKT, RKD, CCKD', 'classifier': 'KD, and the feature before it'}
_ACTIVATIONS = ('torch.nn.modules.activation', 'timm.layers.activations')


@dataclass(frozen=True)
class Hook:
    """A place to hook.

    Args:
        torchvision: The path of its counterpart in torchvision's ResNets, or in torchvision's model of this name.
        path: Module path here.
        io: Whether its ``"input"`` or its ``"output"`` is meant.
        shape: Of the tensor, without the batch.
        use: Which methods hook it.
    """
    torchvision: str
    path: str
    io: str
    shape: tuple[int, ...]
    use: str = ''


@dataclass(frozen=True)
class _Trace:
    """A tensor as compared with others: its shape, and some of its values in order, whatever their shape."""
    shape: tuple[int, ...]
    numel: int
    sample: torch.Tensor

    @classmethod
    def of(cls, value: Any) -> _Trace | None:
        while isinstance(value, tuple) and len(value) == 1:
            value, = value
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return None
        flat = value.detach().flatten()
        return cls(tuple(value.shape[1:]), flat.numel(), flat[::max(flat.numel() // 256, 1)].clone())

    def same(self, other: _Trace) -> bool:
        return self.numel == other.numel and torch.allclose(self.sample, other.sample, rtol=1e-4, atol=1e-5)


class _Run:
    """One pass in eval mode: what went into and came out of each module, the last time it was called."""

    def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
        self.modules = dict(model.named_modules())
        self.io: dict[str, dict[str, _Trace]] = {}
        modes: list[tuple[nn.Module, bool]] = [(m, m.training) for m in model.modules()]
        try:
            with torch.inference_mode(), hooked(model, self._keep):
                self.logits = model.eval()(x)
        finally:
            for module, training in modes:
                module.training = training

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """As torchdistill's hooks: after an in-place module."""
        found = {'input': _Trace.of(args), 'output': _Trace.of(output)}
        self.io[name] = {io: trace for io, trace in found.items() if trace is not None}

    def equals(self, trace: _Trace, like: str = '') -> list[str]:
        """Modules whose output this is: of the same name, then of the same shape, then the outermost."""
        found = [name for name, io in self.io.items() if 'output' in io and io['output'].same(trace)]
        return sorted(found, key=lambda n: (n != like, self.io[n]['output'].shape != trace.shape, n.count('.')))


def find_hooks(model: Any, size: Size) -> list[Hook]:
    """The places that torchvision's ResNets call ``layer1`` to ``layer4``, ``layer1.-1.relu`` ..., ``avgpool``, ``fc``.

    Args:
        model: A timm model.
        size: [C, H, W] of the images.

    Returns:
        One place a counterpart, as far as the model has them as modules.
    """
    run = _Run(model, torch.randn(1, *size, generator=torch.Generator().manual_seed(0)))
    boundaries = [b for b in widest_stream(teacher_boundaries(model, size)[0]) if b.name in run.io]
    stages = dict(zip(reversed(STAGES), reversed(_four(boundaries)), strict=False))
    found = [Hook(word, stages[word].name, 'output', run.io[stages[word].name]['output'].shape, USES['stage'])
             for word in STAGES if word in stages and 'output' in run.io[stages[word].name]]
    return [*found, *(_before_activation(run, hook) for hook in found), *_head(run, model)]


def _four(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """Four stages, or as many as there are."""
    if len({b.size for b in boundaries}) == 1:
        return [boundaries[max(round(len(boundaries) * k / 4), 1) - 1] for k in (1, 2, 3, 4)]
    return stage_ends(boundaries)[-4:]


def _before_activation(run: _Run, stage: Hook) -> Hook:
    """What goes into the activation whose output is the stage's; the stage's output where there is none."""
    for name in run.equals(run.io[stage.path]['output']):
        if name.startswith(f'{stage.path}.') and type(run.modules[name]).__module__.startswith(_ACTIVATIONS):
            return Hook(f'{stage.torchvision}.-1.relu', name, 'input', run.io[name]['input'].shape, USES['activation'])
    return Hook(f'{stage.torchvision}.-1.relu', stage.path, 'output', stage.shape,
                'KR (the stage does not end with an activation)')


def _head(run: _Run, model: Any) -> Iterator[Hook]:
    classifier = model.get_classifier() if hasattr(model, 'get_classifier') else None
    name = next((n for n, m in run.modules.items() if m is classifier and n in run.io), None)
    if name is None or set(run.io[name]) != {'input', 'output'}:
        return
    pooled = run.io[name]['input']
    same, called = run.equals(pooled), list(run.io)
    maps = [n for n in same if len(run.io[n]['output'].shape) == 3]
    if same:    # the last map of one pixel, as the stage before it may have one too
        path = max(maps, key=called.index) if maps else same[0]
        yield Hook(POOLED, path, 'output', run.io[path]['output'].shape, USES['pooled'])
    yield Hook(CLASSIFIER, name, 'input', pooled.shape, USES['pooled'])
    yield Hook(CLASSIFIER, name, 'output', run.io[name]['output'].shape, USES['classifier'])


def torchvision_paths(model: Any, arch: str, size: Size) -> list[Hook]:
    """Each module path of torchvision's model of this name, and the module here that computes the same.

    Returns:
        Paths of at most two levels that have a counterpart; empty where torchvision has no such model.
    """
    from ..exporting.torchvision_format import torchvision_model

    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    ours = _Run(model, x)
    try:
        twin = torchvision_model(arch, model.state_dict(), x, ours.logits)
    except SFTeacherError:
        return []
    found = []
    for name, io in _Run(twin, x).io.items():
        if name.count('.') < 2 and 'output' in io and (here := ours.equals(io['output'], like=name)):
            found.append(Hook(name, here[0], 'output', ours.io[here[0]]['output'].shape))
    order = list(dict(twin.named_modules()))
    return sorted(found, key=lambda hook: order.index(hook.torchvision))


def hooks(teacher: str, *, num_classes: int | None = None, input_size: Size | None = None) -> dict[str, Any]:
    """Describe where a teacher's features can be hooked.

    Args:
        teacher: timm name.
        num_classes: As in `wrap`.
        input_size: As in `wrap`.

    Returns:
        Plain values, as ``sf-teacher inspect --hooks --json`` prints them.

    Raises:
        SFTeacherError: As `wrap`.
    """
    model: Any = create_model(teacher, 'teacher', num_classes, input_size, {'pretrained': False}).eval()
    size = check_size(input_size or default_input_size(model))
    noise = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():     # normalisations of a new model change nothing, and blocks add 0
        if tensor.is_floating_point():
            change = 0.1 * torch.randn(tensor.shape, generator=noise)
            tensor += change.abs() if name.endswith('running_var') else change
    arch = (model.pretrained_cfg or {}).get('architecture', '')
    return {'teacher': teacher, 'input_size': list(size),
            'hooks': [asdict(hook) for hook in find_hooks(model, size)],
            'torchvision': [asdict(hook) for hook in torchvision_paths(model, arch, size)]}


def render_hooks(result: dict[str, Any]) -> str:
    """The description as text."""
    lines = [f'{result["teacher"]}, input {"x".join(map(str, result["input_size"]))}: modules to hook, and what '
             f'torchvision\'s ResNets call them', '']
    rows = [('torchvision', 'here', 'of it', 'shape', 'hooked by')]
    rows += [(h['torchvision'], h['path'], h['io'], 'x'.join(map(str, h['shape'])), h['use']) for h in result['hooks']]
    lines += columns(rows)
    if result['torchvision']:
        lines += ['', 'every module of torchvision\'s model of this name:', '']
        lines += columns([(h['torchvision'], h['path'], 'x'.join(map(str, h['shape'])))
                           for h in result['torchvision']])
    return '\n'.join(lines)


def nearest(model: Any, path: str) -> str:
    """What to hook in place of a path that a model does not have.

    Args:
        model: The model, here a timm model or torchvision's.
        path: The path, as toolboxes write it: ``layer4.-1.relu`` counts from the end.

    Returns:
        A sentence.
    """
    names, said = [name for name, _ in model.named_modules() if name], []
    found: list[Hook] = []
    with suppress(Exception):   # not a timm model, or one that does not run on its default size
        found = find_hooks(model, check_size(default_input_size(model)))
    for here in [hook for hook in found if hook.torchvision == path][:1]:
        said.append(f'what torchvision\'s ResNets call so is the {here.io} of {here.path!r} here')
    parent, _, last = path.rpartition('.')
    children = [n for n, _ in model.get_submodule(parent).named_children()] if parent in names else []
    close = [f'{parent}.{n}' for n in difflib.get_close_matches(last, children, 3, 0.3)]
    close = close or difflib.get_close_matches(path, names, 4, 0.4)
    close = close or [n for n, _ in model.named_children()]
    said.append(f'near it are {", ".join(map(repr, close))}')
    return '; '.join(said)
