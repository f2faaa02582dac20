"""What several test files do: a few steps of training, and a script on two ranks."""
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from sf_teacher.exporting import reload
from sf_teacher.methods._branches import BranchOutput
from sf_teacher.methods.base import Progress, Step, weighted_sum


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


def check_here(folder: Path, tolerance: float, factory: str | None = None, threads: int | None = None) -> Any:
    """The export's check in this process: the fresh one costs four seconds, and some tests are there to pay for it."""
    return reload.report(folder, tolerance, factory)


def assert_both_ranks_say_equal(folder: Path, text: str) -> None:
    """Run a script on two ranks, each of which prints "equal" at the end."""
    script = folder / 'ddp.py'
    script.write_text(text)
    run = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', script],
        capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=240)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count('equal') == 2


def build(name: str = 'test_resnet', num_classes: int = 7, **kwargs: Any) -> nn.Module:
    """The same model each time; its weights and running statistics are not those of its initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return jitter(timm.create_model(name, num_classes=num_classes, **kwargs))


def jitter(model: nn.Module) -> nn.Module:
    """Move every weight and statistic a little, so that none is what an initialisation gives."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.05 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor += noise.abs() if name.endswith('running_var') else noise
    return model


def joint_loss(logits, branches, terms, target, method):
    """The loss of a method for given logits of teacher and branches, and terms of its branch set."""
    step = Step(None, target, None, logits, [], None, BranchOutput(branches, terms), F.cross_entropy, Progress())
    return weighted_sum(method.terms(step), method.weights(step.progress))
