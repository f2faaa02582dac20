"""TESKD: students on a feature pyramid over the teacher's stages."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._branch_method import BranchMethod
from ._pyramid import FeaturePyramid
from .base import Context, is_number
from .registry import register_method


@register_method
@dataclass(frozen=True)
class TESKD(BranchMethod):
    """Teacher Evolution via Self-Knowledge Distillation (Li et al. 2021, arXiv 2110.00329): no students needed.

    0.2 (CE(z_T, y) + sum_i CE(z_i, y)) + 0.8 sum_i T^2 KL(p_T || p_i) + 1e-7 sum_i ||f_i - stopgrad(f_T)||^2 with
    T = 4, and the target of the divergence not detached [code].

    Args:
        feature_weight: Weight of the squared distance between the pooled features of students and teacher, summed over
            batch, channels and students, so that it grows with the batch [code].
        width: D, channels of the pyramid (a small default, ours); None for those of the teacher's last stage [code],
            which costs several times the teacher's own forward.
    """
    key: ClassVar[str] = 'teskd'
    own_terms: ClassVar[tuple[str, ...]] = ('feature_distance',)
    title: ClassVar[str] = 'Teacher Evolution via Self-Knowledge Distillation (Li et al. 2021, arXiv 2110.00329)'

    teacher_weight: float = 0.2
    ce_weight: float = 0.2
    kl_weight: float = 0.8
    temperature: float = 4.
    reduction: str = 'sum'
    feature_weight: float = 1e-7
    width: int | None = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(is_number(self.feature_weight) and self.feature_weight >= 0, 'feature_weight',
                      'a finite number >= 0')
        self._require(self.active or not self.feature_weight, 'feature_weight',
                      '0 where ce_weight and kl_weight are, as the students are then not executed')
        self._require(self.width is None or (type(self.width) is int and self.width > 0), 'width',
                      "a whole number > 0, or None for the channels of the teacher's last stage")

    @classmethod
    def official(cls) -> TESKD:
        """The settings of the authors' code, the width of the pyramid included."""
        return cls(width=None)

    def build(self, context: Context) -> FeaturePyramid:
        return FeaturePyramid(context, width=self.width, feature_weight=self.feature_weight)
