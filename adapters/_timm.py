"""Models for every adapter: built by timm, and never a teacher with random weights."""
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from sf_teacher import SFTeacherError, check_folder

LOCAL = 'local-dir:'
_logger = logging.getLogger(__name__)


def build_teacher(
        model_name: str,
        checkpoint_path: str | None = None,
        pretrained: bool = False,
        num_classes: int | None = None,
        **kwargs: Any,
) -> nn.Module:
    """A teacher with weights, in eval mode.

    Args:
        model_name: ``local-dir:FOLDER`` for an exported teacher, or any timm name.
        checkpoint_path: Weights for a timm name, e.g. the ``teacher.pth`` of an exported folder.
        pretrained: Whether a timm name comes with timm's pretrained weights.
        num_classes: Classes; an exported folder knows its own and refuses others.
        **kwargs: Further arguments of ``timm.create_model``.

    Raises:
        SFTeacherError: There are no weights, they are not this model's, or they have no classifier for these classes.
    """
    if 'sync_bn' in kwargs:
        raise SFTeacherError(f'sync_bn={kwargs["sync_bn"]!r} of teacher {model_name!r}: in eval mode its batch norms '
                             f'take no statistics of the batch, there is nothing to synchronise. Leave it out')
    if model_name.startswith(LOCAL):
        if checkpoint_path:
            raise SFTeacherError(f'model_name {model_name!r} has its own weights, checkpoint_path={checkpoint_path!r} '
                                 f'is a second source: give one of them')
        num_classes = _check_folder(Path(model_name.removeprefix(LOCAL)), num_classes)
        return _create(model_name, {'pretrained': True, 'num_classes': num_classes, **kwargs}).eval()
    if not checkpoint_path and not pretrained and not model_name.startswith('hf-hub:'):
        raise SFTeacherError(
            f'teacher {model_name!r} would have random weights: give model_name: \'local-dir:FOLDER\' (an exported '
            f'teacher), checkpoint_path, or pretrained: True')
    if checkpoint_path and not Path(checkpoint_path).is_file():
        raise SFTeacherError(f'checkpoint_path {checkpoint_path!r} of teacher {model_name!r} does not exist (working '
                             f'directory {Path.cwd()}): correct the path, or export the teacher first')
    if not checkpoint_path and timm.is_model(model_name):
        with suppress(RuntimeError):    # an unknown tag: timm's builder says so
            pretrained_cfg: Any = get_pretrained_cfg(model_name)
            _check_classes(model_name, pretrained_cfg.num_classes, num_classes)
    kwargs |= {} if num_classes is None else {'num_classes': num_classes}
    if checkpoint_path:
        kwargs['checkpoint_path'] = checkpoint_path
        if (Path(checkpoint_path).parent / 'probe.safetensors').is_file():
            check_folder(Path(checkpoint_path).parent, [Path(checkpoint_path).name])
    teacher: Any = build_model(model_name, pretrained=not checkpoint_path, **kwargs).eval()
    if not checkpoint_path:
        _check_classes(model_name, (teacher.pretrained_cfg or {}).get('num_classes'), teacher.num_classes)
    if broken := [name for name, tensor in teacher.state_dict().items() if not tensor.isfinite().all()]:
        raise SFTeacherError(f'{broken[0]} of teacher {model_name!r} with checkpoint_path={checkpoint_path!r} is not '
                             f'finite: its training diverged or the file is damaged; give another')
    return teacher


def _check_classes(model_name: str, available: int | None, num_classes: int | None) -> None:
    """Refuse pretrained weights for which timm would make up a classifier."""
    if available is not None and (not available or num_classes not in (None, available)):
        has = f'have {available} classes' if available else 'have no classifier'
        raise SFTeacherError(
            f'the pretrained weights of teacher {model_name!r} {has}, num_classes={num_classes}: timm would give it '
            f'a random classifier. Fine-tune it on your classes first, and give the result as model_name: '
            f'\'local-dir:FOLDER\' or checkpoint_path' + (', or leave num_classes out' if available else ''))


def build_model(model_name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model``, with errors that say what was asked for; a folder's or a hub's model has its weights."""
    if model_name.lower().startswith(LOCAL):
        check_folder(model_name)
    if ':' in model_name:
        kwargs.setdefault('pretrained', True)
    return _create(model_name, kwargs)


def _create(model_name: str, kwargs: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(model_name, **kwargs)
    except Exception as error:
        given = ', '.join(f'{name}={value!r}' for name, value in kwargs.items())
        lines = str(error).splitlines()
        shown = '; '.join(line.strip() for line in lines[:4]) + (f'; and {len(lines) - 4} more' if lines[4:] else '')
        remedy = 'the weights are of another architecture or class count: give the model_name and num_classes they ' \
                 'were trained with' if 'state_dict' in shown else 'correct model_name or its arguments'
        raise SFTeacherError(f'timm does not build {model_name!r} with {given} ({type(error).__name__}: {shown}): '
                             f'{remedy}') from error


def _check_folder(folder: Path, num_classes: int | None) -> int:
    """The classes of an exported folder that timm builds."""
    if not (folder / 'config.json').is_file():
        what = 'does not exist' if not folder.exists() else 'holds no config.json, so it is no exported teacher'
        raise SFTeacherError(f'model_name \'{LOCAL}{folder}\': {folder.absolute()} {what}. Give the folder that '
                             f'`sf-teacher export` wrote')
    config = check_folder(folder)
    if 'architecture' not in config:
        raise SFTeacherError(f'{folder / "config.json"}: timm cannot build this teacher by name, it was exported with '
                             f'factory={config.get("factory")!r}. Build it with that function and teacher.pth')
    if num_classes is not None and num_classes != config['num_classes']:
        raise SFTeacherError(f'{folder / "config.json"}: the teacher has {config["num_classes"]} classes, not '
                             f'num_classes={num_classes}, for which timm would give it a fresh head. Leave '
                             f'num_classes out, or export a teacher trained for {num_classes} classes')
    return config['num_classes']


class FeatureTeacher(nn.Module):
    """An exported teacher for toolboxes that read features from what a model returns; always in eval mode.

    Args:
        folder: The exported folder.
        stages: timm feature indices, the stem's place first, one for each feature of the student; by default all.
        num_classes: What the toolbox asks for; must be the teacher's.

    Raises:
        SFTeacherError: The folder is no exported teacher, has other classes or not these stages.
    """

    model: Any

    def __init__(self, folder: str, stages: Sequence[int] | None = None, num_classes: int | None = None) -> None:
        super().__init__()
        model: Any = build_teacher(f'{LOCAL}{folder}', num_classes=num_classes)
        self.model, count = model, len(model.feature_info)
        data = timm.data.resolve_model_data_config(model)
        _logger.warning('the teacher in %s was made for images of size %s normalised with mean %s and std %s: give it '
                        'the same', folder, data['input_size'], data['mean'], data['std'])
        self.stages = list(range(count)) if stages is None else list(stages)
        if not self.stages or self.stages != sorted(set(self.stages)) or self.stages[-1] >= count or self.stages[0] < 0:
            raise SFTeacherError(f'stages={self.stages} of {folder}: give increasing indices in 0..{count - 1}')

    def run(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Logits [B, K], maps [B, C, H, W] and the pooled feature [B, D] before the classifier."""
        final, maps = self.model.forward_intermediates(x, indices=self.stages, output_fmt='NCHW')
        return self.model.forward_head(final), maps, self.model.forward_head(final, pre_logits=True)

    def classifier(self) -> nn.Module:
        """The classifier, for methods that run the teacher's on the average of the student's last map.

        Raises:
            SFTeacherError: This teacher computes something else between its last map and its classifier.
        """
        classifier = self.model.get_classifier()
        x = torch.randn(1, *timm.data.resolve_model_data_config(self.model)['input_size'])
        with torch.inference_mode():
            logits, maps, _ = self.run(x.to(next(self.parameters()).device))
            pooled = maps[-1].mean((2, 3))
            fits = isinstance(classifier, nn.Linear) and classifier.in_features == pooled.shape[1]
            if not fits or not torch.allclose(classifier(pooled), logits, rtol=1e-3, atol=1e-4):
                raise SFTeacherError(
                    f'simkd and srrl give the teacher\'s classifier the average of the last map, stages[-1]='
                    f'{self.stages[-1]}, and this {type(self.model).__name__} computes something else between '
                    f'the two. Name its last stage, or take a teacher without such layers, e.g. a ResNet')
        return classifier

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what the toolbox read from `teacher.pth`."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)
