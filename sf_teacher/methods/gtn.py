"""GTN: branches of a pool of weight-sharing students, of which one is sampled a step."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._branch_method import BranchMethod
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

    Args:
        sampler: ``"uniform"``, or ``"learned"``: a trained distribution, estimator and loss ours.
        seed: Of the sequence of paths.
        path_weight: Weight of the learned sampler's loss.
        entropy_weight: Weight of its distance from the uniform distribution, which counters a collapse on one student.
        require_sharing: Refuse a pool in which some student shares weights with no other.
        detach_features: As in SFTN.
        transform_act: See `Transform`.
    """
    key: ClassVar[str] = 'gtn'
    takes_students: ClassVar[bool] = True
    own_terms: ClassVar[tuple[str, ...]] = ('path', 'path_negentropy')
    title: ClassVar[str] = 'Generic Teacher Network (Binici, Wu and Mitra, BMVC 2024, arXiv 2407.16040)'

    kl_weight: float = 1.
    detach_teacher_logits: bool = True
    sampler: str = 'uniform'
    seed: int = 0
    path_weight: float = 1.
    entropy_weight: float = 0.1
    require_sharing: bool = False
    detach_features: bool = False
    transform_act: str = 'auto'

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.sampler in ('uniform', 'learned'), 'sampler', "'uniform' or 'learned'")
        self._require(type(self.seed) is int, 'seed', 'a whole number')
        self._require_weights('path_weight', 'entropy_weight')
        self._require(self.transform_act in ('auto', 'relu', 'none'), 'transform_act', "'auto', 'relu' or 'none'")

    def build(self, context: Context) -> SampledPool:
        return SampledPool(
            context, self.sampler, self.seed, self.path_weight, self.entropy_weight, self.require_sharing,
            act=self.transform_act, detach=self.detach_features)
