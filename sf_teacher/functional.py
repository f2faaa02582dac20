"""The joint loss of a teacher and its branches: one function for every method."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from .methods import Method


def kl_divergence(
        teacher: torch.Tensor,
        branch: torch.Tensor,
        temperature: float = 1.,
        direction: str = 'teacher||branch',
) -> torch.Tensor:
    """tau^2 * KL between two softened predictions, averaged over the batch.

    Args:
        teacher: Logits [B, K].
        branch: Logits [B, K].
        temperature: tau.
        direction: ``"teacher||branch"``, sum p_T log(p_T / p_b), or ``"branch||teacher"``.
    """
    p = F.log_softmax(teacher / temperature, dim=-1)
    q = F.log_softmax(branch / temperature, dim=-1)
    if direction == 'branch||teacher':
        p, q = q, p
    return temperature ** 2 * F.kl_div(q, p, reduction='batchmean', log_target=True)


def joint_loss(
        teacher: torch.Tensor,
        branches: Mapping[str, torch.Tensor],
        extra: Mapping[str, torch.Tensor],
        target: torch.Tensor,
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        method: Method,
) -> dict[str, torch.Tensor]:
    """lambda_T * CE(z_T, y) + lambda_CE * R_i CE(z_i, y) + lambda_KL * R_i tau^2 KL(z_T, z_i) + extra terms.

    R is the mean or the sum over the branches (`method.reduction`); SFTN, equation of the training loss, as reported.

    Args:
        teacher: z_T [B, K].
        branches: z_i [B, K] by the branch's name; empty where the branches are not executed.
        extra: Terms that the branch set computed itself, already weighted.
        target: Labels [B] or soft targets [B, K], as `criterion` takes them.
        criterion: The task loss, used for the teacher and for every branch.
        method: The coefficients.

    Returns:
        ``"loss"``; the terms ``"teacher_ce"``, ``"branch_ce"``, ``"branch_kl"`` before their coefficients; the extra
        terms; and, detached, ``"branch_ce/NAME"`` and ``"branch_kl/NAME"`` for each branch.
    """
    teacher_ce = criterion(teacher, target)
    terms = {'teacher_ce': teacher_ce}
    loss = method.teacher_weight * teacher_ce if method.teacher_weight else torch.zeros_like(teacher_ce)
    if branches:
        reference = teacher.detach() if method.detach_teacher_logits else teacher
        if method.ce_weight:
            ce = {name: criterion(z, target) for name, z in branches.items()}
            terms['branch_ce'] = _reduced(list(ce.values()), method.reduction)
            loss = loss + method.ce_weight * terms['branch_ce']
            terms |= {f'branch_ce/{name}': value.detach() for name, value in ce.items()}
        if method.kl_weight:
            kl = {name: kl_divergence(reference, z, method.temperature, method.kl_direction)
                  for name, z in branches.items()}
            terms['branch_kl'] = _reduced(list(kl.values()), method.reduction)
            loss = loss + method.kl_weight * terms['branch_kl']
            terms |= {f'branch_kl/{name}': value.detach() for name, value in kl.items()}
    for value in extra.values():
        loss = loss + value
    return {'loss': loss, **terms, **extra}


def _reduced(values: Sequence[torch.Tensor], reduction: str) -> torch.Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values) if reduction == 'mean' else total
