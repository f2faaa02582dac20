"""TESKD: students on a feature pyramid over the teacher's stages."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..validation import option
from ._branch_method import BranchMethod
from ._pyramid import FeaturePyramid
from .base import Context
from .registry import register_method


@register_method
@dataclass(frozen=True)
class TESKD(BranchMethod):
    """Teacher Evolution via Self-Knowledge Distillation (Li et al. 2021, arXiv 2110.00329): no students needed.

    0.2 (CE(z_T, y) + sum_i CE(z_i, y)) + 0.8 sum_i T^2 KL(p_T || p_i) + 1e-7 sum_i ||f_i - stopgrad(f_T)||^2 with
    T = 4, and the target of the divergence not detached [code].
    """
    key: ClassVar[str] = 'teskd'
    own_terms: ClassVar[tuple[str, ...]] = ('feature_distance',)
    title: ClassVar[str] = 'Teacher Evolution via Self-Knowledge Distillation (Li et al. 2021, arXiv 2110.00329)'

    teacher_weight: float = option(0.2, "weight of the teacher's own loss", source='code', low=0)
    ce_weight: float = option(0.2, "weight of the students' task loss", source='code', low=0)
    kl_weight: float = option(0.8, 'weight of the divergence between teacher and students', source='code', low=0)
    temperature: float = option(4., 'T of the divergence', source='code', above=0)
    reduction: str = option('sum', 'over the students', source='code', choices=('mean', 'sum'))
    feature_weight: float = option(
        1e-7, 'weight of the squared distance between the pooled features of students and teacher, summed over batch, '
        'channels and students, so that it grows with the batch', source='code', low=0)
    width: int | None = option(
        128, "D, channels of the pyramid; None for those of the teacher's last stage, as in the authors' code, which "
        "costs several times the teacher's own forward", source='ours', low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.active or not self.feature_weight, 'feature_weight',
                      '0 where ce_weight and kl_weight are, as the students are then not executed')

    @classmethod
    def official(cls) -> TESKD:
        """The settings of the authors' code, the width of the pyramid included."""
        return cls(width=None)

    def build(self, context: Context) -> FeaturePyramid:
        return FeaturePyramid(context, width=self.width, feature_weight=self.feature_weight)
