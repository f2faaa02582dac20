"""From settings to a run that is ready to start: everything built, everything checked, nothing written."""
from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.task import ClassificationTask, TrainingTask
from timm.utils import random_seed
from torch import nn

from ..checks import check_forward, classes_of_weights
from ..data.classes import check_same_classes
from ..data.datasets import Data, load_data
from ..data.loaders import create_loaders, flip_probability
from ..data.unlabelled import LabelledOnly, WithUnlabelled, with_unlabelled
from ..errors import SettingError, SFTeacherError
from ..exporting.class_names import class_names_of
from ..exporting.exported import load_teacher
from ..exporting.verify import check_folder, is_local
from ..factory import create_model, wrap
from ..joint_task import needs_index
from ..methods import METHODS, make_method
from ..methods.base import Method
from ..split.boundaries import default_input_size
from ..validation import like_it, setting
from .components import criterion
from .device import init_device
from .distillation import check_settings, distillation_task
from .interruption import World
from .settings import StudentRun, TeacherRun, parse_boundaries
from .threads import default_threads

_logger = logging.getLogger(__name__)

DIGITS_SIZE = (3, 32, 32)
STANDARD = 'none'


@dataclass
class Plan:
    """A run that is ready to start: everything has been built and checked."""
    config: Any
    task: TrainingTask
    train_loader: Any
    eval_loader: Any
    data_config: dict[str, Any]
    metadata: dict[str, Any]
    data: Data


def plan_teacher(config: TeacherRun, data: Data | None = None, decode: bool = True) -> Plan:
    """Build and check everything that `train_teacher` needs; with `decode` False no image is read, for a dry run."""
    if not config.teacher:
        raise SettingError('no teacher: give the timm name of one, e.g. resnet50')
    method, device = _method(config), init_device(config.device)
    size = _input_size(config)
    data = data or load_data(config, config.seed, size[0] if size else _channels(config))
    random_seed(config.seed)
    task: TrainingTask
    if method is None:
        kwargs = {'pretrained': config.pretrained or None, **config.model_kwargs}
        model = create_model(config.teacher, 'teacher', data.num_classes, size, kwargs).to(device)
        task = ClassificationTask(model, criterion(config), device=device, verbose=False)
    else:
        stated = {k: v for k, v in (('mean', config.mean), ('std', config.std)) if v is not None}
        task = wrap(config.teacher, list(config.student), method=method, num_classes=data.num_classes,
                    boundaries=parse_boundaries(config.boundaries), input_size=size,
                    pretrained=config.pretrained or None,    # the method may ask how images are brought to the teacher
                    teacher_kwargs={**({'pretrained_cfg_overlay': stated} if stated else {}), **config.model_kwargs},
                    student_kwargs=config.student_kwargs).to(device)
        task.criterion = criterion(config)
        model, size = task.teacher, task.input_size
        if method.trained_students:
            for name, student in zip(config.student, task.branches.children(), strict=True):
                _check_same_classes(data, student, f'the student in {name}')
    if ':' in config.teacher:       # weights of its own, wherever they are
        _check_same_classes(data, model, f'the teacher in {config.teacher}')
    metadata = {'method': method or 'none: a standard teacher', 'students': list(config.student)}
    return _plan(config, data, task, model, size, device, metadata, decode)


def plan_student(config: StudentRun, data: Data | None = None, decode: bool = True) -> Plan:
    """Build and check everything that `distill` needs; `decode` as for `plan_teacher`."""
    if not config.student:
        raise SettingError(f'no student: give the timm name of one, e.g. {setting("student", "resnet18")}')
    check_settings(config)
    device, size = init_device(config.device), _input_size(config)
    teacher = load_teacher(config.teacher).to(device) if config.teacher else None
    if teacher is not None:
        expected = resolve_data_config({}, model=teacher)
        size = config.input_size or expected['input_size']
        if tuple(size) != tuple(expected['input_size']):
            _logger.warning('the teacher in %s was exported for images of %s and gets %s in this run', config.teacher,
                            tuple(expected['input_size']), tuple(size))
        config = replace(config, mean=config.mean or tuple(expected['mean']), std=config.std or tuple(expected['std']),
                         interpolation=config.interpolation or expected['interpolation'],
                         crop_pct=None if config.kept_in_memory else config.crop_pct or expected['crop_pct'])
    channels = size[0] if size else config.model_kwargs.get('in_chans', 3)
    data = data or load_data(config, config.seed, channels)
    if config.unlabelled and not isinstance(data.train, WithUnlabelled):
        data = with_unlabelled(data, config, config.unlabelled, channels)
    if teacher is not None:
        if teacher.num_classes != data.num_classes:
            raise SFTeacherError(f'the teacher in {config.teacher} has {teacher.num_classes} classes and the data '
                                 f'{data.num_classes}: give the data that it was trained on')
        check_same_classes(data.class_names, class_names_of(teacher), f'the teacher in {config.teacher}')
    random_seed(config.seed)
    kwargs = {'pretrained': config.pretrained or None, **config.model_kwargs}
    student = create_model(config.student, 'student', data.num_classes, size, kwargs).to(device)
    loss = LabelledOnly(criterion(config)) if config.unlabelled else criterion(config)
    if teacher is None:
        task: TrainingTask = ClassificationTask(student, loss, device=device, verbose=False)
    else:
        check_forward(teacher, 'teacher', size, data.num_classes, device)
        _set_data_config(student, mean=config.mean, std=config.std, crop_mode=expected['crop_mode'])
        task = distillation_task(student, teacher, loss, config, device)
    metadata = {'description': f'A student ({config.student})' + (' of the teacher named below.' if teacher else '.'),
                'method': f'knowledge distillation ({config.kd})' if teacher else 'none: learned alone',
                'teacher': config.teacher or 'none'}
    if config.unlabelled:
        metadata['unlabelled'] = config.unlabelled
    return _plan(config, data, task, student, size, device, metadata, decode)


def _plan(
        config: Any,
        data: Data,
        task: TrainingTask,
        model: nn.Module,
        size: Any,
        device: torch.device,
        metadata: dict[str, Any],
        decode: bool,
) -> Plan:
    asked = {'input_size': size or default_input_size(model, config.model_kwargs), 'mean': config.mean,
             'std': config.std, 'interpolation': config.interpolation,
             **({'crop_pct': 1., 'crop_mode': 'center'} if config.kept_in_memory else {'crop_pct': config.crop_pct})}
    channels = asked['input_size'][0]
    for name in ('mean', 'std'):
        if asked[name] is not None and len(asked[name]) not in (1, channels):
            raise SettingError(f'{setting(name, asked[name])} has {len(asked[name])} values for {channels} channels')
    data_config = resolve_data_config(asked, model=model)
    for name in ('mean', 'std'):    # the model's own are of colour images
        if len(data_config[name]) != channels:
            data_config[name] = (statistics.fmean(data_config[name]),) * channels
    _set_data_config(model, interpolation=data_config['interpolation'], crop_pct=data_config['crop_pct'],
                     crop_mode=data_config['crop_mode'], test_crop_pct=None)    # timm's validate script prefers it
    if data.class_names is None:        # those of the weights that training starts from may not be the data's
        _set_data_config(model, label_names=None, label_descriptions=None)
    if device.type == 'cpu':
        threads = config.threads or default_threads(config.batch_size, data_config['input_size'])
        torch.set_num_threads(threads)
        config = replace(config, threads=threads)
    check_forward(model, 'model', data_config['input_size'], data.num_classes, device)
    config = replace(config, num_classes=data.num_classes, hflip=flip_probability(config),
                     **{k: tuple(data_config[k]) for k in ('input_size', 'mean', 'std')})
    world = World.current()
    with_index = needs_index(task)
    loaders = create_loaders(data, config, config, data_config, device, world.rank, world.size, with_index, decode)
    metadata |= {'data': config.data or config.dataset, 'seed': config.seed, 'epochs': config.epochs,
                 'settings': _chosen(config)}
    return Plan(config, task, *loaders, data_config, metadata, data)


def _set_data_config(model: nn.Module, **facts: Any) -> None:
    """Set fields of the model's timm configuration, where timm's tasks and the export read how images are prepared."""
    vars(model)['pretrained_cfg'] = {**(getattr(model, 'pretrained_cfg', None) or {}), **facts}


def _channels(config: TeacherRun) -> int:
    """Of the images, where no size is given: what the teacher is built for."""
    known = 3
    if is_local(config.teacher):    # its weights are checked when it is built
        known = (check_folder(config.teacher, files=()).get('pretrained_cfg', {}).get('input_size') or (known,))[0]
    return int(config.model_kwargs.get('in_chans', known))


def _check_same_classes(data: Data, model: nn.Module, whose: str) -> None:
    """Refuse trained weights of other classes than the data's, as far as names are known."""
    known = classes_of_weights(model)
    if known != data.num_classes:
        _logger.warning('%s has %s classes and the data %d: its classifier is a new one', whose, known,
                        data.num_classes)
    else:
        check_same_classes(data.class_names, class_names_of(model), whose)


def _method(config: TeacherRun) -> Method | None:
    name = config.method.lower()
    if name == STANDARD:
        given = [n for n in ('student', 'method_kwargs', 'boundaries', 'student_kwargs') if getattr(config, n)]
        if given:
            raise SettingError(f'{setting("method", STANDARD)} trains a standard teacher, without branches: leave out '
                               f'{", ".join(map(setting, given))}')
        return None
    if name not in METHODS or METHODS[name].phase != 'teacher':
        known = [*METHODS.of_phase('teacher'), STANDARD]
        raise SettingError(f'unknown method {config.method!r}{like_it(name, known, "")}: give one of '
                           f'{", ".join(known)} ({STANDARD}: a standard teacher)')
    if METHODS[name].takes_students and not config.student:
        raise SettingError(f'{setting("method", name)} needs a student: give the timm name of one, e.g. '
                           f'{setting("student", ("resnet18",))}, or {setting("method", STANDARD)} for a standard '
                           f'teacher')
    return make_method(name, config.method_kwargs)


def _input_size(config: TeacherRun | StudentRun) -> Any:
    return config.input_size or (DIGITS_SIZE if config.data == 'digits' else None)


def _chosen(config: Any) -> dict[str, Any]:
    """The settings that are not the defaults, without where and how they were run."""
    default = type(config)()
    values = {name: getattr(config, name) for name in config.decisive()}
    return {name: value for name, value in values.items() if value != getattr(default, name)}
