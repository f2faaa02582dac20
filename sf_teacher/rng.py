"""The random number generators of this process, taken and put back."""
from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """The random number generators of this process as tensors and plain values."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    state = {'torch': torch.get_rng_state(), 'numpy': [name, torch.from_numpy(keys.astype(np.int64)), *rest],
             'python': list(random.getstate())}
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back to where `random_state` found them."""
    torch.set_rng_state(state['torch'])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    if device.type == 'cuda' and 'cuda' in state:
        torch.cuda.set_rng_state(state['cuda'], device)
