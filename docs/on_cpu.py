"""Run a training script that is written for GPUs on the CPU, on a few random images in CIFAR-100's place.

`python on_cpu.py [--without=PACKAGE ...] SCRIPT ARGUMENTS`, in the script's repository, of which nothing is changed:
moving to the GPU does nothing, CUDA's streams are empty, NCCL is gloo, and packages that only log, or load images on
GPUs, are mocks. It says that a toolbox takes a teacher, and nothing about accuracy.
"""
import argparse
import contextlib
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torchvision
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

IMAGES = {'train': 64, 'test': 32}


def few_images(self: Any) -> bool:
    """In the place of CIFAR-100's check of its files: write them."""
    folder = Path(self.root, self.base_folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for split, count in IMAGES.items():
        (folder / split).write_bytes(pickle.dumps({
            'data': random.integers(0, 256, (count, 3072), dtype=np.uint8),
            'fine_labels': random.integers(0, 100, count).tolist()}))
    return True


def without_cuda() -> None:
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.record_stream = lambda self, stream: None
    torch.cuda.Stream = torch.cuda.current_stream = MagicMock
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.set_device = torch.cuda.empty_cache = lambda *args: None
    start, wrap = distributed.init_process_group, DistributedDataParallel.__init__
    distributed.init_process_group = lambda backend=None, **kwargs: start('gloo', **kwargs)
    DistributedDataParallel.__init__ = lambda self, module, device_ids=None, **kwargs: wrap(
        self, module, **kwargs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--without', action='append', default=[], help='package to mock, once for each')
    parser.add_argument('script')
    parser.add_argument('arguments', nargs=argparse.REMAINDER)
    args = parser.parse_args()
    sys.modules.update({name: MagicMock() for name in args.without})
    without_cuda()
    cifar: Any = torchvision.datasets.CIFAR100
    cifar._check_integrity, cifar._load_meta = few_images, lambda self: None
    sys.argv = [args.script, *args.arguments]
    sys.path.insert(0, '.')
    runpy.run_path(args.script, run_name='__main__')


if __name__ == '__main__':
    main()
