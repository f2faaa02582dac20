"""SFTN: the student's own tails as branches of the teacher."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._branch_method import BranchMethod
from ._branches import StudentBranches
from .base import Context
from .registry import register_method


@register_method
@dataclass(frozen=True)
class SFTN(BranchMethod):
    """Student-Friendly Teacher Networks (Park et al., NeurIPS 2021, arXiv 2102.07650).

    The defaults are ours, chosen by `examples/cifar100/sweep.yaml`, because the settings as widely reported do harm in
    short trainings; `SFTN.reported()` has those.

    Args:
        kl_weight: As in `BranchMethod`; ours, 3 as reported.
        detach_teacher_logits: As in `BranchMethod`; ours, False as reported.
        detach_features: Whether the branches leave the teacher's features alone (ours; a control experiment).
        shared: Whether the branches of a student share the weights they have in common (ours; the paper's are
            separate, as reported).
        transform_act: See `Transform`.
    """
    key: ClassVar[str] = 'sftn'
    takes_students: ClassVar[bool] = True
    title: ClassVar[str] = 'Student-Friendly Teacher Networks (Park et al., NeurIPS 2021, arXiv 2102.07650)'

    kl_weight: float = 1.
    detach_teacher_logits: bool = True
    detach_features: bool = False
    shared: bool = False
    transform_act: str = 'auto'

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.transform_act in ('auto', 'relu', 'none'), 'transform_act', "'auto', 'relu' or 'none'")

    @classmethod
    def reported(cls) -> SFTN:
        """The settings as widely reported for the paper: lambda_KL = 3, tau = 1, nothing detached."""
        return cls(kl_weight=3., detach_teacher_logits=False)

    def build(self, context: Context) -> StudentBranches:
        return StudentBranches(context, shared=self.shared, act=self.transform_act, detach=self.detach_features)
