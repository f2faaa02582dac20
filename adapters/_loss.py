"""The loss of any method that acts in the teacher's training, inside torchdistill; see `torchdistill.py`."""
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torchdistill.losses.registry import get_low_level_loss

from sf_teacher import SFTeacherError
from sf_teacher.methods.base import Method, options, weighted_sum
from sf_teacher.methods.registry import configured


class MethodLoss(nn.Module):
    """The loss of a method, from what its wrapper `Teacher4...` hands over.

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
              kl_weight: 1.0
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
        self.method = configured(self.method_class, method or {})
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
        if not isinstance(output, dict) or set(output) != {'logits', 'step', 'active'}:
            raise SFTeacherError(f'{type(self).__name__}: {self.branches_path!r} is not the branch_output of '
                                 f'Teacher4{self.method_class.__name__}, its output is a {type(output).__name__}')
        step = output['step']
        if output['active'] != self.method.active:
            runs = 'run' if output['active'] else 'do not run'
            raise SFTeacherError(f'{type(self).__name__}: the branches {runs}, but by its `method` they should be '
                                 f'{"used" if self.method.active else "left out"}: give the wrapper and the '
                                 f'loss the same `method`')
        step = step._replace(target=targets, logits=logits, criterion=self.criterion)
        if not self._checked:
            step.check_target()
            self._checked = True
        terms = self.method.terms(step)
        return weighted_sum(terms, self.method.weights(step.progress))

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
