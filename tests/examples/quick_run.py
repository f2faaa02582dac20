"""examples/cifar100/run.py with exports that are checked in the same process: a fresh one for each takes seconds.

A script of its own, since the runner's processes import the script that started them.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'examples' / 'cifar100'))

import run

from sf_teacher.exporting import exporter
from tests.helpers import check_here

exporter.run_check = check_here

if __name__ == '__main__':
    run.main()
