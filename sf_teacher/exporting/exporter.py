"""Write a teacher as a plain timm folder, and call it done only after a fresh process has given it back."""
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn

from ..errors import SFTeacherError
from ..files import written_at_once
from ..version import __version__
from . import json_values, normalise
from .architecture import check_factory_arguments, factory_path, identify, name_of, restore_constants
from .card import model_card, portable_path, torchdistill_snippet
from .class_names import check_class_names, class_names_of
from .reload import CONFIG, PROBE, TEACHER, TORCHVISION, WEIGHTS, ZOO, sha256, versions
from .torchvision_format import is_same, to_torchvision
from .verify import run_check
from .writer import README, TORCHDISTILL, check_place, find_place
from .zoo_layout import check_layout

_logger = logging.getLogger(__name__)

FORMATS = ('timm', 'torchvision')


def export(
        model: nn.Module,
        folder: str | os.PathLike[str],
        *,
        input_size: Sequence[int] | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        model_args: Mapping[str, Any] | None = None,
        factory: str | Callable[..., nn.Module] | None = None,
        class_names: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        format: str = 'timm',
        layout: str | None = None,
) -> Path:
    """Export a teacher as a folder that plain timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    The folder holds `config.json`, `model.safetensors`, `teacher.pth` (the same weights under "model"),
    `probe.safetensors` (a few inputs and the teacher's logits), a model card and a snippet for torchdistill. It is
    written beside its final place, reloaded in a fresh process that cannot import sf_teacher, and moved there only if
    keys, weights, preprocessing and, bit for bit, logits are those of `model`. After a failure nothing is left.

    The weights are stored in float32 (half-precision values survive exactly; float64 is refused unless its values do)
    and the logits are computed in float32 on the CPU in eval mode. `model` may be wrapped (EMA, `torch.compile`, DDP),
    be on any device and carry hooks; it comes back exactly as it was. In distributed training call this on one rank.

    Args:
        model: The teacher.
        folder: Where to. Missing parents are created.
        input_size: (channels, height, width) the teacher was trained at; by default what the model's configuration
            says, which is the architecture's default unless somebody changed it.
        mean: What the training images were normalised with, one value or one per channel; default as `input_size`.
        std: As `mean`.
        model_args: Arguments of `timm.create_model` (or of `factory`) that rebuild the model, beside those that timm
            has recorded.
        factory: "package.module:function", or that function, for a teacher that timm cannot build by name. The folder
            then holds no timm model, only `teacher.pth` and what describes and verifies it.
        class_names: Names of the classes in the order of the logits, by which whoever distils from the teacher can tell
            that the data has the same; by default those that the model's configuration holds, if it does.
        metadata: What was trained and how, for the model card and `config.json`: "method", "students", "data", "seed",
            "metrics", "description" and whatever else. Primitives, dataclasses and paths, which are shortened to
            their last part.
        overwrite: Replace an earlier export at `folder`, once the new one has been verified.
        format: "torchvision" adds `torchvision.pth`, the weights under the keys of torchvision's model of the same
            name, which gives equal logits or is refused.
        layout: "repdistiller" or "mdistiller", for a net of theirs given by `factory`: adds `ckpt_epoch_240.pth`, which
            they load as one of their own teachers, from a folder named after the net, e.g. `resnet32x4_vanilla`.

    Returns:
        The absolute path of the folder.

    Raises:
        SFTeacherError: The teacher or the place is not fit for it; nothing was written or changed.
    """
    if format not in FORMATS:
        raise SFTeacherError(f'format is one of {", ".join(map(repr, FORMATS))}, got {format!r}')
    target = find_place(folder, overwrite)
    notes, args = json_values.metadata(metadata), json_values.primitives('model_args', model_args)
    if isinstance(model, TrainingTask):
        raise SFTeacherError(f'export takes the plain model and this is a {type(model).__name__}: call task.export('
                             f'folder), or pass task.get_eval_model()')
    model = unwrap_model(model)
    teacher = normalise.plain_copy(model)
    arch = None
    if factory is None:
        arch, args = identify(teacher, args)
        if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in model.state_dict().values()):
            restore_constants(teacher, arch, args)
    else:
        factory = factory_path(factory)
        check_factory_arguments(args)
    if layout is not None:
        check_layout(layout, factory, target)
    data_config = normalise.data_config(teacher, input_size, mean, std)
    inputs, logits = normalise.probe(teacher, data_config['input_size'])
    names = class_names_of(teacher) if class_names is None \
        else check_class_names(class_names, logits.shape[1])
    facts: dict[str, Any] = {
        'arch': arch,
        'factory': factory,
        'model_args': args,
        'num_classes': logits.shape[1],
        'class_names': names,
        **data_config,
        'sf_teacher_version': __version__,
        'versions': versions(),
    }
    name, state = name_of(teacher), teacher.state_dict()
    theirs = to_torchvision(name, state, inputs, logits) if format == 'torchvision' else None
    with written_at_once(target, partial(check_place, target, overwrite)) as temporary:
        _write(temporary, teacher, facts, notes)
        if theirs is not None:
            torch.save({'model': theirs, **facts}, temporary / TORCHVISION)
        if layout is not None:
            shutil.copyfile(temporary / TEACHER, temporary / ZOO)
        _write_probe(temporary, inputs, logits, facts)
        (temporary / README).write_text(model_card(target.name, facts, notes), encoding='utf-8')
        if arch is not None:
            same = TEACHER if is_same(arch, state, inputs, logits) else None
            snippet = torchdistill_snippet(
                arch, facts['num_classes'], portable_path(target), same or (None if theirs is None else TORCHVISION),
            )
            (temporary / TORCHDISTILL).write_text(snippet, encoding='utf-8')
        report = run_check(temporary, 0.0, factory, torch.get_num_threads())
        if not report['ok']:
            raise SFTeacherError(_refusal(name, report, factory))
    _logger.info('Exported %s to %s', arch or factory, target)
    return target


def check_export(
        model: nn.Module,
        folder: str | os.PathLike[str],
        *,
        input_size: Sequence[int] | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        model_args: Mapping[str, Any] | None = None,
        factory: str | Callable[..., nn.Module] | None = None,
        class_names: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        format: str = 'timm',
        layout: str | None = None,
) -> None:
    """Refuse before the training what `export` with these arguments would refuse after it; nothing is run or written.

    Raises:
        SFTeacherError: The place, an argument or the architecture is not fit for it.
    """
    if format not in FORMATS:
        raise SFTeacherError(f'format is one of {", ".join(map(repr, FORMATS))}, got {format!r}')
    find_place(folder, overwrite)
    teacher = normalise.plain_copy(unwrap_model(model))
    json_values.primitives('metadata', metadata)
    args = json_values.primitives('model_args', model_args)
    if factory is None:
        identify(teacher, args)
    else:
        check_factory_arguments(args)
    if class_names is not None:
        check_class_names(class_names, getattr(teacher, 'num_classes', len(class_names)))
    if layout is not None:
        check_layout(layout, factory and factory_path(factory), Path(folder))
    normalise.data_config(teacher, input_size, mean, std)


def _write(folder: Path, teacher: nn.Module, facts: dict[str, Any], notes: dict[str, Any]) -> None:
    """Configuration and weights."""
    described = {'sf_teacher': {'version': facts['sf_teacher_version'], 'versions': facts['versions'], **notes}}
    if facts['class_names'] is not None:    # as timm and transformers call them
        described['label_names'] = facts['class_names']
    if facts['arch'] is not None:
        timm.models.save_for_hf(
            teacher,
            str(folder),
            model_config=described,
            model_args=facts['model_args'],
            safe_serialization=True,
            data_config={key: tuple(facts[key]) for key in ('input_size', 'mean', 'std')},
        )
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        config['model_args'].pop('num_classes', None)   # transformers takes the one beside it, and no second one
        if 'label_names' in config['pretrained_cfg']:   # of the weights that training started from
            for key in ('label_names', 'label_descriptions'):
                config['pretrained_cfg'].pop(key, None)
    else:
        config = {key: facts[key] for key in ('factory', 'model_args', 'num_classes', 'input_size', 'mean', 'std')}
        config |= described
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding='utf-8')
    torch.save({'model': teacher.state_dict(), **facts}, folder / TEACHER)


def _write_probe(folder: Path, inputs: torch.Tensor, logits: torch.Tensor, facts: dict[str, Any]) -> None:
    names = (CONFIG, WEIGHTS, TEACHER, TORCHVISION, ZOO)
    digests = {name: sha256(folder / name) for name in names if (folder / name).exists()}
    config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    config.pop('sf_teacher')    # provenance
    metadata = {'sf_teacher': json.dumps({**facts, 'config': config, 'sha256': digests})}
    safetensors.torch.save_file({'inputs': inputs, 'logits': logits}, folder / PROBE, metadata)


def _refusal(name: str, report: dict[str, Any], factory: str | None) -> str:
    reason = f"{name} was not exported, a fresh process does not give it back: {report['reason']}"
    if report['about'] != 'logits':
        return reason
    if factory is not None:
        return f'{reason}. {factory} builds another model than the one given'
    return (
        f'{reason}. Something in it is neither in its weights nor in its arguments, such as an activation or a pooling '
        'that was replaced after it was built; pass factory="package.module:function" with a function that builds it'
    )
