"""What goes on beside a run's training: its cost, its half-way weights, where it was made."""
from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from protocol import Run
from runs import BRANCH_SEED
from timm.task import TrainingTask

import sf_teacher
from sf_teacher.files import write_atomically
from sf_teacher.training import TrainConfig

HALFWAY, COST = 'halfway.pt', 'cpu_seconds.txt'


class Clock:
    """After each epoch: adds up the seconds of computing, and keeps a teacher's weights after half of its epochs."""

    def __init__(self, folder: Path, task: TrainingTask, run: Run) -> None:
        self.path, self.task, self.then = folder / COST, task, time.process_time()
        train = run.settings['train']
        self.half, self.ema = train['epochs'] // 2 if run.kind == 'teacher' else 0, train.get('model_ema', False)

    def __call__(self, row: dict[str, Any]) -> None:
        now = time.process_time()
        with self.path.open('a') as file:
            file.write(f'{now - self.then:.3f}\n')
        self.then = now
        if row['epoch'] + 1 == self.half:
            model = self.task.get_eval_model(ema=self.ema)
            state = {k: v.contiguous() for k, v in model.state_dict().items()}
            write_atomically(self.path.with_name(HALFWAY), lambda file: torch.save(state, file))

    @staticmethod
    def total(folder: Path) -> float:
        """Of all processes that the run went through."""
        return round(sum(map(float, (folder / COST).read_text().split())), 1)


def machine(device: torch.device) -> dict[str, Any]:
    """Where a run was made."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()
    if device.type == 'cpu' and Path('/proc/cpuinfo').exists():
        name = next((line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
                     if line.startswith('model name')), name)
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'timm': timm.__version__,
            'sf_teacher': sf_teacher.__version__, 'commit': commit()}


def commit() -> str | None:
    """That of this checkout, with a + where its files differ; None outside of one."""
    try:
        return subprocess.run(['git', 'describe', '--always', '--abbrev=40', '--exclude=*', '--dirty=+'], check=True,
                              cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def resolved(config: TrainConfig, run: Run) -> dict[str, Any]:
    """Every setting of the loop and the seed of the branches, defaults of this version included."""
    train = {name: value for name, value in asdict(config).items() if name not in ('output', 'resume', 'device')}
    return {'train': train, **({'branch_seed': BRANCH_SEED + run.seed} if 'method' in run.settings else {})}
