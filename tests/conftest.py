import os

os.environ.setdefault('OMP_NUM_THREADS', '1')    # parallel workers on few cores: more threads only slow them down
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture
def quick(monkeypatch):
    """Check in this process: the fresh one costs four seconds, and some tests are there to pay for it."""
    from sf_teacher.exporting import reload

    def run(folder, tolerance, factory=None, threads=None):
        return reload.report(folder, tolerance, factory)
    for module in ('exporter', 'verify'):
        monkeypatch.setattr(f'sf_teacher.exporting.{module}.run_check', run)
