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
from torch import nn

from ..errors import SFTeacherError
from ..files import written_at_once
from .architecture import name_of
from .card import model_card, portable_path, torchdistill_snippet
from .prepare import prepare
from .reload import CONFIG, PROBE, TEACHER, TORCHVISION, WEIGHTS, ZOO, sha256
from .torchvision_format import is_same
from .verify import run_check
from .writer import README, TORCHDISTILL, check_place

_logger = logging.getLogger(__name__)


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
    be on any device and carry hooks that do not change its logits (they are called once, on a copy, for that to be
    seen); it comes back exactly as it was. In distributed training call this on one rank.

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
    made = prepare(model, folder, input_size=input_size, mean=mean, std=std, model_args=model_args, factory=factory,
                   class_names=class_names, metadata=metadata, overwrite=overwrite, format=format, layout=layout)
    target, teacher, facts = made.target, made.teacher, made.facts
    arch: str | None = facts['arch']
    path: str | None = facts['factory']
    name, state = name_of(teacher), teacher.state_dict()
    with written_at_once(target, partial(check_place, target, overwrite)) as temporary:
        _write(temporary, teacher, facts, made.notes)
        if made.theirs is not None:
            torch.save({'model': made.theirs, **facts}, temporary / TORCHVISION)
        if layout is not None:
            shutil.copyfile(temporary / TEACHER, temporary / ZOO)
        _write_probe(temporary, made.inputs, made.logits, facts)
        (temporary / README).write_text(model_card(target.name, facts, made.notes), encoding='utf-8')
        if arch is not None:
            theirs = TEACHER if is_same(arch, state, made.inputs, made.logits) else \
                TORCHVISION if made.theirs is not None else None
            snippet = torchdistill_snippet(arch, facts['num_classes'], portable_path(target), theirs)
            (temporary / TORCHDISTILL).write_text(snippet, encoding='utf-8')
        report = run_check(temporary, 0.0, path, torch.get_num_threads())
        if not report['ok']:
            raise SFTeacherError(_refusal(name, report, path))
    _logger.info('Exported %s to %s', arch or path, target)
    return target


def check_export(model: nn.Module, folder: str | os.PathLike[str], **arguments: Any) -> None:
    """Refuse before the training what `export` with these arguments would refuse after it; nothing is written.

    A few images run through a copy of the model, as they do in `export`; no other process is started.

    Raises:
        SFTeacherError: The model, the place or an argument is not fit for it.
    """
    prepare(model, folder, **arguments)


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
