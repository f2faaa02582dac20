"""Student-friendly knowledge distillation: a simplifier turns a frozen teacher's logits into targets for the student.

After the abstract of Yuan, Lang and Quan (2023, arXiv 2305.10893): the teacher's softened logits pass through a
learning simplifier, an attention, which the distillation loss trains together with the student. The rest is ours: the
batch as the attention's sequence, the residual that starts as an identity, learning rates, checks and defaults.
"""
from __future__ import annotations

import logging
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask
from timm.utils import unwrap_model
from torch import nn

from .errors import SFTeacherError
from .extra_state import PlainWithExtra

_logger = logging.getLogger(__name__)

LR_SCALE = 0.02     # of the student's learning rate; a toy run diverged at a rate of 0.01 and more


class Simplifier(nn.Module):
    """Attention over the batch, added to the teacher's logits: z + tau * proj(attention(z / tau)).

    Queries, keys and values are linear in the K softened logits. The output projection starts at zero, so that the
    targets start as the teacher's own. Permuting the batch permutes the targets. Under distributed training each
    process attends to its own part of the batch. All of this is ours; the abstract says "attention".

    Args:
        num_classes: K.
        temperature: tau that softens the logits, that of the distillation loss.
        dim: Width of queries, keys and values; by default K.

    Shape:
        - input: the teacher's logits [B, K], B >= 2 in training.
        - output: targets, as logits [B, K] of the same scale.
    """

    def __init__(self, num_classes: int, temperature: float = 4., dim: int | None = None) -> None:
        super().__init__()
        for name, value in (('num_classes', num_classes), ('dim', num_classes if dim is None else dim)):
            if type(value) is not int or value < 1:
                raise SFTeacherError(f'Simplifier({name}={value!r}): {name} must be a whole number > 0')
        if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0):
            raise SFTeacherError(f'Simplifier(temperature={temperature!r}): temperature must be a finite number > 0')
        self.num_classes, self.temperature, self.dim = num_classes, float(temperature), dim or num_classes
        self.qkv = nn.Linear(num_classes, 3 * self.dim)
        self.proj = nn.Linear(self.dim, num_classes)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise SFTeacherError(f"the simplifier was built for {self.num_classes} classes; the teacher's logits are "
                                 f'{list(logits.shape)}, not [B, {self.num_classes}]: build it with their number')
        if self.training and len(logits) < 2:
            raise SFTeacherError('the simplifier attends to the other images of the batch and got a batch of 1 in '
                                 'training: use a larger batch, and drop_last=True where the last one may be of 1')
        q, k, v = self.qkv(logits / self.temperature).chunk(3, dim=-1)
        attention = (q @ k.T / math.sqrt(self.dim)).softmax(dim=-1)
        return logits + self.temperature * self.proj(attention @ v)

    def extra_repr(self) -> str:
        return f'num_classes={self.num_classes}, temperature={self.temperature:g}, dim={self.dim}'


class CollapseWatch:
    """Warns, once, when a simplifier's targets say much less than the teacher does; the criteria are ours.

    Over `interval` training steps together: the targets' accuracy is below half of the teacher's, or their distance
    from uniform targets, log K - entropy, below a tenth of the teacher's, or they are not finite.

    Args:
        interval: Steps between checks, so that a GPU is seldom waited for.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval, self.warned, self._steps = interval, False, 0
        self._sums: torch.Tensor | None = None

    @torch.no_grad()
    def update(
            self,
            teacher: torch.Tensor,
            targets: torch.Tensor,
            labels: torch.Tensor,
            temperature: float,
            training: bool,
    ) -> dict[str, torch.Tensor]:
        """Look at a batch.

        Args:
            teacher: The teacher's logits [B, K].
            targets: The simplifier's [B, K].
            labels: [B], or soft [B, K].
            temperature: tau of the distillation loss.
            training: Whether to count the batch.

        Returns:
            ``"target_top1"`` in percent and ``"target_entropy"`` in nats, of the softened targets.
        """
        labels = labels if labels.ndim == 1 else labels.argmax(-1)
        both = torch.stack([teacher, targets]).float()
        log_p = F.log_softmax(both / temperature, dim=-1)
        top1 = (both.argmax(-1) == labels).float().mean(-1) * 100
        entropy = -(log_p.exp() * log_p).sum(-1).mean(-1)
        if training and not self.warned:
            values = torch.stack([top1, math.log(both.shape[-1]) - entropy])     # [accuracy and distance, 2]
            self._sums = values if self._sums is None else self._sums + values
            self._steps += 1
            if self._steps == self.interval:
                self._check((self._sums / self._steps).tolist(), self._steps)
                self._sums, self._steps = None, 0
        return {'target_top1': top1[1], 'target_entropy': entropy[1]}

    def _check(self, values: list[list[float]], steps: int) -> None:
        (teacher_top1, top1), (teacher_distance, distance) = values
        if top1 >= teacher_top1 / 2 and distance >= teacher_distance / 10:      # False for nan
            return
        self.warned = True
        _logger.warning(
            'The simplifier has collapsed: over %d steps its targets had %.1f %% accuracy and were %.3g nats from '
            'uniform, the teacher\'s %.1f %% and %.3g nats. The student learns little from such targets: train the '
            'simplifier with a smaller learning rate.', steps, top1, distance, teacher_top1, teacher_distance)


class StudentWithSimplifier(nn.Module):
    """What is trained, in one forward: images and the teacher's logits to the student's logits and its targets."""

    def __init__(self, student: nn.Module, simplifier: Simplifier) -> None:
        super().__init__()
        self.student, self.simplifier = student, simplifier

    def forward(self, x: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.student(x), self.simplifier(teacher_logits)


class StudentFriendlyKDTask(PlainWithExtra, LogitDistillationTask):
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
        watch: Looks out for collapse.
        **kwargs: Further arguments of `LogitDistillationTask`: weights, criterion, device ...

    Raises:
        SFTeacherError: Teacher, student and simplifier have different class counts, or different temperatures.

    Examples:

        ```python
        task = StudentFriendlyKDTask(student, teacher, task_loss_weight=0.1, distill_loss_weight=0.9)
        optimizer = torch.optim.SGD(task.parameter_groups(lr=0.05, weight_decay=5e-4), momentum=0.9)
        losses = task(images, targets)
        losses['loss'].backward()
        ```
    """
    joint, plain_name, extra_name = StudentWithSimplifier, 'student', 'simplifier'

    def __init__(
            self,
            student_model: nn.Module,
            teacher_model: str | nn.Module,
            *,
            simplifier: Simplifier | None = None,
            temperature: float = 4.,
            watch: CollapseWatch | None = None,
            **kwargs: Any,
    ) -> None:
        super().__init__(student_model, teacher_model, temperature=temperature, **kwargs)
        classes = unwrap_model(student_model).num_classes
        if (given := getattr(unwrap_model(self.teacher.model), 'num_classes', classes)) != classes:
            raise SFTeacherError(f'the teacher has {given} classes and the student {classes}: build both with the same '
                                 f'num_classes')
        if simplifier is None:
            with torch.random.fork_rng(devices=[]):     # leaves the training's random numbers alone
                simplifier = Simplifier(classes, temperature)
        if (simplifier.num_classes, simplifier.temperature) != (classes, temperature):
            raise SFTeacherError(f'{simplifier} does not fit a student of {classes} classes and temperature='
                                 f'{temperature:g}: build it with these')
        self.teacher.requires_grad_(False)
        self.watch = watch or CollapseWatch()
        self.trainable_module = StudentWithSimplifier(student_model, simplifier.to(self.device, self.dtype))
        self.train(student_model.training)

    @property
    def student(self) -> nn.Module:
        """The plain student."""
        return unwrap_model(self.trainable_module).student

    @property
    def simplifier(self) -> Simplifier:
        """The simplifier."""
        return unwrap_model(self.trainable_module).simplifier

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """One forward of teacher, simplifier and student.

        Returns:
            ``"loss"``, ``"output"`` (the student's logits [B, K]), ``"task_loss"``, ``"kd_loss"``, and of the targets
            ``"target_top1"`` in percent and ``"target_entropy"`` in nats.
        """
        with torch.no_grad():
            mean, std = cast(torch.Tensor, self.student_mean), cast(torch.Tensor, self.student_std)
            images = self.teacher.normalize_input(input, mean, std)
            teacher_logits = self.teacher(images.detach(), return_features=False)
        student_logits, targets = self.trainable_module(input, teacher_logits)
        task_loss = self.criterion(student_logits, target)
        log_q = F.log_softmax(student_logits / self.temperature, dim=-1)
        log_p = F.log_softmax(targets / self.temperature, dim=-1)
        kd_loss = F.kl_div(log_q, log_p, reduction='batchmean', log_target=True) * (self.temperature ** 2)
        seen = self.watch.update(teacher_logits, targets, target, self.temperature, self.training)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {'loss': loss, 'output': student_logits, 'task_loss': task_loss, 'kd_loss': kd_loss, **seen}

    def parameter_groups(self, lr: float, weight_decay: float = 0., scale: float = LR_SCALE) -> list[dict[str, Any]]:
        """Groups for an optimizer: the student's as timm makes them, then the simplifier at a rate of its own.

        Args:
            lr: The student's learning rate.
            weight_decay: Of both; vectors, and what the student excludes, are spared.
            scale: The simplifier's learning rate as a fraction of the student's. timm's schedules keep the ratio.
        """
        from timm.optim import param_groups_weight_decay  # imports every optimizer
        student: Any = self.student
        excluded = student.no_weight_decay() if hasattr(student, 'no_weight_decay') else set()
        groups = param_groups_weight_decay(student, weight_decay, no_weight_decay_list=excluded)
        own = param_groups_weight_decay(self.simplifier, weight_decay)
        return [{**group, 'lr': lr} for group in groups] + [{**group, 'lr': lr * scale} for group in own]

    def compile(    # type: ignore[override]
            self,
            backend: str = 'inductor',
            mode: str | None = None,
            **compile_kwargs: Any,
    ) -> nn.Module:
        """Compile student and simplifier for training, the plain student for evaluation, and the teacher."""
        options: dict[str, Any] = dict(backend=backend, mode=mode, **compile_kwargs)
        self.eval_model = cast(nn.Module, torch.compile(self.student, **options))
        self.trainable_module = cast(nn.Module, torch.compile(self.trainable_module, **options))
        self.teacher.compile(backend=backend, mode=mode, **compile_kwargs)
        return self.eval_model

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters whose gradients are clipped, as `LogitDistillationTask` chooses them, and the simplifier's."""
        student = list(self.student.parameters())
        return (student[:-2] if exclude_head else student) + list(self.simplifier.parameters())
