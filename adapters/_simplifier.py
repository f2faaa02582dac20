"""Student-friendly knowledge distillation inside torchdistill: the teacher's side, where the simplifier is trained."""
import os
from typing import Any

import torch
from torch import nn
from torchdistill.common.constant import def_logger
from torchdistill.common.file_util import make_parent_dirs
from torchdistill.common.main_util import is_main_process
from torchdistill.models.util import wrap_if_distributed
from torchdistill.models.wrapper import AuxiliaryModelWrapper

from sf_teacher import SFTeacherError
from sf_teacher.methods._simplifier import CollapseWatch, Simplifier

logger = def_logger.getChild(__name__)


class Teacher4StudentFriendlyKD(AuxiliaryModelWrapper):
    """A frozen teacher in eval mode and a simplifier of its logits, which learns with the student.

    After the abstract of Yuan, Lang and Quan (2023, arXiv 2305.10893), see `sf_teacher.simplifier`. Its output are the
    simplified logits, for any loss on logits: the distillation loss stays as it is and trains both. torchdistill trains
    parameters of models only, which is why the simplifier is here and not in the loss.

    The stage needs ``requires_grad: True`` for the teacher, so that the simplifier is trained (the teacher itself is
    frozen here), and gives it a smaller learning rate by ``module_wise_configs``, which must then name all modules of
    the student (torchdistill has no name for the whole). Leave ``wrapper:`` empty: DistributedDataParallel is applied
    inside. Each epoch the log shows the entropy of the targets and how often
    their class is the teacher's; a warning tells of a collapse.

    Args:
        teacher_model: Given by torchdistill.
        device: Given by torchdistill.
        device_ids: Given by torchdistill.
        distributed: Given by torchdistill.
        temperature: That of the loss.
        num_classes: Classes; needed for a teacher without an attribute of this name, such as torchvision's.
        dim: Width of the attention; by default the number of classes.
        ckpt_file_path: Where the simplifier is kept, to resume a run: loaded if it exists, written after every epoch.

    Raises:
        SFTeacherError: Something does not fit; in the first step, the simplifier would not be trained.

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

    def __init__(
            self,
            teacher_model: nn.Module,
            device: torch.device,
            device_ids: list[int] | None = None,
            distributed: bool = False,
            temperature: float = 4.,
            num_classes: int | None = None,
            dim: int | None = None,
            ckpt_file_path: str | None = None,
    ) -> None:
        super().__init__()
        known = getattr(teacher_model, 'num_classes', num_classes)
        if known is None or (num_classes is not None and known != num_classes):
            raise SFTeacherError(
                f'{type(self).__name__}: teacher {type(teacher_model).__name__} has {known or "an unknown number of"} '
                f'classes, num_classes={num_classes}: give the number that it has')
        with torch.random.fork_rng(devices=[]):
            self.simplifier = Simplifier(known, temperature, dim).to(device)
        self.teacher = teacher_model.eval().requires_grad_(False)
        self._parallel: list[nn.Module] = []    # a list hides it: its parameters are those of self.simplifier
        self._parallel_kwargs = dict(device=device, device_ids=device_ids, distributed=distributed)
        self._watch, self._seen, self._steps = CollapseWatch(), torch.zeros(2), 0
        self.ckpt_file_path = ckpt_file_path
        if ckpt_file_path is not None and os.path.isfile(ckpt_file_path):
            self._load(ckpt_file_path)

    def train(self, mode: bool = True) -> 'Teacher4StudentFriendlyKD':
        """Set the simplifier's mode; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if getattr(self, '_is_replica', False):
            raise SFTeacherError(f'{type(self).__name__} runs in DataParallel on several devices, where each sees a '
                                 f'part of the batch: leave `wrapper:` empty, start one process per device (torchrun)')
        if not self.simplifier.proj.weight.requires_grad:
            raise SFTeacherError(f'{type(self).__name__}: the simplifier is frozen and would never learn: set '
                                 f'`requires_grad: True` in the `teacher:` of this stage; the teacher itself is frozen')
        self.train(torch.is_grad_enabled())
        with torch.no_grad():
            logits = self.teacher(x)
        if not self._parallel:
            self._parallel.append(wrap_if_distributed(self.simplifier, **self._parallel_kwargs))
        targets = self._parallel[0](logits)
        if self.training:
            temperature = self.simplifier.temperature
            seen = self._watch.update(logits, targets, logits.argmax(-1), temperature, training=True)
            self._seen = self._seen.to(logits.device) + torch.stack(list(seen.values()))
            self._steps += 1
        return targets

    def post_epoch_process(self, *args: Any, **kwargs: Any) -> None:
        if self._steps:
            agreement, entropy = (self._seen / self._steps).tolist()
            logger.info(f'Simplified targets: entropy {entropy:.3f} nats, {agreement:.2f} % of the teacher\'s classes')
        self._seen, self._steps = torch.zeros(2), 0
        if self.ckpt_file_path is not None and is_main_process():
            make_parent_dirs(self.ckpt_file_path)
            torch.save({'model': self.simplifier.state_dict()}, self.ckpt_file_path)

    def _load(self, path: str) -> None:
        try:
            self.simplifier.load_state_dict(torch.load(path, map_location='cpu', weights_only=True)['model'])
        except Exception as error:
            raise SFTeacherError(f'{type(self).__name__}, `ckpt_file_path`: {path} does not hold this simplifier '
                                 f'({error}). Delete the file to start anew, or name another.') from error
        logger.warning(f'Going on with the simplifier of {path}: for a new run delete the file or name another')
