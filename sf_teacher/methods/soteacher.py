"""SoTeacher: a teacher whose function is smooth, and whose predictions for an image agree over the epochs."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ..errors import SFTeacherError
from ..validation import option
from .base import Context, Method, Progress, Step
from .registry import register_method

_BatchNorm = nn.modules.batchnorm._BatchNorm
_Conv = nn.modules.conv._ConvNd


@register_method
@dataclass(frozen=True)
class SoTeacher(Method):
    """Student-Oriented Teacher (Dong, Liu and Shang, ICLR 2024, arXiv 2206.06661): no students, no branches.

    CE(z, y) + lip_weight * Lip + consistency_weight * (e + 1) / epochs * Cons in epoch e from 0 [code], in the first of
    which there is nothing to be consistent with. It needs to know which images of the data set a batch holds.

    - Lip: the sum of the convolutions' L1 norms, of max |gamma / sqrt(running var + eps)| of the batch norms, and of
      the linear layers' largest column sums of |W| [code]. Other layers count nothing, nor do batch norms without
      affine weights or running statistics (ours).
    - Cons: ||p - m||^2, averaged over the batch, where m is the mean of the probabilities that this image had in the
      epochs before, augmented as it came [code]. m is the plain mean (ours: in the authors' code the first epoch counts
      twice), and of the images on all processes (ours).

    The means take 4 N (K + 1) bytes for N images and K classes, where the logits are and in each checkpoint. A mixed
    image is none of the data set, so mixup and cutmix are refused (ours).
    """
    key: ClassVar[str] = 'soteacher'
    needs_index: ClassVar[bool] = True
    title: ClassVar[str] = 'Student-Oriented Teacher (Dong, Liu and Shang, ICLR 2024, arXiv 2206.06661)'

    teacher_weight: float = option(1., 'weight of the task loss', source='code', low=0)
    lip_weight: float = option(1e-5, 'weight of Lip', source='code', low=0)
    consistency_weight: float = option(
        1., 'weight of the last term, the consistency, in the last epoch', source='code', low=0)
    ramp: bool = option(
        True, 'whether that weight grows linearly over the epochs; needs `set_epoch` of the task to be called '
        'with their number, as `fit` does', source='code')

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.teacher_weight > 0 or self.lip_weight > 0 or self.consistency_weight > 0, 'teacher_weight',
                      'above 0 where lip_weight and consistency_weight are 0, as nothing else trains the teacher')

    @property
    def active(self) -> bool:
        return bool(self.lip_weight or self.consistency_weight)

    def build(self, context: Context) -> RunningMeans:
        if self.lip_weight and lipschitz(context.model) is None:
            raise SFTeacherError(f'SoTeacher(lip_weight={self.lip_weight:g}): {type(context.model).__name__} has no '
                                 f'convolution, batch norm or linear layer to penalise: give lip_weight=0')
        return RunningMeans()

    def terms(self, step: Step) -> dict[str, torch.Tensor]:
        """``"teacher_ce"``, ``"lip"``, ``"consistency"``."""
        terms = {'teacher_ce': step.task_loss()}
        if self.lip_weight and (lip := lipschitz(step.model)) is not None:
            terms['lip'] = lip
        if self.consistency_weight and step.sample_index is not None:
            if step.target.is_floating_point():
                raise SFTeacherError('SoTeacher compares what an image was taken for in earlier epochs, and a mixed '
                                     'image has none (its targets are soft): leave out mixup and cutmix, or give '
                                     'consistency_weight=0')
            p = F.softmax(step.logits.float() if step.logits.element_size() < 4 else step.logits, dim=-1)
            mean, seen = step.extra.lookup(step.sample_index, p)
            terms['consistency'] = ((p - mean).square().sum(-1) * seen).mean()
            if step.extra.training:
                step.extra.update(step.sample_index, p.detach())
        return terms

    def weights(self, progress: Progress) -> Mapping[str, float]:
        share = 1.
        if self.ramp and self.consistency_weight:
            if progress.epochs is None:
                raise SFTeacherError('SoTeacher(ramp=True) needs to know the epochs: call task.set_epoch(epoch, '
                                     'epochs) before each epoch, as fit does, or give ramp=False')
            share = min((progress.epoch + 1) / progress.epochs, 1.)
        return {'teacher_ce': self.teacher_weight, 'lip': self.lip_weight,
                'consistency': self.consistency_weight * share}


def lipschitz(model: nn.Module) -> torch.Tensor | None:
    """Lip of a model, with the gradient of its weights; None where it has no layer that counts."""
    total: Any = None
    for module in model.modules():
        value: torch.Tensor | None = None
        if isinstance(module, _Conv):
            value = module.weight.abs().sum()
        elif isinstance(module, _BatchNorm) and module.affine and module.running_var is not None:
            value = (module.weight.abs() / torch.sqrt(module.running_var + module.eps)).max()
        elif isinstance(module, nn.Linear):
            value = module.weight.abs().sum(0).max()
        if value is not None:
            total = value if total is None else total + value
    return total


class RunningMeans(nn.Module):
    """The mean of the probabilities that each image of a data set had so far; it grows with the images it meets.

    ``memory`` holds ``sums`` [N, K] and ``counts`` [N], in single precision, of the images of all processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def lookup(self, index: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The means of these images [B, K], and whether each has one [B], as 1 or 0."""
        self._fit(1, like)
        sums, counts = self.memory['sums'], self.memory['counts']
        where = index.clamp(max=len(counts) - 1)
        count = counts[where] * (index < len(counts))
        return (sums[where] / count.clamp(min=1)[:, None]).to(like.dtype), (count > 0).to(like.dtype)

    @torch.no_grad()
    def update(self, index: torch.Tensor, p: torch.Tensor) -> None:
        """Take in the probabilities [B, K] of these images; every process takes in those of all."""
        sizes, largest = _sizes_and_largest(index)
        index, p = _of_all_processes(index, sizes), _of_all_processes(p.float(), sizes)
        self._fit(largest + 1, p)
        self.memory['sums'].index_add_(0, index, p)
        self.memory['counts'].index_add_(0, index, torch.ones_like(p[:, 0]))

    def _fit(self, rows: int, like: torch.Tensor) -> None:
        """Make room for so many images, where `like` is."""
        for name, shape in (('sums', (like.shape[1],)), ('counts', ())):
            held = self.memory.get(name, torch.zeros(0, *shape)).to(like.device)
            if rows > len(held):    # a little more than needed, lest images in order make it grow at every step
                held = torch.cat([held, held.new_zeros(max(rows, len(held) * 9 // 8) - len(held), *shape)])
            self.memory[name] = held


def _sizes_and_largest(index: torch.Tensor) -> tuple[list[int], int]:
    """The size of the batch on each process, and the largest number in any of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return [len(index)], int(index.max())
    own = torch.stack([torch.full_like(index[0], len(index)), index.max()])
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    sizes, numbers = zip(*(f.tolist() for f in found), strict=True)
    return list(sizes), max(numbers)


def _of_all_processes(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The rows of all processes, which may have different numbers of them."""
    if len(sizes) == 1:
        return rows
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    return torch.cat([f[:n] for f, n in zip(found, sizes, strict=True)])
