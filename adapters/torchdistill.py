"""torchdistill: student-friendly teachers in its YAML configs, and their training inside them.

Importing this module registers everything below; a config names it under ``dependencies``:

.. code-block:: YAML
   :caption: An ordinary knowledge distillation config with an exported teacher: these lines change, nothing else.

    dependencies:
      - name: 'sf_teacher.adapters.torchdistill'

    models:
      teacher_model:
        key: 'sf_teacher.timm_teacher'
        kwargs:
          model_name: 'local-dir:./exported/resnet50-sft'
"""
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from torch import nn
from torchdistill.common.constant import def_logger
from torchdistill.common.file_util import make_parent_dirs
from torchdistill.common.main_util import is_main_process
from torchdistill.core.interfaces.registry import FORWARD_PROC_FUNC_DICT, register_forward_proc_func
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, get_low_level_loss, register_mid_level_loss
from torchdistill.models.registry import (
    AUXILIARY_MODEL_WRAPPER_DICT,
    MODEL_DICT,
    register_auxiliary_model_wrapper,
    register_model,
)
from torchdistill.models.util import wrap_if_distributed
from torchdistill.models.wrapper import AuxiliaryModelWrapper

from sf_teacher import SFTeacherError, wrap
from sf_teacher.branches import BranchOutput, BranchSet
from sf_teacher.checks import check_target
from sf_teacher.losses import joint_loss
from sf_teacher.methods import METHODS, SFTN, Method, options
from sf_teacher.task import BranchedTeacher

from ._timm import build_model, build_teacher

logger = def_logger.getChild(__name__)


def timm_teacher(
        model_name: str,
        checkpoint_path: str | None = None,
        pretrained: bool = False,
        num_classes: int | None = None,
        **kwargs: Any,
) -> nn.Module:
    """A frozen teacher with weights for sure, in eval mode.

    torchdistill never touches a teacher's mode, so a teacher in eval mode stays in it and its normalisation statistics
    stay as they were exported. Under a key of torchvision's the teacher is in train mode and they drift.

    Args:
        model_name: ``local-dir:FOLDER`` for an exported teacher, or any timm name.
        checkpoint_path: Weights for a timm name, e.g. the ``teacher.pth`` of an exported folder.
        pretrained: Whether a timm name comes with timm's pretrained weights.
        num_classes: Classes; an exported folder knows its own and refuses others.
        **kwargs: Further arguments of ``timm.create_model``.

    Raises:
        SFTeacherError: There are no weights, or they are not this model's.

    .. code-block:: YAML
       :caption: An exported teacher; ``src_ckpt`` is not needed.

        teacher_model:
          key: 'sf_teacher.timm_teacher'
          kwargs:
            model_name: 'local-dir:./exported/resnet50-sft'
    """
    teacher = build_teacher(model_name, checkpoint_path, pretrained, num_classes, **kwargs)
    data = timm.data.resolve_model_data_config(teacher)
    logger.info(f'Teacher `{model_name}` in eval mode; made for images of size {data["input_size"]} normalised with '
                f'mean {data["mean"]} and std {data["std"]}: give it the same')
    return teacher


def timm_model(model_name: str, **kwargs: Any) -> nn.Module:
    """Any timm model, e.g. a student, or a teacher that is to be trained.

    Args:
        model_name: timm's name, ``local-dir:`` and ``hf-hub:`` too.
        **kwargs: Arguments of ``timm.create_model``.

    Raises:
        SFTeacherError: timm does not build it.

    .. code-block:: YAML
       :caption: An example YAML to instantiate a timm model.

        student_model:
          key: 'sf_teacher.timm_model'
          kwargs:
            model_name: 'resnet18'
            num_classes: 100
          src_ckpt:
          dst_ckpt: './resource/ckpt/resnet18.pt'
    """
    return build_model(model_name, **kwargs)


def skip_forward(model: nn.Module, sample_batch: Any, *args: Any, **kwargs: Any) -> None:
    """Do not run a model: for the student in the stage that trains the teacher."""


class Teacher4Method(AuxiliaryModelWrapper):
    """A teacher with its branches, trained together; torchdistill sees, saves and tests the plain teacher.

    In a stage of a ``DistillationBox`` it wraps the teacher, in a ``TrainingBox`` the only model. Branches are those of
    `sf_teacher.wrap`; they run while it trains, and ``branch_output`` is the module to hook, through which they reach
    the method's loss. Modules for ``frozen_modules`` are ``teacher.…`` and ``branches.…``. Leave ``wrapper:`` empty:
    DistributedDataParallel is applied inside, at the first step, so that ``frozen_modules`` is respected.

    Checkpoints hold the plain teacher under its own keys, so that ``dst_ckpt`` and the test at the end need no
    wrapper. In a ``DistillationBox``, which leaves a teacher's mode alone, this sets it: train mode while gradients are
    recorded, and eval mode after each epoch, in which the next stage then finds it.

    Args:
        device: Given by torchdistill.
        device_ids: Given by torchdistill.
        distributed: Given by torchdistill.
        students: timm name of the student, or several.
        method: Options of the method. The loss takes the same: share them by a YAML anchor.
        boundaries: Where to attach branches, see `sf_teacher.wrap`.
        num_classes: Classes; needed for a teacher that timm did not build.
        input_size: [C, H, W] of the images; by default what the teacher was made for.
        student_kwargs: Arguments of ``timm.create_model`` for the students.
        ckpt_file_path: Where the branches are kept, to resume a run: loaded if it exists, written after every epoch.
        export: Arguments of `sf_teacher.export.export`, ``folder`` among them: where the plain teacher goes, and the
            ``mean`` and ``std`` of this config's images. By default nothing is exported.
        best_ckpt: Export only when torchdistill has just written this file (its ``dst_ckpt``), i.e. the best epoch.
        num_epochs: Export only after this many epochs. With neither, each epoch's teacher replaces the one before.
        find_unused_parameters: For DistributedDataParallel; by default only with frozen modules.
        teacher_model: Given by torchdistill's ``DistillationBox``.
        student_model: Given by torchdistill's ``TrainingBox``.

    Raises:
        SFTeacherError: Something does not fit; nothing was trained.

    .. code-block:: YAML
       :caption: The stage of a ``DistillationBox`` that trains the teacher (`SFTN` here).

        stage1:
          num_epochs: &epochs1 240
          teacher:
            forward_proc: 'forward_batch_only'
            auxiliary_model_wrapper:
              key: 'Teacher4SFTN'
              kwargs:
                students: 'resnet18'
                method: &method
                  kl_weight: 3.0
                input_size: [3, 32, 32]
                num_epochs: *epochs1
                export:
                  folder: './exported/resnet50-sft'
                  mean: [0.507, 0.487, 0.441]
                  std: [0.267, 0.256, 0.276]
            forward_hook:
              input: []
              output: ['branch_output']
            wrapper:
            requires_grad: True
          student:
            forward_proc: 'sf_teacher.skip_forward'
            requires_grad: False
          criterion:
            key: 'WeightedSumLoss'
            kwargs:
              sub_terms:
                sftn:
                  criterion:
                    key: 'SFTNLoss'
                    kwargs:
                      method: *method
                  weight: 1.0
    """
    method_class: ClassVar[type[Method]]

    def __init__(
            self,
            device: torch.device,
            device_ids: list[int] | None = None,
            distributed: bool = False,
            students: str | list[str] | None = None,
            method: Mapping[str, Any] | None = None,
            boundaries: list | None = None,
            num_classes: int | None = None,
            input_size: list[int] | None = None,
            student_kwargs: Mapping[str, Any] | None = None,
            ckpt_file_path: str | None = None,
            export: Mapping[str, Any] | None = None,
            best_ckpt: str | None = None,
            num_epochs: int | None = None,
            find_unused_parameters: bool | None = None,
            teacher_model: nn.Module | None = None,
            student_model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        model = teacher_model if teacher_model is not None else student_model
        if model is None:
            raise SFTeacherError(f'{type(self).__name__} wraps a teacher_model or student_model, got neither')
        self._owns_mode = teacher_model is not None
        task = wrap(
            model,
            students,
            method=_method(self.method_class, method),
            boundaries=boundaries,
            num_classes=num_classes,
            input_size=None if input_size is None else tuple(input_size),
            student_kwargs=dict(student_kwargs or {}),
        )
        logger.info(task)
        self.model: BranchedTeacher = task.trainable_module
        self.branch_output, self._output = nn.Identity(), BranchOutput({})
        self._parallel: list[nn.Module] = []    # a list hides it: its parameters are those of self.model
        self._parallel_kwargs = dict(device=device, device_ids=device_ids, distributed=distributed,
                                     find_unused_parameters=find_unused_parameters)
        self._metadata = dict(method={'name': self.method_class.__name__, **options(task.method)},
                              students=task.student_names)
        self.ckpt_file_path, self._export = ckpt_file_path, dict(export) if export else None
        self.best_ckpt, self.num_epochs, self._epoch = best_ckpt, num_epochs, 0
        self._best_seen = _stamp(best_ckpt)
        if self._export is not None:
            self._export.setdefault('input_size', task.input_size)
            self._check_export()
        if ckpt_file_path is not None and os.path.isfile(ckpt_file_path):
            self._load_branches(ckpt_file_path)
        self.train()

    @property
    def teacher(self) -> nn.Module:
        """The plain teacher."""
        return self.model.teacher

    @property
    def branches(self) -> BranchSet:
        """The branch set."""
        return self.model.branches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if getattr(self, '_is_replica', False):
            raise SFTeacherError(
                f'{type(self).__name__} runs in DataParallel on several devices, where outputs of hooked modules get '
                f'lost: leave `wrapper:` empty and start one process per device (torchrun)')
        if self._owns_mode:
            self.train(torch.is_grad_enabled())
        if not self.training:
            return self.teacher(x)
        if not self._parallel:
            self._parallel.append(wrap_if_distributed(self.model, **self._parallel_kwargs))
        logits, output = self._parallel[0](x)
        self._output = output or BranchOutput({})
        return logits

    def secondary_forward(self, *args: Any, **kwargs: Any) -> None:
        """Hand the branches' output to the hook here, as torchdistill <= 1.1.3 copies what was hooked earlier."""
        output, self._output = self._output, BranchOutput({})
        self.branch_output({'logits': output.logits, 'terms': output.terms})

    def post_epoch_process(self, *args: Any, **kwargs: Any) -> None:
        self._epoch += 1
        if self._owns_mode:
            self.eval()
        if not is_main_process():
            return
        if self.ckpt_file_path is not None:
            make_parent_dirs(self.ckpt_file_path)
            torch.save({'model': self.branches.state_dict()}, self.ckpt_file_path)
        if self._export is not None and self._export_is_due():
            from sf_teacher.export import export

            folder = export(self.teacher, metadata=self._metadata, **self._export)
            self._export['overwrite'] = True    # from now on it is this run's own
            logger.info(f'Exported the teacher of epoch {self._epoch} to {folder}')

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """That of the plain teacher."""
        return self.teacher.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a plain teacher; the branches stay as they are."""
        return self.teacher.load_state_dict(state_dict, strict=strict, assign=assign)

    def _check_export(self) -> None:
        """Refuse what could only fail after an epoch of training."""
        from sf_teacher import plain
        from sf_teacher.export import check_target

        given = dict(self._export or {})
        where = f'{type(self).__name__}, `export`'
        if 'folder' not in given:
            raise SFTeacherError(f'{where}: `folder` is missing, got {", ".join(given)}')
        try:
            check_target(Path(given['folder']).expanduser().resolve(), given.get('overwrite', False))
            if given.get('factory') is None:
                plain.identify(plain.plain_copy(self.teacher), given.get('model_args') or {})
            plain.data_config(self.teacher, given['input_size'], given.get('mean'), given.get('std'))
        except SFTeacherError as error:
            raise SFTeacherError(f'{where}: {error}') from error

    def _export_is_due(self) -> bool:
        if self.num_epochs is not None:
            return self._epoch == self.num_epochs
        if self.best_ckpt is None:
            return True
        seen, self._best_seen = self._best_seen, _stamp(self.best_ckpt)
        return self._best_seen != seen

    def _load_branches(self, path: str) -> None:
        try:
            state = torch.load(path, map_location='cpu', weights_only=True)['model']
            self.branches.load_state_dict(state)
        except Exception as error:
            raise SFTeacherError(
                f'{type(self).__name__}, `ckpt_file_path`: {path} does not hold the branches of this teacher and '
                f'method ({error}). Delete the file to start anew, or name another.') from error
        logger.info(f'Loaded the branches from {path}')


class MethodLoss(nn.Module):
    """The joint loss of a teacher and its branches, `sf_teacher.losses.joint_loss`.

    Args:
        method: Options of the method, the same as its wrapper's.
        is_from_teacher: True in a ``DistillationBox``, False in a ``TrainingBox``.
        module_path: Where the teacher's logits are.
        branches_path: The hooked module that hands over the branches' output.
        criterion: Key and kwargs of the task loss, used for the teacher and every branch; cross entropy by default.
        **kwargs: Ignored, as in torchdistill's own losses.

    Raises:
        SFTeacherError: An option is unknown or wrong; in the first step, there is no output to compute it from.

    .. code-block:: YAML
       :caption: An example YAML to instantiate the loss of a ``TrainingBox`` (`SFTN` here).

        criterion:
          key: 'SFTNLoss'
          kwargs:
            is_from_teacher: False
            method:
              kl_weight: 3.0
              temperature: 1.0
            criterion:
              key: 'CrossEntropyLoss'
              kwargs:
                label_smoothing: 0.1
    """
    method_class: ClassVar[type[Method]]

    def __init__(
            self,
            method: Mapping[str, Any] | None = None,
            is_from_teacher: bool = True,
            module_path: str = '.',
            branches_path: str = 'branch_output',
            criterion: Mapping[str, Any] | None = None,
            **kwargs: Any,
    ) -> None:
        super().__init__()
        self.method = _method(self.method_class, method)
        self.is_from_teacher, self.module_path, self.branches_path = is_from_teacher, module_path, branches_path
        criterion = criterion or {'key': 'CrossEntropyLoss'}
        self.criterion = get_low_level_loss(criterion['key'], **(criterion.get('kwargs') or {}))
        self._checked = False

    def forward(
            self,
            student_io_dict: dict[str, Any],
            teacher_io_dict: dict[str, Any],
            targets: torch.Tensor,
            *args: Any,
            **kwargs: Any,
    ) -> torch.Tensor:
        io_dict = teacher_io_dict if self.is_from_teacher else student_io_dict
        logits = self._output(io_dict, self.module_path)
        output = self._output(io_dict, self.branches_path)
        if not isinstance(output, dict) or set(output) != {'logits', 'terms'}:
            raise SFTeacherError(f'{type(self).__name__}: {self.branches_path!r} is not the branch_output of '
                                 f'Teacher4{self.method_class.__name__}, its output is a {type(output).__name__}')
        if bool(output['logits'] or output['terms']) != self.method.uses_branches:
            runs = 'run' if output['logits'] or output['terms'] else 'do not run'
            raise SFTeacherError(f'{type(self).__name__}: the branches {runs}, but by its `method` they should be '
                                 f'{"used" if self.method.uses_branches else "left out"}: give the wrapper and the '
                                 f'loss the same `method`')
        if not self._checked:
            check_target(targets, len(logits), logits.shape[1])
            self._checked = True
        return joint_loss(logits, output['logits'], output['terms'], targets, self.criterion, self.method)['loss']

    def _output(self, io_dict: dict[str, Any], path: str) -> Any:
        if io_dict.get(path, {}).get('output') is None:
            side = 'teacher' if self.is_from_teacher else 'student'
            raise SFTeacherError(
                f'{type(self).__name__}: there is no output of {path!r} on the {side}\'s side, which has '
                f'{", ".join(map(repr, io_dict)) or "nothing"}. It needs the auxiliary_model_wrapper '
                f'\'Teacher4{self.method_class.__name__}\' with forward_hook output [{self.branches_path!r}] and, in a '
                f'TrainingBox, is_from_teacher: False')
        return io_dict[path]['output']

    def __str__(self) -> str:
        settings = ', '.join(f'{name}={value}' for name, value in options(self.method).items())
        return f'{type(self).__name__}({settings})'


class Teacher4SFTN(Teacher4Method):
    __doc__ = f'SFTN, Student-Friendly Teacher Networks (Park et al., NeurIPS 2021).\n\n    {Teacher4Method.__doc__}'
    method_class = SFTN


class SFTNLoss(MethodLoss):
    __doc__ = f'SFTN, Student-Friendly Teacher Networks (Park et al., NeurIPS 2021).\n\n    {MethodLoss.__doc__}'
    method_class = SFTN


def _method(cls: type[Method], given: Mapping[str, Any] | None) -> Method:
    allowed = [f.name for f in fields(cls)]
    if unknown := [name for name in given or {} if name not in allowed]:
        raise SFTeacherError(f'{cls.__name__} has no option {", ".join(map(repr, unknown))}: it has '
                             f'{", ".join(allowed)}')
    return cls(**(given or {}))


def _stamp(path: str | None) -> tuple[int, int] | None:
    """What changes when a file is written again."""
    if path is None or not os.path.isfile(path):
        return None
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_ino


def _register(registry: Mapping[str, Any], register: Callable[..., Any], entries: Iterable[tuple[str, Any]]) -> None:
    for key, value in entries:
        taken = registry.get(key)
        if taken is not None and (taken.__module__, taken.__qualname__) != (value.__module__, value.__qualname__):
            raise SFTeacherError(
                f'torchdistill\'s key {key!r} is taken by {taken.__module__}.{taken.__qualname__}: register that under '
                f'another key, or leave its module out of `dependencies`')
        register(key=key)(value)


def _for_every_method(base: type, prefix: str, suffix: str) -> list[tuple[str, type]]:
    """The class of each method: the one above, or one made from `base`."""
    found = []
    for cls in METHODS.values():
        name = f'{prefix}{cls.__name__}{suffix}'
        made = globals().get(name) or type(name, (base,), {
            '__doc__': base.__doc__, '__module__': __name__, 'method_class': cls})
        found.append((name, made))
    return found


_register(MODEL_DICT, register_model,
          [('sf_teacher.timm_teacher', timm_teacher), ('sf_teacher.timm_model', timm_model)])
_register(FORWARD_PROC_FUNC_DICT, register_forward_proc_func, [('sf_teacher.skip_forward', skip_forward)])
_register(AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper,
          _for_every_method(Teacher4Method, 'Teacher4', ''))
_register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, _for_every_method(MethodLoss, '', 'Loss'))
