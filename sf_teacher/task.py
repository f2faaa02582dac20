"""The student-friendly teacher as a timm training task."""
from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from .checks import check_batch, check_model, check_placement, check_size, check_target
from .errors import SFTeacherError
from .exporting.architecture import name_of
from .exporting.class_names import check_same_order
from .joint_task import JointTask
from .methods import get_method
from .methods.base import Context, Criterion, Method, changed_options
from .split.boundaries import Size, default_input_size
from .split.selection import Boundaries

_logger = logging.getLogger(__name__)


class StudentFriendlyTask(JointTask):
    """Trains a teacher together with student branches; what is evaluated, saved and exported is the plain teacher.

    Args:
        model: The teacher, a timm model or, with module paths in `boundaries`, any module.
        criterion: Task loss of the teacher and of every branch; cross entropy by default.
        students: Student model or models; not needed by methods that make their own branches.
        method: A method's name or config.
        boundaries: Where to attach branches: teacher boundaries (timm feature indices or module paths), or pairs
            (teacher boundary, student boundary); ``'layer1:0'`` is the first of several tensors that a module
            returns, ``'stages.1:NHWC'`` says its layout. By default the ends of the stages, paired by resolution, or by
            relative depth where a model has only one. With several students they count for each.
        input_size: (C, H, W) of the images; by default the teacher's data config.
        device: As in timm, where the teacher is; branches are moved there.
        dtype: As in timm, the teacher's; branches are converted to it.
        verbose: As in timm.

    Raises:
        SFTeacherError: The models, boundaries and sizes do not fit together; nothing has been changed.

    Examples:

        ```python
        task = StudentFriendlyTask(teacher, nn.CrossEntropyLoss(), students=student)
        losses = task(images, targets)
        losses['loss'].backward()
        ```
    """
    def __init__(
            self,
            model: nn.Module,
            criterion: Criterion | None = None,
            students: nn.Module | Sequence[nn.Module] = (),
            method: str | Method = 'sftn',
            boundaries: Boundaries | None = None,
            input_size: Size | None = None,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
            verbose: bool = True,
    ) -> None:
        check_model(model, 'teacher')
        like = next((p for p in model.parameters() if p.is_floating_point()), next(model.parameters()))
        check_placement(model, device, dtype)
        if not any(p.requires_grad for p in model.parameters()):
            _logger.warning('Teacher %s is frozen (requires_grad is off): it will not be trained, only its branches. '
                            'Call requires_grad_() first if it is to learn', type(model).__name__)
        super().__init__(device=device or like.device, dtype=dtype or like.dtype, verbose=verbose)
        method = get_method(method)
        students = [students] if isinstance(students, nn.Module | str) else list(students)
        for student in students:
            check_model(student, 'student')
            if method.trained_students:
                check_same_order(model, student)
        self.criterion = criterion if criterion is not None else nn.CrossEntropyLoss()
        self.input_size = check_size(input_size or default_input_size(model))
        if students and not method.takes_students:
            given = ', '.join(type(s).__name__ for s in students)
            raise SFTeacherError(f'{type(method).__name__} takes no students, got {given}: leave students out, '
                                 f'wrap(teacher, method="{method.key}"), or choose a method that trains with '
                                 f'them, e.g. sftn')
        if boundaries is not None and not method.uses_boundaries:
            raise SFTeacherError(f'{type(method).__name__} attaches nothing at boundaries, got boundaries='
                                 f'{boundaries!r}: leave them out')
        with torch.random.fork_rng(devices=[]):     # branches leave the training's random numbers alone
            context = Context(model, students, boundaries, self.input_size)
            extra = method.build(context)
            self.num_classes, self.student_names = context.num_classes, [name_of(s) for s in students]
        self.join(model, extra, method)
        self._checked = False

    @property
    def teacher(self) -> nn.Module:
        """The plain teacher that is being trained."""
        return self.joint.model

    @property
    def branches(self) -> Any:
        """What the method trains beside the teacher, e.g. its branches; None for a method without."""
        return self.joint.extra

    def forward(
            self,
            input: torch.Tensor,
            target: torch.Tensor,
            index: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """One forward of teacher and branches, and the method's loss.

        Args:
            input: Images [B, C, H, W].
            target: Labels [B], or soft targets [B, K] where the criterion takes them.
            index: Numbers of the images in the data set [B], for a method that needs them.

        Returns:
            ``"loss"`` to call backward on, ``"output"`` (the teacher's logits [B, K]), ``"branch_output"`` (the
            branches' logits by name) and every term of the loss by name, see the method.

        Raises:
            SFTeacherError: Images of wrong channels or size, or (first batch only) labels out of range.
        """
        check_batch(input, self.input_size)
        if not self._checked:
            check_target(target, len(input), self.num_classes)
            self._checked = True
        if self.method.needs_index and self.joint.training and index is None:
            raise SFTeacherError(f'{type(self.method).__name__} needs to know which images of the data set a batch '
                                 f'holds: call task(images, targets, index) with their numbers [B]; a loader that '
                                 f'does not tell them cannot be used with this method')
        return self.losses(input, target, index=index)

    def run(self, *inputs: torch.Tensor) -> Any:
        """As the base class does; a failure for images of another size than the task was made for says so."""
        size = tuple(inputs[0].shape[1:])
        try:
            return super().run(*inputs)
        except (SFTeacherError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            if 'more than 1 value per channel' in str(error):
                raise SFTeacherError(f'batch norm cannot train with batch size 1 on a map of 1x1 ({error}): use larger '
                                     f'batches (drop_last=True), larger images or earlier `boundaries`') from error
            if size == self.input_size:
                raise
            raise SFTeacherError(
                f'images of size {size} do not fit: teacher and branches were built for input_size={self.input_size} '
                f'({type(error).__name__}: {error}). Resize the images or give this size as `input_size`.') from error

    def export(
            self,
            folder: str | os.PathLike[str],
            *,
            ema: bool = False,
            metadata: Mapping[str, Any] | None = None,
            **kwargs: Any,
    ) -> Path:
        """Export the teacher as a plain timm folder, see `sf_teacher.export`. With several ranks, call it on one.

        Args:
            folder: Where to.
            ema: Export the teacher's EMA weights; `setup_ema` must have been called.
            metadata: For the model card, beside the method and the students, which are filled in.
            kwargs: Further arguments of `sf_teacher.export`.

        Raises:
            SFTeacherError: The teacher or the place is not fit for it; nothing was written.
        """
        from .exporting.exporter import export
        if ema and not self.has_ema():
            raise SFTeacherError('task.export(ema=True) needs task.setup_ema() before training')
        teacher = unwrap_model(self.get_trainable_module(ema=ema)).model
        notes = {'method': self.method, 'students': self.student_names}
        return export(teacher, folder, metadata={**notes, **(metadata or {})},
                      **{'input_size': self.input_size, **kwargs})

    def check_export(self, folder: str | os.PathLike[str], **kwargs: Any) -> None:
        """Refuse now what `export` with these arguments would refuse after the training; nothing is written.

        Raises:
            SFTeacherError: The place, an argument or the teacher's architecture is not fit for it.
        """
        from .exporting.exporter import check_export
        check_export(self.teacher, folder, **{'input_size': self.input_size, **kwargs})

    def export_branch(self, index: int, folder: str | os.PathLike[str]) -> Path:
        """Save a trained branch as the start of a student: the tail's weights under the student's own keys.

        ``branch.safetensors`` holds the trained part; the keys before the boundary, which no branch trains, are listed
        as "untrained" in its metadata and in ``branch.json``. Load it with
        ``student.load_state_dict(safetensors.torch.load_file(path), strict=False)``.

        Args:
            index: Which branch, in the order of ``repr(task)``.
            folder: Where to; must not exist or be empty.

        Raises:
            SFTeacherError: There is no such branch, or the folder can't be written; nothing was written.
        """
        from .exporting.branch import export_branch
        branches = getattr(self.branches, 'branches', [])
        if not 0 <= index < len(branches):
            raise SFTeacherError(f'there is no branch {index!r} of a student to export: the method '
                                 f'{type(self.method).__name__} has {len(branches)} here, counted from 0')
        tail = branches[index].tail
        return export_branch(tail.model, tail.boundary, tail.untrained, folder)

    def unwrap(self) -> nn.Module:
        """The plain teacher, as it came and trained; nothing of the task is left on it."""
        return self.teacher

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters whose gradients are clipped; `exclude_head` leaves out every classifier (adaptive clipping)."""
        module = self.joint
        heads = {id(p) for m in module.modules() if exclude_head for p in _classifier_parameters(m)}
        return [p for p in module.parameters() if id(p) not in heads]

    def __repr__(self) -> str:
        def millions(module: nn.Module | None) -> str:
            return f'{sum(p.numel() for p in module.parameters()) / 1e6 if module is not None else 0:.2f} M parameters'

        settings = ', '.join(f'{k}={v!r}' for k, v in changed_options(self.method).items())
        lines = [
            f'{type(self).__name__}(',
            f'  method: {type(self.method).__name__}({settings})',
            f'  teacher: {type(self.teacher).__name__}, {millions(self.teacher)}, {self.num_classes} classes, '
            f'input {"x".join(map(str, self.input_size))}',
            f'  students: {", ".join(self.student_names) or "none"}',
            f'  branches: {millions(self.branches)}' + ('' if self.method.active else ', not executed'),
            *(f'    {line}' for line in (self.branches.describe() if hasattr(self.branches, 'describe') else ())),
            ')',
        ]
        return '\n'.join(lines)


def _classifier_parameters(module: Any) -> list[nn.Parameter]:
    if not hasattr(module, 'get_classifier'):
        return []
    heads = module.get_classifier()
    heads = heads if isinstance(heads, tuple | list) else [heads]
    return [p for head in heads if isinstance(head, nn.Module) for p in head.parameters()]
