"""What several test files do: a few steps of training, and a script on two ranks."""
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def train(task: Any, parameters: Any, batch: Any, steps: int, seed: int, lr: float = 0.05) -> list[dict[str, Any]]:
    """Steps of SGD on batches of `batch()`; what the task returned in each."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    torch.manual_seed(seed)
    found = []
    for _ in range(steps):
        losses = task.train()(*batch())
        optimizer.zero_grad()
        losses['loss'].backward()
        optimizer.step()
        found.append(losses)
    return found


def assert_both_ranks_say_equal(folder: Path, text: str) -> None:
    """Run a script on two ranks, each of which prints "equal" at the end."""
    script = folder / 'ddp.py'
    script.write_text(text)
    run = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', script],
        capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count('equal') == 2
