"""Train what protocols ask for: teachers, and students from each by plain distillation. Can be stopped at any time.

    python examples/cifar100/run.py cpu --data DIR --jobs 2        # DIR holds train and test, folders or tars of images
    python examples/cifar100/run.py cpu --data DIR --download      # or lets torchvision download CIFAR-100 into DIR
    python examples/cifar100/run.py few_labels all_images --data DIR --jobs 2       # one after the other
    python examples/cifar100/run.py queue --data DIR --jobs 2      # the parts of protocols that a queue lists

Started again it skips what is done and goes on with what was begun. A teacher whose weights are gone is trained again
for new students of it; if it comes out otherwise (floating point differs between machines), so are its others.
Each finished run is one JSON file in results/, of which `results.py` makes RESULTS.md and the figures. Checkpoints and
trained teachers are kept in --work.
"""
from __future__ import annotations

import argparse
import functools
import multiprocessing
import signal
import sys
from pathlib import Path

import torch
from images import load
from protocol import path_of, read
from scheduler import Stage, schedule, stages_of

from sf_teacher.data.settings import DataConfig
from sf_teacher.errors import SFTeacherError

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('protocol', nargs='+', help='cpu, controls, few_labels, queue ... or YAML files')
    parser.add_argument('--data', default='data', help='folder with the training and test images')
    parser.add_argument('--download', action='store_true', help='let torchvision download them there')
    parser.add_argument('--work', type=Path, default=Path('runs/cifar100'), help='checkpoints and trained teachers')
    parser.add_argument('--results', type=Path, default=HERE / 'results', help='JSON files of finished runs')
    parser.add_argument('--jobs', type=int, default=1, help='runs at the same time')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads of each')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--arms', nargs='+', help='only these (default: all of the protocol)')
    parser.add_argument('--seeds', nargs='+', type=int, help='only these')
    parser.add_argument('--dry-run', action='store_true', help='say what would be trained')
    args = parser.parse_args()
    stages: list[Stage] = []
    for name in args.protocol:
        stages += stages_of(path_of(name), args.arms, args.seeds, read)
    source = DataConfig(data=args.data, val_split='test', **(
        dict(dataset='torch/cifar100', dataset_download=True) if args.download else {}))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # ends the other processes too
    work = args.work.resolve()
    images = functools.partial(load, source, work)
    try:
        for size in sorted({stage.protocol.size for stage in stages} if not args.dry_run else ()):
            images(size)        # once, before several processes need it
    except SFTeacherError as error:
        parser.error(str(error))
    sys.exit(schedule(stages, images, work, args.results, args.device, args.jobs, args.threads, args.dry_run))


if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')       # CUDA works in no forked process
    main()
