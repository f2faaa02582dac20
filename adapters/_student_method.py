"""Methods of the student's phase inside torchdistill: the frozen teacher and the module trained on its logits."""
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torchdistill.common.constant import def_logger
from torchdistill.common.file_util import make_parent_dirs
from torchdistill.common.main_util import is_main_process
from torchdistill.models.util import wrap_if_distributed
from torchdistill.models.wrapper import AuxiliaryModelWrapper

from sf_teacher import SFTeacherError
from sf_teacher.files import write_atomically
from sf_teacher.methods.base import Context, Method, Progress, Step
from sf_teacher.methods.registry import configured

logger = def_logger.getChild(__name__)


class Teacher4StudentMethod(AuxiliaryModelWrapper):
    """A frozen teacher in eval mode and a method's module, e.g. a simplifier, trained jointly with the student.

    Its output is the module's transform of the teacher's logits, the soft targets of any logit-based distillation loss,
    through which both are trained. torchdistill optimises the parameters of models only, hence the module is part of
    the teacher's side and not of the loss.

    Set ``requires_grad: True`` for the teacher of the stage, so that the module is trained (the teacher itself stays
    frozen), and the module's smaller learning rate in ``module_wise_configs``, which must then list all modules of the
    student as well. Leave ``wrapper:`` empty: DistributedDataParallel is applied inside. The log shows for each epoch
    the entropy of the soft targets and their top-1 agreement with the teacher; a collapse is a warning.

    Args:
        teacher_model: Given by torchdistill.
        device: Given by torchdistill.
        device_ids: Given by torchdistill.
        distributed: Given by torchdistill.
        num_classes: Classes; needed for a teacher without an attribute of this name, such as torchvision's.
        ckpt_file_path: Checkpoint of the module, to resume a run: loaded if it exists, written after every epoch.
        **options: Options of the method, e.g. the temperature of the loss.

    Raises:
        SFTeacherError: Something does not fit; in the first step, the module would not be trained.

    .. code-block:: YAML
       :caption: The teacher and the optimizer of a stage; the student and the loss are those of ordinary distillation.

        teacher:
          forward_proc: 'forward_batch_only'
          auxiliary_model_wrapper:
            key: 'Teacher4StudentFriendlyKD'
            kwargs:
              temperature: 4.0
          wrapper:
          requires_grad: True
        optimizer:
          key: 'SGD'
          kwargs:
            lr: 0.05
            momentum: 0.9
          module_wise_configs:
            - module: 'conv1'
            - module: 'bn1'
            - module: 'layer1'
            - module: 'layer2'
            - module: 'layer3'
            - module: 'layer4'
            - module: 'fc'
            - module: 'simplifier'
              is_teacher: True
              kwargs:
                lr: 0.000025
    """

    method_class: ClassVar[type[Method]]

    def __init__(
            self,
            teacher_model: nn.Module,
            device: torch.device,
            device_ids: list[int] | None = None,
            distributed: bool = False,
            num_classes: int | None = None,
            ckpt_file_path: str | None = None,
            **options: Any,
    ) -> None:
        super().__init__()
        known = getattr(teacher_model, 'num_classes', num_classes)
        if known is None or (num_classes is not None and known != num_classes):
            raise SFTeacherError(
                f'{type(self).__name__}: teacher {type(teacher_model).__name__} has {known or "an unknown number of"} '
                f'classes, num_classes={num_classes}: give the number that it has')
        self.method, self._name = configured(self.method_class, options), self.method_class.extra_name
        with torch.random.fork_rng(devices=[]):
            extra = self.method.build(Context(teacher_model, (), None, (0, 0, 0), known))
        if extra is None:
            raise SFTeacherError(f'{type(self).__name__}: {self.method_class.__name__} trains no module beside the '
                                 f'student: use its loss without a wrapper')
        setattr(self, self._name, extra.to(device))
        self.teacher = teacher_model.eval().requires_grad_(False)
        self._parallel: list[nn.Module] = []    # a list hides it: its parameters are those of self.extra
        self._parallel_kwargs = dict(device=device, device_ids=device_ids, distributed=distributed)
        self._sums, self._steps = torch.zeros(2), 0
        self.ckpt_file_path = ckpt_file_path
        if ckpt_file_path is not None and os.path.isfile(ckpt_file_path):
            self._load(ckpt_file_path)

    @property
    def extra(self) -> nn.Module:
        """The method's module."""
        return getattr(self, self._name)

    def train(self, mode: bool = True) -> 'Teacher4StudentMethod':
        """Set the module's mode; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if getattr(self, '_is_replica', False):
            raise SFTeacherError(f'{type(self).__name__} runs in DataParallel on several devices, where each sees a '
                                 f'part of the batch: leave `wrapper:` empty, start one process per device (torchrun)')
        if not any(p.requires_grad for p in self.extra.parameters()):
            raise SFTeacherError(f'{type(self).__name__}: the {self._name} is frozen and would not be trained: set '
                                 f'`requires_grad: True` in the `teacher:` of this stage; the teacher itself is frozen')
        self.train(torch.is_grad_enabled())
        with torch.no_grad():
            logits = self.teacher(x)
        if not self._parallel:
            self._parallel.append(wrap_if_distributed(self.extra, **self._parallel_kwargs))
        step = Step(x, None, None, logits, [], self._parallel[0], None, None, Progress(), reference=logits)
        targets = self.method.run(step)
        if self.training:
            self._watch(logits, targets)
        return targets

    @torch.no_grad()
    def _watch(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        watch, temperature = getattr(self.extra, 'watch', None), getattr(self.method, 'temperature', 1.)
        if watch is not None:
            of_targets = watch.update(logits, targets, logits.argmax(-1), temperature, training=True)
            self._sums = self._sums.to(logits.device) + torch.stack(list(of_targets.values()))
            self._steps += 1

    def post_epoch_process(self, *args: Any, **kwargs: Any) -> None:
        if self._steps:
            agreement, entropy = (self._sums / self._steps).tolist()
            logger.info(f'Simplified targets: entropy {entropy:.3f} nats, {agreement:.2f} % of the teacher\'s classes')
        self._sums, self._steps = torch.zeros(2), 0
        if self.ckpt_file_path is not None and is_main_process():
            make_parent_dirs(self.ckpt_file_path)
            whole = {'model': self.extra.state_dict()}
            write_atomically(Path(self.ckpt_file_path), lambda file: torch.save(whole, file))

    def _load(self, path: str) -> None:
        try:
            self.extra.load_state_dict(torch.load(path, map_location='cpu', weights_only=True)['model'])
        except Exception as error:
            raise SFTeacherError(f'{type(self).__name__}, `ckpt_file_path`: {path} does not hold this {self._name} '
                                 f'({error}). Delete the file to start anew, or name another.') from error
        logger.warning(f'Resuming the {self._name} of {path}: for a new run delete the file or name another')
