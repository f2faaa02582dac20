"""What `train` and `distill` share: `--dry-run`, the processes of torchrun, and what is said when a run was stopped."""
from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from ..errors import SFTeacherError
from ..validation import Checked
from .flags import add_settings


def add_run(parser: argparse.ArgumentParser, cls: type[Checked]) -> None:
    """Add the flags of a run."""
    parser.add_argument('--dry-run', action='store_true', help='check everything, print plan and cost, and stop')
    add_settings(parser, cls)


def run_training(args: argparse.Namespace, config: Any, plan: Any, run: Any) -> Path | None:
    """Plan or run; the exported folder, on the first process."""
    from ..training.dry_run import describe
    from ..training.signals import Interrupted

    rank, processes = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    logging.basicConfig(format='%(message)s', level=logging.INFO if rank == 0 else logging.ERROR)
    if args.dry_run:
        text = describe(plan(config))
        if rank == 0:
            print(text)
        return None
    try:
        rows, folder = run(config)
    except Interrupted as stop:
        if rank == 0 and not (Path(config.output) / 'config.yaml').exists():
            print(f'sf-teacher: {stop}', file=sys.stderr)
        elif rank == 0:
            again = ['sf-teacher'] if processes == 1 else ['torchrun', f'--nproc_per_node={processes}', '-m',
                                                          'sf_teacher']
            again += [args.command, '--config', str(Path(config.output) / 'config.yaml'), '--resume']
            print(f'sf-teacher: {stop}. Continue with\n  {shlex.join(again)}', file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except SFTeacherError as error:
        raise type(error)(f'process {rank}: {error}') if processes > 1 else error from None
    except RuntimeError as error:
        if processes == 1 or 'onnection' not in str(error):
            raise
        raise SFTeacherError(f'process {rank} stopped because another one did; its message says why') from error
    finally:
        if processes > 1 and sys.exc_info()[0] is None:
            import gc

            import torch.distributed as dist

            gc.collect()    # threads of DistributedDataParallel that outlive the group can abort the process
            dist.barrier()
            dist.destroy_process_group()
    if folder is not None:
        top1 = rows[-1].get('eval_top1')
        print(f'{folder}: exported and verified' + (f', {top1:.2f} % on validation' if top1 is not None else ''))
    return folder
