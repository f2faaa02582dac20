"""The contract of a method: its options, what it trains beside the plain model, and the terms of its loss.

A method is one file of this folder. It knows no loop and no toolbox; whoever runs it fills in a `Step`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from ..checks import check_target
from ..errors import SFTeacherError
from ..split.boundaries import Size
from ..split.selection import Boundaries, Selection, count_classes, select_boundaries
from ..validation import Checked

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Progress:
    """Where the training is.

    Args:
        epoch: The current epoch, from 0; stays 0 where nobody calls `set_epoch` of the task.
        epochs: Epochs in all, or None where it is not known.
        step: Training steps so far.
    """
    epoch: int = 0
    epochs: int | None = None
    step: int = 0


@dataclass
class Context:
    """What a method is built from. Boundaries are measured only for a method that asks for them.

    Args:
        model: The plain model that is trained: the teacher, or in the student's phase the student.
        students: Student models that the user gave; copy what you keep of them.
        boundaries: Boundaries that the user named, or None.
        input_size: (C, H, W).
        known_classes: K, where it is known already; else `num_classes` measures it.
    """
    model: nn.Module
    students: Sequence[nn.Module]
    boundaries: Boundaries | None
    input_size: Size
    known_classes: int | None = None

    @cached_property
    def selection(self) -> Selection:
        """The model's boundaries, and those that the user chose of it and of the students."""
        return select_boundaries(self.model, self.students, self.boundaries, self.input_size)

    @cached_property
    def num_classes(self) -> int:
        """K, the number of logits of the plain model.

        Raises:
            SFTeacherError: It gives one, of which there is nothing to distil.
        """
        if self.known_classes is not None:
            return self.known_classes
        count = self.selection.num_classes if 'selection' in vars(self) else count_classes(self.model, self.input_size)
        if count < 2:
            raise SFTeacherError(f'teacher {type(self.model).__name__} gives {count} logit, and a softmax of one is '
                                 f'always 1: build it with num_classes=K, at least 2')
        return count


class Step(NamedTuple):
    """Everything that a method's terms may use of one training step.

    Args:
        input: Images [B, C, H, W].
        target: Labels [B] or soft targets [B, K], as `criterion` takes them.
        model: The plain model, e.g. for penalties of its weights.
        logits: z [B, K] of the plain model.
        maps: Its maps [B, C_i, H_i, W_i] at the boundaries of the method's module, in that order.
        extra: The method's module, or None.
        output: What `Method.run` returned.
        criterion: The task loss.
        progress: Epoch and step.
        reference: In the student's phase the frozen teacher's logits [B, K], else None.
        sample_index: Which images these are [B], numbers of the data set, where the loader tells; else None.
    """
    input: torch.Tensor
    target: Any
    model: Any
    logits: torch.Tensor
    maps: list[torch.Tensor]
    extra: Any
    output: Any
    criterion: Any
    progress: Progress
    reference: torch.Tensor | None = None
    sample_index: torch.Tensor | None = None

    def task_loss(self) -> torch.Tensor:
        """The task loss of the plain model."""
        return self.criterion(self.logits, self.target)

    def check_target(self) -> None:
        """Refuse labels out of range, and targets that do not fit the batch."""
        check_target(self.target, *self.logits.shape)


@dataclass(frozen=True)
class Method(Checked):
    """A method: options (fields made by `option`), a module to train beside the plain model, and loss terms.

    Subclasses set the class variables and override `build`, `run`, `terms` and `weights` as far as they need them.
    Plain model and `run` are what is compiled and what DistributedDataParallel wraps, so every parameter of the module
    has to be used there; `terms` follow in the same forward of the task, in plain Python, and may use the plain model's
    parameters once more. Where all weights but the plain model's are 0, `active` must be False, and nothing but the
    plain model is run.
    """
    key: ClassVar[str]                          # its name; for a file of this folder the file's
    phase: ClassVar[str] = 'teacher'            # or 'student': whose training it acts in
    takes_students: ClassVar[bool] = False      # whether it works with the user's students
    uses_boundaries: ClassVar[bool] = False     # whether it taps the model's features
    trained_teacher: ClassVar[bool] = False     # whether it starts from a trained teacher
    trained_students: ClassVar[bool] = False    # whether its students must be trained ones
    needs_index: ClassVar[bool] = False         # whether its terms need the images' numbers in the data set
    extra_name: ClassVar[str] = 'extra'         # what toolboxes call its module
    title: ClassVar[str] = ''                   # full name and paper, for documentation

    @property
    def active(self) -> bool:
        """Whether anything but the plain model is run and trained."""
        return True

    def build(self, context: Context) -> nn.Module | None:
        """What is trained or kept beside the plain model.

        A module that needs the model's features has ``boundaries``, a list of those in `context.selection`; one that
        describes itself in ``repr(task)`` has ``describe()``, which returns lines. What must not be averaged by an EMA,
        cast or broadcast, or grows with the data set, goes into ``memory``, a dict of tensors that only checkpoints
        look at; `terms` keep it where the logits are, and the same on every process.

        Raises:
            SFTeacherError: The method does not work with this model or these students.
        """
        return None

    def run(self, step: Step) -> Any:
        """Run the module on `step.input`, `step.maps`, `step.logits` or `step.reference`.

        Returns:
            Tensors, or containers of tensors, which `terms` find in `step.output`. There are no targets yet.
        """
        return None

    def terms(self, step: Step) -> dict[str, torch.Tensor]:
        """Scalars by name. Those with a weight in `weights` make up the loss, the others are logged."""
        raise NotImplementedError

    def weights(self, progress: Progress) -> Mapping[str, float]:
        """The weight of each term in the loss, which may change with the epochs; terms of weight 0 may be left out."""
        raise NotImplementedError

    def branch_logits(self, step: Step) -> dict[str, torch.Tensor]:
        """Logits [B, K] of student branches by name, where the method has any; for logs."""
        return {}

    def set_epoch(self, extra: nn.Module | None, progress: Progress) -> None:
        """Called on every process before each epoch, e.g. to turn sums over an epoch into statistics."""


def weighted_sum(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """The loss: the sum of weight times term, in the order of the weights."""
    loss: torch.Tensor | None = None
    for name, weight in weights.items():
        if weight and name in terms:
            loss = weight * terms[name] if loss is None else loss + weight * terms[name]
    return torch.zeros_like(next(iter(terms.values()))) if loss is None else loss


def options(method: Method) -> dict[str, Any]:
    """The options as plain values, for model cards and logs."""
    return {f.name: getattr(method, f.name) for f in fields(method)}


def changed_options(method: Method) -> dict[str, Any]:
    """Those of the options that are not their defaults: what one would write to build it."""
    return {f.name: value for f in fields(method) if (value := getattr(method, f.name)) != f.default}
