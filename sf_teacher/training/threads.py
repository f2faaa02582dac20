"""How many threads of the CPU a run uses: as many as there really are, and no more than its work keeps busy."""
from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

QUOTA = Path('/sys/fs/cgroup/cpu.max')      # of a container
WORK = 2 ** 15      # numbers in a batch of images that keep one thread busy
VARIABLES = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')


def available_cores() -> int:
    """The cores that this process may use, not those that the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        cores = min(cores, max(1, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):       # none, or "max"
        pass
    return cores


def default_threads(batch_size: int, input_size: Sequence[int]) -> int:
    """Threads for steps of this size; what the environment asks for goes first."""
    if any(name in os.environ for name in VARIABLES):
        return torch.get_num_threads()
    return max(1, min(available_cores(), batch_size * math.prod(input_size) // WORK))
