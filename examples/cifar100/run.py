"""Train what a protocol asks for: teachers, and students from each by plain distillation. Can be stopped at any time.

    python examples/cifar100/run.py cpu --data DIR --jobs 2        # DIR holds train and test, folders or tars of images
    python examples/cifar100/run.py cpu --data DIR --download      # or lets torchvision download CIFAR-100 into DIR

Started again it skips what is done and goes on with what was begun. A teacher whose weights are gone is trained again
for new students of it; if it comes out otherwise (floating point differs between machines), so are its others.
Each finished run is one JSON file in results/, of which `results.py` makes RESULTS.md and the figures. Checkpoints and
trained teachers are kept in --work.
"""
from __future__ import annotations

import argparse
import logging
import multiprocessing
import signal
import sys
from pathlib import Path

import torch
from protocol import Protocol, Run, chains, read
from worker import Worker, load

from sf_teacher.errors import SFTeacherError
from sf_teacher.training.settings import DataConfig

HERE = Path(__file__).resolve().parent


def weights_gone(phases: list[list[list[Run]]], results: Path, work: Path) -> set[str]:
    """Teachers that have a result, but whose weights are gone and asked for by a run that has none."""
    runs = {run.key: run for phase in phases for chain in phase for run in chain}
    asked, again = [key for key in runs if not (results / f'{key}.json').exists()], set()
    while asked:
        settings = runs[asked.pop()].settings
        for key in {settings.get('teacher'), settings.get('after')} - {None} - again:
            if (results / f'{key}.json').exists() and not (work / key / 'teacher' / 'config.json').exists():
                again.add(key)
                asked.append(key)
    return again


_worker: Worker


def _start(source: DataConfig, protocol: Protocol, work: Path, results: Path, device: str, again: set[str],
           threads: int) -> None:
    global _worker
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    _worker = Worker(load(source, work, protocol.size), protocol, work, results, device, again)


def _chain(runs: list[Run]) -> None:
    for run in runs:
        _worker.run(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('protocol', help='cpu, controls, sweep, paper ... or a YAML file')
    parser.add_argument('--data', default='data', help='folder with the training and test images')
    parser.add_argument('--download', action='store_true', help='let torchvision download them there')
    parser.add_argument('--work', type=Path, default=Path('runs/cifar100'), help='checkpoints and trained teachers')
    parser.add_argument('--results', type=Path, default=HERE / 'results', help='JSON files of finished runs')
    parser.add_argument('--jobs', type=int, default=1, help='runs at the same time')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads of each')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--arms', nargs='+', help='only these (default: all of the protocol)')
    parser.add_argument('--seeds', nargs='+', type=int, help='only these')
    args = parser.parse_args()
    path = Path(args.protocol)
    path = path if path.suffix else HERE / f'{path}.yaml'
    if not path.is_file():
        parser.error(f'there is no {path}; there are {", ".join(sorted(p.stem for p in HERE.glob("*.yaml")))}')
    protocol = read(path, args.arms, args.seeds)
    source = DataConfig(data=args.data, val_split='test', **(
        dict(dataset='torch/cifar100', dataset_download=True) if args.download else {}))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # ends the other processes too
    work = args.work.resolve()
    try:
        load(source, work, protocol.size)       # once, before several processes need it
    except SFTeacherError as error:
        parser.error(str(error))
    phases = chains(protocol)
    again = weights_gone(phases, args.results / protocol.results, work)
    with multiprocessing.get_context('spawn').Pool(
            args.jobs, _start, (source, protocol, work, args.results, args.device, again, args.threads)) as pool:
        for phase in phases:
            for _ in pool.imap_unordered(_chain, phase):
                pass


if __name__ == '__main__':
    main()
