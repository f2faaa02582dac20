"""SFTN: the student's own tails as branches of the teacher."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..validation import option
from ._branch_method import ACTS, BranchMethod
from ._branches import BranchOutput, StudentBranches
from .base import Context, Step
from .registry import register_method


@register_method
@dataclass(frozen=True)
class SFTN(BranchMethod):
    """Student-Friendly Teacher Networks (Park et al., NeurIPS 2021, arXiv 2102.07650).

    The defaults are ours, chosen by `examples/cifar100/sweep.yaml`, because the settings as widely reported do harm in
    short trainings; `SFTN.reported()` has those.
    """
    key: ClassVar[str] = 'sftn'
    takes_students: ClassVar[bool] = True
    title: ClassVar[str] = 'Student-Friendly Teacher Networks (Park et al., NeurIPS 2021, arXiv 2102.07650)'

    kl_weight: float = option(1., 'lambda_KL; 3 as reported', source='ours', low=0)
    detach_teacher_logits: bool = option(
        True, "whether the divergence leaves the teacher's logits alone; False as reported", source='ours')
    detach_features: bool = option(
        False, "whether the branches leave the teacher's features alone (a control experiment)", source='ours')
    shared: bool = option(
        False, "whether the branches of a student share the weights they have in common; the paper's are separate",
        source='reported')
    transform_act: str = option(
        'auto', 'ReLU at the end of a transform; auto: only where the student has no negative values', choices=ACTS)
    sample_branch: bool = option(
        False, 'run one branch a step, drawn anew: cheaper, with the same loss in the mean over the draws',
        source='ours')
    branch_share: float = option(
        1., 'share of each batch that the branches see, its first images, as batches are shuffled: cheaper',
        source='ours', above=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(not self.sample_branch or self.reduction == 'mean', 'sample_branch',
                      "False where reduction='sum', as one branch stands for the mean of all")

    @classmethod
    def reported(cls) -> SFTN:
        """The settings as widely reported for the paper: lambda_KL = 3, tau = 1, nothing detached."""
        return cls(kl_weight=3., detach_teacher_logits=False)

    def build(self, context: Context) -> StudentBranches:
        return StudentBranches(context, shared=self.shared, act=self.transform_act, detach=self.detach_features)

    def run(self, step: Step) -> BranchOutput:
        drawn = step.progress.step if self.sample_branch and step.extra.training else None
        return step.extra(step.maps, step.logits, drawn, self.branch_share if step.extra.training else 1.)
