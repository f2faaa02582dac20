"""What stops a run: a signal, or a loss that is not finite, on this process or on another."""
from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import unwrap_model
from timm.utils.distributed import world_info_from_env
from torch import nn

from ..data.batches import check_loss
from ..errors import SFTeacherError
from .signals import Stop


@dataclass
class World:
    """This process among those that train together."""
    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """As torch.distributed was initialised."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def gathered(self, value: Any) -> list[Any]:
        """What each process has here."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


@contextmanager
def process_group() -> Iterator[None]:
    """Around what the processes of torchrun do together: errors name theirs, and the group is left in the end.

    Raises:
        SFTeacherError: This process failed, or another one did.
    """
    _, rank, size = world_info_from_env()
    try:
        yield
    except SFTeacherError as error:
        raise type(error)(f'process {rank}: {error}') if size > 1 else error from None
    except RuntimeError as error:
        if size == 1 or 'onnection' not in str(error):
            raise
        raise SFTeacherError(f'process {rank} stopped because another one did; its message says why') from error
    if dist.is_initialized():
        gc.collect()    # threads of DistributedDataParallel that outlive the group can abort the process
        dist.barrier()
        dist.destroy_process_group()


class Guard:
    """Stops every process of a run for one reason.

    Args:
        world: This process among the others.
        stop: The signal, if any.
        kept: Where the last good checkpoint is, or an empty string.
        module: What is trained. Buffers that are not finite before the training, such as masks of -inf, may stay so.
        half: The type of `torch.autocast`, or an empty string without.
    """

    def __init__(self, world: World, stop: Stop, kept: str, module: nn.Module, half: str = '') -> None:
        self.world, self.stop, self.kept, self.half = world, stop, kept, half
        self.allowed = {name for name, buffer in unwrap_model(module).named_buffers() if not _finite(buffer)}

    def check(self, epoch: int, batch: int, result: dict[str, Any], inputs: torch.Tensor) -> None:
        """Called between the forward and the step of each batch.

        Raises:
            SFTeacherError: The loss of some process is not finite; names the process, the term and the branch.
            Interrupted: Some process got a signal.
        """
        check_loss(result['loss'])
        bad, signum = not math.isfinite(result['loss'].item()), self.stop.signum
        anywhere = bad
        if self.world.size > 1:
            flags = torch.tensor([int(bad), signum], device=inputs.device)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            anywhere, signum = flags.tolist()
        if anywhere:
            reasons = self.world.gathered(_not_finite(result, inputs) if bad else '')
            where = '; '.join(f'process {i}: {r}' if self.world.size > 1 else r for i, r in enumerate(reasons) if r)
            raise SFTeacherError(f'the loss is not finite in epoch {epoch + 1}, batch {batch + 1}: {where}. '
                                 + self._advice(epoch))
        if signum:
            self.stop.signum = signum       # perhaps another process's
            self.stop.check()

    def check_between(self) -> None:
        """The same for a signal that came between two epochs."""
        if signum := max(self.world.gathered(self.stop.signum)):    # only what all know of: else one stops alone
            self.stop.signum = signum
            self.stop.check()

    def check_weights(self, epoch: int, module: nn.Module) -> None:
        """Never save weights that are not finite: a loss that was finite may have made them so in the last step."""
        for name, value in unwrap_model(module).state_dict().items():
            if name not in self.allowed and not _finite(value):
                name = name.replace('_orig_mod.', '')       # of torch.compile
                raise SFTeacherError(f'{name} is not finite after epoch {epoch + 1}. ' + self._advice(epoch))

    def _advice(self, epoch: int) -> str:
        kept = f'The checkpoint after {epoch} epochs is kept in {self.kept}. ' if self.kept else ''
        other = {'float16': ', or amp_dtype=bfloat16', 'bfloat16': ', or without amp'}.get(self.half, '')
        return f'Nothing was saved with it. {kept}Try another run with a lower lr, with clip_grad=1{other}'


def _finite(value: Any) -> bool:
    """Whether it is a tensor of finite values, or something else: integers, or the extra state of a module."""
    return not isinstance(value, torch.Tensor) or not value.is_floating_point() or bool(value.isfinite().all())


def _not_finite(result: dict[str, Any], inputs: torch.Tensor) -> str:
    """Which part of a result is not finite, the images first since everything follows from them."""
    if not inputs.isfinite().all():
        return 'the images hold values that are not finite (their decoding, mean or std?)'
    tensors = {**result, **{f'logits of branch {k}': v for k, v in (result.get('branch_output') or {}).items()}}
    names = [f'{name} is {value.item():g}' if value.ndim == 0 else f'{name} has values that are not finite'
             for name, value in tensors.items() if isinstance(value, torch.Tensor) and not value.isfinite().all()]
    return ', '.join(names)
