"""From settings to a run that is ready to start: everything built, everything checked, nothing written."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.data import resolve_data_config
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from timm.utils import random_seed
from timm.utils.distributed import init_distributed_device_so, is_distributed_env
from torch import nn

from .build import create_model, wrap
from .config import StudentRun, TeacherRun
from .data import Data, create_loaders, flip_probability, load_data
from .errors import SFTeacherError
from .guard import World
from .kd_task import StudentFriendlyKDTask
from .methods import METHODS, Method, get_method
from .parts import criterion

RunConfig = TypeVar('RunConfig', TeacherRun, StudentRun)
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


def plan_teacher(config: TeacherRun, data: Data | None = None) -> Plan:
    """Build and check everything that `train_teacher` needs."""
    if not config.teacher:
        raise SFTeacherError('no teacher: give the timm name of one, e.g. resnet50')
    method, device = _method(config), init_device(config.device)
    size = _input_size(config)
    data = data or load_data(config, config.seed, size[0] if size else config.model_kwargs.get('in_chans', 3))
    random_seed(config.seed)
    task: TrainingTask
    if method is None:
        kwargs = {'pretrained': config.pretrained or None, **config.model_kwargs}
        model = create_model(config.teacher, 'teacher', data.num_classes, size, kwargs).to(device)
        task = ClassificationTask(model, criterion(config), device=device, verbose=False)
    else:
        task = wrap(config.teacher, list(config.student), method=method, num_classes=data.num_classes,
                    boundaries=config.boundaries, input_size=size, pretrained=config.pretrained or None,
                    teacher_kwargs=config.model_kwargs, student_kwargs=config.student_kwargs).to(device)
        task.criterion = criterion(config)
        model, size = task.teacher, task.input_size
    metadata = {'method': method or 'none: a standard teacher', 'students': list(config.student)}
    return _plan(config, data, task, model, size, device, metadata)


def plan_student(config: StudentRun, data: Data | None = None) -> Plan:
    """Build and check everything that `distill` needs."""
    if not config.student:
        raise SFTeacherError('no student: give the timm name of one, e.g. student=resnet18')
    if config.kd not in KD:
        raise SFTeacherError(f'kd={config.kd!r} must be one of {", ".join(KD)}')
    device, size = init_device(config.device), _input_size(config)
    teacher = load_teacher(config.teacher).to(device) if config.teacher else None
    if teacher is not None:
        expected = resolve_data_config({}, model=teacher)
        size = config.input_size or expected['input_size']
        config = replace(config, mean=config.mean or tuple(expected['mean']), std=config.std or tuple(expected['std']))
    data = data or load_data(config, config.seed, size[0] if size else 3)
    if teacher is not None and teacher.num_classes != data.num_classes:
        raise SFTeacherError(f'the teacher in {config.teacher} has {teacher.num_classes} classes and the data '
                             f'{data.num_classes}: give the data that it was trained on')
    random_seed(config.seed)
    kwargs = {'pretrained': config.pretrained or None, **config.model_kwargs}
    student = create_model(config.student, 'student', data.num_classes, size, kwargs).to(device)
    loss = criterion(config)
    if teacher is None:
        task: TrainingTask = ClassificationTask(student, loss, device=device, verbose=False)
    else:
        check_forward(teacher, 'teacher', size, data.num_classes, device)
        vars(student)['pretrained_cfg'] = {**student.pretrained_cfg, 'mean': config.mean, 'std': config.std}   # type: ignore[dict-item]
        task = KD[config.kd](student, teacher, loss, config, device)
    metadata = {'description': f'A student ({config.student})' + (' of the teacher named below.' if teacher else '.'),
                'method': f'knowledge distillation ({config.kd})' if teacher else 'none: learned alone',
                'teacher': config.teacher or 'none'}
    return _plan(config, data, task, student, size, device, metadata)


def load_teacher(folder: str) -> nn.Module:
    """An exported teacher, in eval mode and frozen.

    Raises:
        SFTeacherError: This is no folder that plain timm loads.
    """
    path = Path(folder)
    missing = [name for name in ('config.json', 'model.safetensors') if not (path / name).is_file()]
    if missing:
        raise SFTeacherError(f'teacher={folder!r} is no exported timm folder ({" and ".join(missing)} missing): give '
                             f'the folder that train or export wrote')
    try:
        model = timm.create_model(f'local-dir:{path}', pretrained=True)
    except Exception as error:
        raise SFTeacherError(f'timm cannot load the teacher in {folder} ({type(error).__name__}: {error}): '
                             f'`sf-teacher verify {folder}` says more') from error
    return model.eval().requires_grad_(False)


def check_forward(model: nn.Module, role: str, size: Any, num_classes: int, device: torch.device) -> None:
    """Run two images through a model in eval mode, so that a size or class count that does not fit is found now."""
    training = model.training
    try:
        with torch.inference_mode():
            output = model.eval()(torch.zeros(2, *size, device=device))
    except Exception as error:
        raise SFTeacherError(f'{role} {type(model).__name__} does not take images of input_size={tuple(size)} '
                             f'({type(error).__name__}: {error}): give the size that it was made for') from error
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != (2, num_classes):
        raise SFTeacherError(f'{role} {type(model).__name__} does not return one tensor of logits for {num_classes} '
                             f'classes: choose another model')


def init_device(name: str) -> torch.device:
    """The device of this process; joins the other processes that torchrun started, if any."""
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        if is_distributed_env() and not torch.distributed.is_initialized():
            device = torch.device(init_distributed_device_so(name)['device'])
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SFTeacherError(f'device={name!r} cannot be used here ({str(error).splitlines()[0]}): try cpu') from error
    return device


def _plain(student: nn.Module, teacher: nn.Module, loss: nn.Module, config: StudentRun, device: torch.device) \
        -> TrainingTask:
    return LogitDistillationTask(
        student, teacher, loss, distill_loss_weight=config.distill_loss_weight,
        task_loss_weight=config.task_loss_weight, temperature=config.kd_temperature, device=device, verbose=False)


def _student_friendly(
        student: nn.Module,
        teacher: nn.Module,
        loss: nn.Module,
        config: StudentRun,
        device: torch.device,
) -> TrainingTask:
    return StudentFriendlyKDTask(
        student, teacher, criterion=loss, distill_loss_weight=config.distill_loss_weight,
        task_loss_weight=config.task_loss_weight, temperature=config.kd_temperature, device=device, verbose=False)


KD: dict[str, Callable[[nn.Module, nn.Module, nn.Module, StudentRun, torch.device], TrainingTask]] = {
    'plain': _plain, 'student_friendly': _student_friendly}


def _plan(
        config: Any,
        data: Data,
        task: TrainingTask,
        model: nn.Module,
        size: Any,
        device: torch.device,
        metadata: dict[str, Any],
) -> Plan:
    asked = {'input_size': size, 'mean': config.mean, 'std': config.std}
    if size is None:
        asked['in_chans'] = getattr(model, 'in_chans', 3)
    for name in ('mean', 'std'):
        channels = (size or (asked.get('in_chans'),))[0]
        if asked[name] is not None and len(asked[name]) not in (1, channels):
            raise SFTeacherError(f'{name}={asked[name]} has {len(asked[name])} values for {channels} channels')
    data_config = resolve_data_config(asked, model=model)
    check_forward(model, 'model', data_config['input_size'], data.num_classes, device)
    config = replace(config, num_classes=data.num_classes, hflip=flip_probability(config),
                     **{k: tuple(data_config[k]) for k in ('input_size', 'mean', 'std')})
    world = World.current()
    loaders = create_loaders(data, config, config, data_config, device, world.rank, world.size)
    metadata |= {'data': config.data or config.dataset, 'seed': config.seed, 'epochs': config.epochs,
                 'settings': _chosen(config)}
    return Plan(config, task, *loaders, data_config, metadata)


def _method(config: TeacherRun) -> Method | None:
    if config.method == STANDARD:
        if config.student or config.method_kwargs:
            raise SFTeacherError(f'method={STANDARD!r} trains a standard teacher: leave out student and method_kwargs')
        return None
    cls = type(get_method(config.method))
    try:
        return METHODS[config.method.lower()](**config.method_kwargs)
    except TypeError as error:
        allowed = ', '.join(f.name for f in fields(cls))
        raise SFTeacherError(f'method_kwargs={config.method_kwargs}: {cls.__name__} has {allowed}') from error


def _input_size(config: RunConfig) -> Any:
    return config.input_size or (DIGITS_SIZE if config.data == 'digits' else None)


def _chosen(config: Any) -> dict[str, Any]:
    """The settings that are not the defaults, without where and how they were run."""
    default = asdict(type(config)())
    return {f.name: getattr(config, f.name) for f in fields(config)
            if getattr(config, f.name) != default[f.name] and not f.metadata['free']}
