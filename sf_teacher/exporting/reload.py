"""Reload an exported teacher the way its users will: a script for a fresh process, in which sf_teacher is blocked.

It imports torch, timm and safetensors only. `verify.py` starts it.
"""
import argparse
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import platform
import sys
from collections.abc import Collection, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, get_args, get_type_hints

import safetensors
import safetensors.torch
import timm
import torch
from torch import nn

WEIGHTS = 'model.safetensors'
TEACHER = 'teacher.pth'
CONFIG = 'config.json'
PROBE = 'probe.safetensors'
TORCHVISION = 'torchvision.pth'
ZOO = 'ckpt_epoch_240.pth'      # the name that RepDistiller and mdistiller give it

# what timm's factory and its configurations load, fetch or write by; a folder may say none of it
LOADING = frozenset(inspect.signature(timm.create_model).parameters) - {'kwargs'}
SOURCES = frozenset({'url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'custom_load'})
_BY_FAMILY = frozenset({'bn_momentum', 'bn_eps', 'use_naflex'})  # taken by a family's builder for its constructor
_PLACEMENT = frozenset({'device', 'dtype'})


class CheckError(Exception):
    """An exported folder is not what it claims to be; `about` is "files", "build", "config" or "logits"."""

    def __init__(self, about: str, reason: str) -> None:
        super().__init__(reason)
        self.about = about


def versions() -> dict[str, str]:
    """What computed a set of logits: torch, timm, Python and the machine."""
    return {
        'torch': str(torch.__version__),
        'timm': timm.__version__,
        'python': platform.python_version(),
        'platform': platform.platform(),
    }


def sha256(path: Path) -> str:
    """Digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@functools.lru_cache
def constructor_arguments(arch: str) -> frozenset[str]:
    """Names of the arguments that say how an architecture is built, from the signature of its constructor."""
    with torch.device('meta'):
        classes = type(timm.create_model(arch)).__mro__
    names: set[str] = set(_BY_FAMILY)
    for cls in classes:
        if '__init__' not in vars(cls):
            continue
        constructor: Any = vars(cls)['__init__']
        hints, parameters = get_type_hints(constructor), inspect.signature(constructor).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names.add(parameter.name)
                for hint in (hints.get(parameter.name), *get_args(hints.get(parameter.name))):
                    if dataclasses.is_dataclass(hint):      # a configuration whose fields **kwargs replace
                        names |= {field.name for field in dataclasses.fields(hint)}
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
            break       # what it does not name reaches no other constructor
    return frozenset(names) - LOADING - SOURCES - _PLACEMENT - {'self'}


def check_arguments(arch: str | None, model_args: Any, where: str) -> None:
    """Refuse what a folder may not decide: another builder than timm's own, and arguments that do not build a model.

    Args:
        arch: timm's name; None for a model that a factory builds, whose arguments are its own.
        model_args: The arguments, from JSON.
        where: The file that holds them, for the message.

    Raises:
        CheckError: Says which argument it is.
    """
    if not isinstance(model_args, dict):
        raise CheckError('config', f'model_args in {where} are {model_args!r}, no mapping of names to values')
    if arch is None:
        refused, of = sorted(model_args.keys() & (LOADING | SOURCES)), 'a factory may be given by a folder'
    else:
        if not isinstance(arch, str) or not timm.is_model(arch) \
                or not timm.model_entrypoint(arch).__module__.startswith('timm.'):
            raise CheckError('config', f'{where} asks for the architecture {arch!r}, which timm {timm.__version__} '
                                       f'does not build')
        refused, of = sorted(model_args.keys() - constructor_arguments(arch)), f"{arch}'s constructor takes"
    if refused:
        raise CheckError(
            'config',
            f'{where} gives {", ".join(f"{name}={model_args[name]!r}" for name in refused)}, no argument that {of}: '
            'they say how a model is built, never what is loaded, fetched or written',
        )


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of an exported folder, refused if it asks timm for more than building a model.

    Raises:
        CheckError: See `check_arguments`; or it cannot be read.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckError('files', f'{CONFIG} cannot be read: {e}. Give a folder that sf_teacher exported') from e
    if not isinstance(config, dict) or not isinstance(config.get('pretrained_cfg', {}), dict):
        raise CheckError('config', f"{CONFIG} is no model's configuration")
    if 'architecture' in config:
        check_arguments(config['architecture'], config.get('model_args', {}), CONFIG)
    for name, value in {**config, **config.get('pretrained_cfg', {})}.items():
        if name in SOURCES and value:
            raise CheckError('config', f'{CONFIG} gives {name}={value!r}: the weights of a folder are its own')
    return config


def import_factory(factory: str, model_args: dict[str, Any]) -> nn.Module:
    """Build a model through `factory`, "package.module:function"."""
    module, _, name = factory.partition(':')
    function: Any = importlib.import_module(module)
    for part in name.split('.'):
        function = getattr(function, part)
    return function(**model_args)


def check(folder: Path, tolerance: float, factory: str | None = None) -> dict[str, Any]:
    """Reload an exported teacher and compare it with what `probe.safetensors` says of it.

    Args:
        folder: The exported folder.
        tolerance: Largest difference of logits allowed, as a fraction of the largest stored logit; 0 is bit-equal.
        factory: Who builds a teacher that timm cannot build by name. Never taken from the folder itself, which may
            come from anywhere.

    Returns:
        A report of primitives.

    Raises:
        CheckError: The folder does not give back the teacher that was exported.
    """
    facts, inputs, expected = read_probe(folder)
    unchecked = check_files(folder, facts)
    check_arguments(facts['arch'], facts['model_args'], PROBE)
    saved = torch.load(folder / TEACHER, map_location='cpu', weights_only=True)['model']
    if facts['arch']:
        model = _load_timm(folder, facts)
        _check_tensors(safetensors.torch.load_file(folder / WEIGHTS), saved, f'{TEACHER} and {WEIGHTS}')
    else:
        if factory is None:
            raise CheckError(
                'build',
                f"this teacher is built by {facts['factory']!r}, not by timm; pass factory={facts['factory']!r} "
                '(on the command line --factory) to let that code run here',
            )
        model = import_factory(factory, facts['model_args'])
        model.load_state_dict(saved)
    _check_tensors(model.state_dict(), saved, f'the reloaded teacher and {TEACHER}')

    with torch.inference_mode():
        output = model.eval()(inputs)
    logits = output[0] if isinstance(output, tuple) else output     # (logits, features by name), as mdistiller's nets
    if logits.shape != expected.shape:
        raise CheckError('logits', f'logits are {tuple(logits.shape)}, exported were {tuple(expected.shape)}')
    difference, largest = float((logits - expected).abs().max()), float(expected.abs().max())
    bit_equal = torch.equal(logits, expected)
    if not bit_equal and not difference <= tolerance * largest:
        raise CheckError(
            'logits',
            f"the reloaded teacher's logits differ by up to {difference:.3g} from those exported (largest {largest:.3g}"
            f', tolerance {tolerance:g} of it)',
        )
    config = timm.data.resolve_model_data_config(model) if facts['arch'] else {}
    return {
        **{key: facts[key] for key in ('arch', 'factory', 'num_classes', 'input_size', 'mean', 'std')},
        'class_names': facts.get('class_names'),
        **{key: config.get(key) for key in ('interpolation', 'crop_pct')},
        'bit_equal': bit_equal,
        'unchecked': unchecked,
        'max_difference': difference,
        'largest_logit': largest,
        'tolerance': tolerance,
        'exported_with': facts['versions'],
        'checked_with': versions(),
    }


def read_probe(folder: Path) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """What `probe.safetensors` says of the teacher, its inputs and its logits."""
    if not folder.is_dir():
        raise CheckError('files', 'there is no such folder')
    if not (folder / PROBE).is_file():
        raise CheckError('files', f'{PROBE} is missing from {folder}: not a folder that sf_teacher exported')
    try:
        with safetensors.safe_open(folder / PROBE, 'pt') as file:
            return json.loads(file.metadata()['sf_teacher']), file.get_tensor('inputs'), file.get_tensor('logits')
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as e:
        raise CheckError('files', f'{PROBE} cannot be read, it is truncated or another file: {e}') from e


def check_files(folder: Path, facts: dict[str, Any], names: Collection[str] | None = None) -> list[str]:
    """Compare `config.json` field by field and files by their SHA-256 with what the probe says of them.

    Args:
        folder: The exported folder.
        facts: From the probe.
        names: The files to compare; by default all.

    Returns:
        What cannot be checked, because an earlier version of sf_teacher exported the folder.

    Raises:
        CheckError: Says which file, and which field of `config.json`, is not what was exported.
    """
    digests = facts['sha256']
    if strange := sorted(digests.keys() - {CONFIG, WEIGHTS, TEACHER, TORCHVISION, ZOO}):
        raise CheckError('files', f'{PROBE} speaks of {", ".join(map(repr, strange))}, which no export holds')
    for name in (CONFIG, *digests):
        if not (folder / name).is_file():
            raise CheckError('files', f'{name} is missing from {folder}')
    config = read_config(folder)
    described = {key: value for key, value in config.items() if key != 'sf_teacher'}
    for name, found, exported in _differences(described, facts.get('config', described)):
        raise CheckError('config', f'{CONFIG} gives {name} {found}, exported was {exported}. Put that back, or export '
                                   f'the teacher anew as you want it')
    for name, digest in digests.items():
        if (names is None or name in names) and sha256(folder / name) != digest:
            raise CheckError('files', f'{name} is truncated or changed: its SHA-256 is not that of the exported file')
    if CONFIG in digests:
        return []
    return [f'it was exported by sf_teacher {facts["sf_teacher_version"]}, which kept no checksum of {CONFIG}: whether '
            f'its interpolation, crop or arguments are as exported cannot be checked. To be sure, export it anew']


def check_finite(folder: Path) -> None:
    """Refuse weights that are NaN or infinite."""
    if not (folder / WEIGHTS).is_file():
        return
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError) as e:
        raise CheckError('files', f'{WEIGHTS} cannot be read, it is truncated or another file: {e}') from e
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckError('files', f'{name} in {WEIGHTS} is not finite')


def _differences(found: Any, exported: Any, name: str = '') -> Iterator[tuple[str, Any, Any]]:
    """Names of the fields in which two JSON values differ, with both values."""
    if not (isinstance(found, dict) and isinstance(exported, dict)):
        if found != exported:
            yield name, found, exported
        return
    for key in [*found, *(key for key in exported if key not in found)]:
        yield from _differences(found.get(key, 'nothing'), exported.get(key, 'nothing'), key)


def _check_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], names: str) -> None:
    if keys := sorted(left.keys() ^ right.keys()):
        raise CheckError('build', f"{names} have different keys: {', '.join(keys[:5])}")
    for key, tensor in left.items():
        if not torch.equal(tensor, right[key]):
            raise CheckError('build', f'{names} differ in {key}')


def _load_timm(folder: Path, facts: dict[str, Any]) -> nn.Module:
    try:
        with torch.device('meta'):
            plain = timm.create_model(facts['arch'], **{**facts['model_args'], 'num_classes': facts['num_classes']})
        with safetensors.safe_open(folder / WEIGHTS, 'pt') as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}    # noqa: SIM118
        expected = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
        for name in expected.keys() & stored.keys():    # before memory is spent on sizes that the folder asks for
            if stored[name] != expected[name]:
                raise CheckError('build', f"{name} is {stored[name]} in {WEIGHTS}, {expected[name]} in {facts['arch']}")
        model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    except CheckError:
        raise
    except Exception as e:
        raise CheckError('build', f'timm {timm.__version__} does not load the folder: {type(e).__name__}: {e}') from e
    if keys := sorted(plain.state_dict().keys() ^ model.state_dict().keys()):
        raise CheckError('build', f"keys differ from those of timm's {facts['arch']}: {', '.join(keys[:5])}")
    data = timm.data.resolve_model_data_config(model)
    source: Any = model.pretrained_cfg
    found = {'arch': source['architecture'], 'num_classes': model.num_classes}
    found |= {key: list(data[key]) for key in ('input_size', 'mean', 'std')}
    for key, value in found.items():    # what timm makes of the folder, which config.json alone does not say
        if value != facts[key]:
            raise CheckError('config', f'{CONFIG} gives {key} {value}, exported was {facts[key]}')
    return model


def report(folder: Path, tolerance: float, factory: str | None = None) -> dict[str, Any]:
    """What `check` returns with "ok": true, or "ok": false with "about" and "reason"."""
    try:
        return {'ok': True, **check(folder, tolerance, factory)}
    except CheckError as e:
        return {'ok': False, 'about': e.about, 'reason': str(e)}
    except Exception as e:
        return {'ok': False, 'about': 'build', 'reason': f'{type(e).__name__}: {e}'}


class _NoSFTeacher(MetaPathFinder):
    """Import hook: an exported teacher must load where this package is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition('.')[0] == 'sf_teacher':
            raise ModuleNotFoundError(f'{name} is blocked: an exported teacher must load without sf_teacher')


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', type=Path)
    parser.add_argument('--tolerance', type=float, required=True)
    parser.add_argument('--factory')
    parser.add_argument('--path', type=json.loads, default=[])
    parser.add_argument('--threads', type=int)
    args = parser.parse_args()
    sys.meta_path.insert(0, _NoSFTeacher())
    sys.path.extend(args.path)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    print(json.dumps(report(args.folder, args.tolerance, args.factory)))


if __name__ == '__main__':
    _main()
