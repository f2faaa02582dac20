"""A teacher trained with its branches inside torchdistill, for any method; see `torchdistill.py`."""
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torchdistill.common.constant import def_logger
from torchdistill.common.main_util import is_main_process
from torchdistill.models.util import wrap_if_distributed
from torchdistill.models.wrapper import AuxiliaryModelWrapper

import sf_teacher
from sf_teacher import SFTeacherError
from sf_teacher.methods.base import Method, options
from sf_teacher.methods.registry import configured

from ._teacher_files import BranchCheckpoint, TeacherExport

logger = def_logger.getChild(__name__)


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
        ckpt_file_path: Checkpoint of the branches, to resume a run: loaded if it exists, written after every epoch.
        export: Arguments of `sf_teacher.export`, ``folder`` among them: where the plain teacher goes, and the
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
                  kl_weight: 1.0
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
            requires_grad: True
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
            boundaries: list[Any] | None = None,
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
        _state_images(model, export or {})
        task = sf_teacher.wrap(
            model,
            students,
            method=configured(self.method_class, method or {}),
            boundaries=boundaries,
            num_classes=num_classes,
            input_size=_size(input_size),
            student_kwargs=dict(student_kwargs or {}),
        )
        logger.info(task)
        if self.method_class.needs_index:
            raise SFTeacherError(f'{type(self).__name__}: {self.method_class.__name__} needs to know which images of '
                                 f'the data set a batch holds, and torchdistill\'s loaders do not tell: train this '
                                 f'teacher with `sf-teacher train` or in a loop of your own')
        self._task = [task]     # a list hides it: its modules are those of self.model
        self.model = task.joint
        self.branch_output, self._handed_over = nn.Identity(), {}   # type: nn.Module, dict[str, Any]
        self._parallel: list[nn.Module] = []    # a list hides it: its parameters are those of self.model
        self._parallel_kwargs = dict(device=device, device_ids=device_ids, distributed=distributed,
                                     find_unused_parameters=find_unused_parameters)
        whose, self.num_epochs = type(self).__name__, num_epochs
        metadata = {'method': {'name': self.method_class.__name__, **options(task.method)},
                    'students': task.student_names}
        self._export = TeacherExport(export, task, metadata, best_ckpt, num_epochs, whose) if export else None
        self._checkpoint = BranchCheckpoint(ckpt_file_path, whose) if ckpt_file_path is not None else None
        self._epoch, self._steps = self._checkpoint.load(self.branches, num_epochs) if self._checkpoint else (0, 0)
        self._begin_epoch()
        self.train()

    @property
    def teacher(self) -> nn.Module:
        """The plain teacher."""
        return self.model.model

    @property
    def branches(self) -> Any:
        """What the method trains beside the teacher, e.g. its branches; None for a method without."""
        return self.model.extra

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
        self.model.progress.step, self._steps = self._steps, self._steps + 1
        logits, maps, output = self._parallel[0](x)
        self._handed_over = {'logits': logits, 'step': self.model.step(x, logits, maps, output),
                             'active': self.model.method.active}
        return logits

    def secondary_forward(self, *args: Any, **kwargs: Any) -> None:
        """Hand the branches' output to the hook here, as torchdistill <= 1.1.4 copies what was hooked earlier."""
        handed_over, self._handed_over = self._handed_over, {}
        self.branch_output(handed_over)

    def _begin_epoch(self) -> None:
        if self.num_epochs is None or self._epoch < self.num_epochs:
            self._task[0].set_epoch(self._epoch, self.num_epochs)

    def post_epoch_process(self, *args: Any, **kwargs: Any) -> None:
        self._epoch += 1
        if self._owns_mode:
            self.eval()
        if is_main_process():
            if self._checkpoint is not None:
                self._checkpoint.save(self.branches, self._epoch, self._steps)
            if self._export is not None:
                self._export.after_epoch(self.teacher, self._epoch)
        self._begin_epoch()     # the next one, on every process

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """That of the plain teacher."""
        return self.teacher.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a plain teacher; the branches stay as they are."""
        return self.teacher.load_state_dict(state_dict, strict=strict, assign=assign)


def _state_images(model: Any, export: Mapping[str, Any]) -> None:
    """Write this config's mean and standard deviation, as far as it says them, where methods read them."""
    stated = {n: (v,) if isinstance(v, int | float) else tuple(v) for n in ('mean', 'std') if (v := export.get(n))}
    if stated:
        model.pretrained_cfg = {**(getattr(model, 'pretrained_cfg', None) or {}), **stated}


def _size(given: list[int] | None) -> tuple[int, int, int] | None:
    if given is None:
        return None
    if len(given) != 3:
        raise SFTeacherError(f'input_size is [channels, height, width], got {given}')
    channels, height, width = given
    return channels, height, width
