"""Student-friendly knowledge distillation as a timm training task."""
from __future__ import annotations

from typing import Any, cast

import torch
from timm.task import LogitDistillationTask
from timm.utils import unwrap_model
from torch import nn

from .checks import check_classifier
from .errors import SFTeacherError
from .exporting.exported import load_teacher
from .exporting.verify import is_local
from .joint_task import JointTask
from .methods._simplifier import CollapseWatch, Simplifier
from .methods.base import Context
from .methods.student_friendly_kd import StudentFriendlyKD


@torch.no_grad()
def teacher_logits(task: LogitDistillationTask, input: torch.Tensor) -> torch.Tensor:
    """What the teacher of a task says [B, K] of images that are normalised for the student."""
    mean, std = cast(torch.Tensor, task.student_mean), cast(torch.Tensor, task.student_std)
    images = task.teacher.normalize_input(input, mean, std)
    return cast(torch.Tensor, task.teacher(images.detach(), return_features=False))


class StudentFriendlyKDTask(JointTask, LogitDistillationTask):
    """Distils a student from any frozen teacher by way of a simplifier; what is evaluated and saved is the student.

    The loss is that of `timm.task.LogitDistillationTask`, with the simplifier's targets in the place of the teacher's
    logits; its gradient reaches the student and the simplifier, not the teacher. While the simplifier's projection is
    zero, as at the start, it is plain knowledge distillation to the bit.

    The simplifier needs a smaller learning rate than the student, so build the optimizer from `parameter_groups`.

    Args:
        student_model: The student.
        teacher_model: The teacher, as `LogitDistillationTask` takes it; it is frozen and in eval mode.
        simplifier: By default one of the teacher's classes and of this temperature.
        temperature: tau, of the loss and of a simplifier made here (default ours).
        simplifier_lr: Learning rate of the simplifier in `parameter_groups`, as a fraction of the student's (default
            ours, see examples/cifar100: at 0.02 the targets lost most of their accuracy).
        watch: Looks out for collapse.
        **kwargs: Further arguments of `LogitDistillationTask`: weights, criterion, device ...

    Raises:
        SFTeacherError: Teacher, student and simplifier have different class counts, or different temperatures; or the
            teacher's name is that of a folder that was changed after its export, or of weights of other classes.

    Examples:

        ```python
        task = StudentFriendlyKDTask(student, teacher, task_loss_weight=0.1, distill_loss_weight=0.9)
        optimizer = torch.optim.SGD(task.parameter_groups(lr=0.05, weight_decay=5e-4), momentum=0.9)
        losses = task(images, targets)
        losses['loss'].backward()
        ```
    """
    method: StudentFriendlyKD

    def __init__(
            self,
            student_model: nn.Module,
            teacher_model: str | nn.Module,
            *,
            simplifier: Simplifier | None = None,
            temperature: float = 4.,
            simplifier_lr: float = StudentFriendlyKD.simplifier_lr,
            watch: CollapseWatch | None = None,
            **kwargs: Any,
    ) -> None:
        by_name = teacher_model if isinstance(teacher_model, str) else None
        if by_name is not None and is_local(by_name):
            teacher_model = load_teacher(by_name)
        super().__init__(student_model, teacher_model, temperature=temperature, **kwargs)
        classes = unwrap_model(student_model).num_classes
        if by_name is not None:
            check_classifier(unwrap_model(self.teacher.model), 'teacher', by_name)
        if (given := getattr(unwrap_model(self.teacher.model), 'num_classes', classes)) != classes:
            raise SFTeacherError(f'the teacher has {given} classes and the student {classes}: build both with the same '
                                 f'num_classes')
        method = StudentFriendlyKD(
            temperature=temperature, simplifier_lr=simplifier_lr, task_loss_weight=self.task_loss_weight,
            distill_loss_weight=self.distill_loss_weight)
        if simplifier is None:
            with torch.random.fork_rng(devices=[]):     # leaves the training's random numbers alone
                simplifier = method.build(Context(student_model, (), None, (0, 0, 0), classes))
        if (simplifier.num_classes, simplifier.temperature) != (classes, temperature):
            raise SFTeacherError(f'{simplifier} does not fit a student of {classes} classes and temperature='
                                 f'{temperature:g}: build it with these')
        if watch is not None:
            simplifier.watch = watch
        self.num_classes = classes
        self.teacher.requires_grad_(False)
        self.join(student_model, simplifier, method)
        self.train(student_model.training)

    @property
    def student(self) -> nn.Module:
        """The plain student."""
        return self.joint.model

    @property
    def simplifier(self) -> Simplifier:
        """The simplifier."""
        return cast(Simplifier, self.joint.extra)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """One forward of teacher, simplifier and student.

        Returns:
            ``"loss"``, ``"output"`` (the student's logits [B, K]), ``"task_loss"``, ``"kd_loss"``, and of the targets
            ``"target_top1"`` in percent and ``"target_entropy"`` in nats.
        """
        result = self.losses(input, target, reference=teacher_logits(self, input))
        del result['branch_output']     # there are no branches in the student's phase
        return result

    def parameter_groups(self, lr: float, weight_decay: float = 0.) -> list[dict[str, Any]]:
        """Groups for an optimizer: the student's as timm makes them, then the simplifier at a rate of its own.

        A schedule that multiplies rates keeps their ratio, one with a warm-up from, or a decay to, a rate of its own
        does not. (`fit` does in any case.)

        Args:
            lr: The student's learning rate; the simplifier's is `simplifier_lr` times that.
            weight_decay: Of both; vectors, and what the student excludes, are spared.
        """
        from timm.optim import param_groups_weight_decay  # imports every optimizer
        student: Any = self.student
        excluded = student.no_weight_decay() if hasattr(student, 'no_weight_decay') else set()
        groups = param_groups_weight_decay(student, weight_decay, no_weight_decay_list=excluded)
        own = param_groups_weight_decay(self.simplifier, weight_decay)
        lr_own = lr * self.method.simplifier_lr
        return [{**group, 'lr': lr} for group in groups] + [{**group, 'lr': lr_own} for group in own]

    def compile(    # type: ignore[override]
            self,
            backend: str = 'inductor',
            mode: str | None = None,
            **compile_kwargs: Any,
    ) -> nn.Module:
        """Compile student and simplifier for training, the plain student for evaluation, and the teacher."""
        compiled = super().compile(backend, mode, **compile_kwargs)
        self.teacher.compile(backend=backend, mode=mode, **compile_kwargs)
        return compiled

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters whose gradients are clipped, as `LogitDistillationTask` chooses them, and the simplifier's."""
        student = list(self.student.parameters())
        return (student[:-2] if exclude_head else student) + list(self.simplifier.parameters())
