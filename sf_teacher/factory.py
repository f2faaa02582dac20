"""From names to a task: the one line."""
from collections.abc import Sequence
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from torch import nn

from .checks import check_classifier, check_model, check_size, shown
from .errors import SFTeacherError
from .exporting.architecture import name_of
from .exporting.verify import check_folder, is_local
from .methods import get_method
from .methods.base import Method
from .split.boundaries import Size, default_input_size
from .split.selection import Boundaries
from .task import StudentFriendlyTask
from .validation import like_it

_WEIGHTS = ('model.safetensors', 'pytorch_model.bin', 'open_clip_model.safetensors', 'open_clip_pytorch_model.bin')


def wrap(
        teacher: str | nn.Module,
        students: str | nn.Module | Sequence[str | nn.Module] | None = None,
        *,
        method: str | Method = 'sftn',
        num_classes: int | None = None,
        boundaries: Boundaries | None = None,
        input_size: Size | None = None,
        pretrained: bool | None = None,
        teacher_kwargs: dict[str, Any] | None = None,
        student_kwargs: dict[str, Any] | None = None,
) -> StudentFriendlyTask:
    """Attach student branches to a teacher and return the task that trains both.

    Args:
        teacher: timm name (``local-dir:`` and ``hf-hub:`` too) or a model. A model is trained in place, not copied.
        students: Name or model, or several. Models are copied into the branches and stay as they are.
        method: ``"sftn"`` or a config such as ``SFTN(kl_weight=1.)``.
        num_classes: Classes of the models built here by name; by default the teacher's own.
        boundaries: See `StudentFriendlyTask`; needed for models that timm did not build.
        input_size: (C, H, W) of the images; by default what the teacher was made for. Models built here by name whose
            size is fixed are built for it.
        pretrained: Whether a teacher built by name starts from pretrained weights; by default those with weights of
            their own (``local-dir:``, ``hf-hub:``) do, and students by such names too.
        teacher_kwargs: Further arguments of ``timm.create_model`` for the teacher.
        student_kwargs: The same for the students, e.g. ``dict(pretrained=True)``.

    Returns:
        A `timm.task.TrainingTask`: ``task(images, targets)["loss"]``, ``task.teacher``, ``task.export(folder)``.

    Raises:
        SFTeacherError: Something does not fit; the message says what, and what to do. Nothing has been changed.

    Examples:

        ```python
        task = sf_teacher.wrap('resnet50', 'resnet18', num_classes=100)
        ```
    """
    config = get_method(method)
    if input_size is not None:
        input_size = check_size(input_size)
    teacher_kwargs, student_kwargs = dict(teacher_kwargs or {}), dict(student_kwargs or {})
    if isinstance(teacher, str):
        teacher_kwargs = {'pretrained': pretrained, **teacher_kwargs}
        if config.trained_teacher:
            _check_trained(teacher, 'teacher', teacher_kwargs, config)
        teacher = create_model(teacher, 'teacher', num_classes, input_size, teacher_kwargs, config.trained_teacher)
    elif pretrained or teacher_kwargs:
        raise SFTeacherError('pretrained and teacher_kwargs are for a teacher given by name; this one is a '
                             f'{type(teacher).__name__}: load its weights before wrapping it')
    check_model(teacher, 'teacher')
    if num_classes is not None and getattr(teacher, 'num_classes', num_classes) != num_classes:
        raise SFTeacherError(f'teacher {type(teacher).__name__} has {teacher.num_classes} classes, not '
                             f'num_classes={num_classes}: build it with num_classes={num_classes}')
    num_classes = getattr(teacher, 'num_classes', num_classes)
    size = check_size(input_size or default_input_size(teacher, teacher_kwargs))
    if students is None:
        students = []
    students = [students] if isinstance(students, str | nn.Module) else list(students)
    if student_kwargs and not any(isinstance(s, str) for s in students):
        raise SFTeacherError(f'student_kwargs={student_kwargs} are for students given by name, and none is: build the '
                             f'student as you want it before wrapping')
    for student in students:
        if config.trained_students and isinstance(student, str):
            _check_trained(student, 'student', student_kwargs, config)
    with torch.random.fork_rng(devices=[]):
        built = [create_model(s, 'student', num_classes, size, student_kwargs, config.trained_students)
                 if isinstance(s, str) else s for s in students]
    task = StudentFriendlyTask(teacher, None, built, config, boundaries, size)
    if num_classes not in (None, task.num_classes):
        raise SFTeacherError(f'teacher {type(teacher).__name__} gives {task.num_classes} logits, not '
                             f'num_classes={num_classes}: leave num_classes out, or build it with as many')
    task.student_names = [s if isinstance(s, str) and ':' not in s else name_of(m)
                          for s, m in zip(students, built, strict=True)]
    return task


def _check_trained(name: str, role: str, kwargs: dict[str, Any], method: Method) -> None:
    pretrained = kwargs.get('pretrained')
    if not pretrained and not kwargs.get('checkpoint_path') and (pretrained is not None or ':' not in name):
        how = 'pretrained=True' if role == 'teacher' else 'student_kwargs=dict(pretrained=True)'
        raise SFTeacherError(f'{type(method).__name__} needs a trained {role}, and {name!r} would have random weights: '
                             f'give local-dir:FOLDER of a trained one, {how}, or a model with its weights')


def create_model(
        name: str,
        role: str,
        num_classes: int | None,
        input_size: Size | None,
        kwargs: dict[str, Any],
        trained: bool = False,
) -> nn.Module:
    """A timm model, built for `input_size` where its size is fixed at construction.

    Args:
        name: As in ``timm.create_model``.
        role: What it is for, for messages.
        num_classes: Classes; by default its own.
        input_size: (C, H, W), if it is known.
        kwargs: Further arguments of ``timm.create_model``.
        trained: Whether its weights, those of the classifier too, have to be trained ones.

    Raises:
        SFTeacherError: timm has no such model (with close names) or cannot build it, or its classifier is random.
    """
    if len(name) > 1000 or not name.isprintable():
        raise SFTeacherError(f'{shown(name)} (given as {role}) is not the name of a model or a folder: it is longer '
                             f'than 1000 characters or has characters that cannot be printed')
    if ':' not in name and not timm.is_model(name):
        close = like_it(name.split('.')[0], timm.list_models(), cutoff=0.5)
        raise SFTeacherError(f'timm has no model {shown(name)} (given as {role}){close}. '
                             "timm.list_models('*resnet*') lists what there is.")
    if is_local(name):
        check_folder(name)
    kwargs = dict(kwargs) if num_classes is None else {'num_classes': num_classes, **kwargs}
    if kwargs.get('pretrained') is None:
        kwargs['pretrained'] = ':' in name      # random weights under the name of a folder are what nobody wants
    if input_size is not None and input_size[0] != 3:
        kwargs.setdefault('in_chans', input_size[0])
    elsewhere = kwargs.keys() & {'pretrained_cfg', 'pretrained_cfg_overlay'}     # weights of the user's
    if kwargs['pretrained'] and not elsewhere and not is_local(name):
        _check_download(name, role)
    try:
        if input_size is not None and 'img_size' not in kwargs and ':' not in name:
            cfg = timm.get_pretrained_cfg(name)
            if cfg is not None and cfg.fixed_input_size and tuple(cfg.input_size) != tuple(input_size):
                kwargs['img_size'] = tuple(input_size[1:])
        model = timm.create_model(name, **kwargs)
    except Exception as error:
        raise SFTeacherError(f'timm could not build the {role} {name!r} with {kwargs}: {error}') from error
    if trained and not kwargs.get('checkpoint_path'):
        check_classifier(model, role, name)
    return model


def _check_download(name: str, role: str) -> None:
    """Notice within seconds that pretrained weights cannot be had; the hub's client tries for a minute."""
    cfg = None if ':' in name else timm.get_pretrained_cfg(name)
    repository, _, revision = (name.partition(':')[2] if cfg is None else cfg.hf_hub_id or '').partition('@')
    files = [n for n in (*_WEIGHTS, cfg and cfg.hf_hub_filename) if n]
    source = constants.ENDPOINT if cfg is None or repository else str(cfg.url)
    try:
        if not repository or not any(
                isinstance(try_to_load_from_cache(repository, n, revision=revision or None), str) for n in files):
            get_session().head(source, timeout=5)
    except Exception as error:      # of whichever library the hub's client uses
        raise SFTeacherError(
            f'the pretrained weights of {name!r} (given as {role}) cannot be downloaded, as {source} is not reached '
            f'({type(error).__name__}: {error}): train without them, or give local-dir:FOLDER, a timm model on disk'
        ) from error
