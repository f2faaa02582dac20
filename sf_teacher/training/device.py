"""The device of this process."""
from __future__ import annotations

import torch
from timm.utils.distributed import init_distributed_device_so, is_distributed_env

from ..errors import SFTeacherError, first_line
from ..validation import setting


def init_device(name: str) -> torch.device:
    """The device of this process; joins the other processes that torchrun started, if any."""
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        if is_distributed_env() and not torch.distributed.is_initialized():
            device = torch.device(init_distributed_device_so(name)['device'])
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SFTeacherError(f'{setting("device", name)} cannot be used here ({first_line(error)}): try '
                             f'cpu') from error
    return device
