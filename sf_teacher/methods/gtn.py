"""GTN: branches of a pool of weight-sharing students, of which one is sampled a step."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..validation import option
from ._branch_method import ACTS, BranchMethod
from ._pool import SampledPool
from .base import Context
from .registry import register_method


@register_method
@dataclass(frozen=True)
class GTN(BranchMethod):
    """Generic Teacher Network (Binici, Wu and Mitra, BMVC 2024, arXiv 2407.16040), after the abstract: one teacher for
    every student of a pool, which is a weight-sharing supernet; the teacher is conditioned on students sampled from it.

    Everything else is ours: how students share, see `SampledPool`; that one student is sampled a step; that the loss is
    SFTN's on the sampled path, with the defaults of `SFTN` here.
    """
    key: ClassVar[str] = 'gtn'
    takes_students: ClassVar[bool] = True
    own_terms: ClassVar[tuple[str, ...]] = ('path', 'path_negentropy')
    title: ClassVar[str] = 'Generic Teacher Network (Binici, Wu and Mitra, BMVC 2024, arXiv 2407.16040)'

    kl_weight: float = option(1., 'lambda_KL, as in `SFTN`', source='ours', low=0)
    detach_teacher_logits: bool = option(
        True, "whether the divergence leaves the teacher's logits alone, as in `SFTN`", source='ours')
    sampler: str = option(
        'uniform', "how a student is sampled; 'learned': by a trained distribution, whose estimator and loss are ours",
        source='ours', choices=('uniform', 'learned'))
    seed: int = option(0, 'seed of the order in which students are drawn', source='ours')
    path_weight: float = option(1., "weight of the learned sampler's loss", source='ours', low=0)
    entropy_weight: float = option(
        0.1, "weight of the sampler's distance from the uniform distribution, which counters a collapse on one student",
        source='ours', low=0)
    require_sharing: bool = option(
        False, 'refuse a pool in which some student shares weights with no other', source='ours')
    detach_features: bool = option(
        False, "whether the branches leave the teacher's features alone (a control experiment)", source='ours')
    transform_act: str = option(
        'auto', 'ReLU at the end of a transform; auto: only where the student has no negative values',
        source='ours', choices=ACTS)

    def build(self, context: Context) -> SampledPool:
        return SampledPool(
            context, self.sampler, self.seed, self.path_weight, self.entropy_weight, self.require_sharing,
            act=self.transform_act, detach=self.detach_features)
