"""What SFTN, TESKD and GTN have in common: a joint loss of the teacher and its branches."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import SFTeacherError
from ..functional import kl_divergence
from ..validation import option
from ._branches import BranchOutput, BranchSet
from .base import Context, Method, Progress, Step

KL_DIRECTIONS = ('teacher||branch', 'branch||teacher')
ACTS = ('auto', 'relu', 'none')     # of a transform


@dataclass(frozen=True)
class BranchMethod(Method):
    """lambda_T * CE(z_T, y) + lambda_CE * R_i CE(z_i, y) + lambda_KL * R_i tau^2 KL(z_T, z_i) + the branch set's terms.

    R is the mean or the sum over the branches; SFTN, equation of the training loss, as reported.
    """
    uses_boundaries: ClassVar[bool] = True
    own_terms: ClassVar[tuple[str, ...]] = ()   # terms that the branch set computes itself, already weighted

    teacher_weight: float = option(1., "lambda_T, weight of the teacher's own loss", low=0)
    ce_weight: float = option(1., "lambda_CE, weight of the branches' task loss", low=0)
    kl_weight: float = option(1., 'lambda_KL, weight of the divergence between the teacher and its branches', low=0)
    temperature: float = option(1., 'tau of the divergence', above=0)
    kl_direction: str = option(KL_DIRECTIONS[0], 'direction of the divergence', choices=KL_DIRECTIONS)
    detach_teacher_logits: bool = option(
        False, "whether the divergence leaves the teacher's logits alone, so that it trains the teacher only through "
        'its features')
    reduction: str = option('mean', 'over the branches', choices=('mean', 'sum'))
    kl_ramp: float = option(
        0., 'fraction of the epochs over which the weight of the divergence rises from 0, epoch by epoch; needs '
        '`set_epoch` of the task to be called, as `fit` does', source='ours', low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(not self.kl_ramp or self.ce_weight > 0, 'kl_ramp',
                      '0 where ce_weight is, as the branches would have no gradient in the first epoch')

        self._require(self.teacher_weight > 0 or (self.kl_weight > 0 and not self.detach_teacher_logits),
                      'teacher_weight', "above 0 where kl_weight is 0 or detach_teacher_logits is set, as nothing else "
                      "trains the teacher's classifier")

    @property
    def active(self) -> bool:
        return bool(self.ce_weight or self.kl_weight)

    def build(self, context: Context) -> BranchSet:
        """Build the branch set for a teacher."""
        raise NotImplementedError

    def run(self, step: Step) -> BranchOutput:
        return step.extra(step.maps, step.logits)

    def terms(self, step: Step) -> dict[str, torch.Tensor]:
        """``"teacher_ce"``, ``"branch_ce"``, ``"branch_kl"``, the branch set's own; for logs each branch's share."""
        terms = {'teacher_ce': step.task_loss()}
        if step.output is None:
            return terms
        reference = step.logits.detach() if self.detach_teacher_logits else step.logits
        each: dict[str, torch.Tensor] = {}
        if self.ce_weight:
            ce = {name: step.criterion(z, step.target[:len(z)]) for name, z in step.output.logits.items()}
            terms['branch_ce'] = _reduced(list(ce.values()), self.reduction)
            each |= {f'branch_ce/{name}': value.detach() for name, value in ce.items()}
        if self.kl_weight:
            kl = {name: kl_divergence(reference[:len(z)], z, self.temperature, self.kl_direction)
                  for name, z in step.output.logits.items()}
            terms['branch_kl'] = _reduced(list(kl.values()), self.reduction)
            each |= {f'branch_kl/{name}': value.detach() for name, value in kl.items()}
        return {**terms, **step.output.terms, **each}

    def weights(self, progress: Progress) -> Mapping[str, float]:
        ramp = 1.
        if self.kl_ramp:
            if progress.epochs is None:
                raise SFTeacherError(f'{type(self).__name__}(kl_ramp={self.kl_ramp:g}) needs to know the epochs: call '
                                     f'task.set_epoch(epoch, epochs) before each epoch, as fit does')
            ramp = min(progress.epoch / (self.kl_ramp * progress.epochs), 1.)
        return {'teacher_ce': self.teacher_weight, 'branch_ce': self.ce_weight, 'branch_kl': self.kl_weight * ramp,
                **dict.fromkeys(self.own_terms, 1.)}

    def branch_logits(self, step: Step) -> dict[str, torch.Tensor]:
        return {} if step.output is None else step.output.logits


def _reduced(values: Sequence[torch.Tensor], reduction: str) -> torch.Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values) if reduction == 'mean' else total
