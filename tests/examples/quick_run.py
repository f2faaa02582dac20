"""examples/cifar100/run.py in a process forked from one that has torch and timm.

Its exports are checked right there, and its runs draw no curves.
"""
import importlib
import multiprocessing
import os
import sys
from pathlib import Path

from ..helpers import stand_in

FOLDER = Path(__file__).resolve().parents[2] / 'examples' / 'cifar100'


def main(arguments: list[str], folder: Path, output: Path) -> None:
    """Run it in a folder, with what it prints in a file."""
    os.setsid()
    os.chdir(folder)
    where = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(where, stream)
    sys.path.insert(0, str(FOLDER))
    script = importlib.import_module('run')
    stand_in()
    multiprocessing.set_start_method('fork', force=True)    # the runner's workers have it too
    sys.argv = ['run.py', *arguments]
    script.main()
