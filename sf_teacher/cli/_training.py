"""What `train` and `distill` share: `--dry-run`, the processes of torchrun, and what is said when a run was stopped."""
from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from ..validation import Checked
from .flags import add_settings


def add_run(parser: argparse.ArgumentParser, cls: type[Checked]) -> None:
    """Add the flags of a run."""
    parser.add_argument('--dry-run', action='store_true', help='check everything, print plan and cost, and stop')
    add_settings(parser, cls)


def run_training(args: argparse.Namespace, config: Any, plan: Any, run: Any) -> Path | None:
    """Plan or run; the exported folder, on the first process."""
    from timm.utils.distributed import world_info_from_env

    from ..training.dry_run import dry_run
    from ..training.interruption import process_group
    from ..training.signals import Interrupted, signals

    _, rank, processes = world_info_from_env()
    logging.basicConfig(format='%(message)s', level=logging.INFO if rank == 0 else logging.ERROR)
    try:
        with signals() as stop, process_group():    # the command's own signals
            if args.dry_run:
                text = dry_run(config, plan)
                if rank == 0:
                    print(text)
                return None
            rows, folder = run(config)
    except (Exception, Interrupted) as error:
        if not stop.signum and not isinstance(error, Interrupted):
            raise
        # an error after a signal follows from it, e.g. of a loading process that is gone
        stopped = error if isinstance(error, Interrupted) else Interrupted(stop.signum, stop.where)
        file = Path(config.output) / 'config.yaml'
        launcher = ['sf-teacher'] if processes == 1 else [
            'torchrun', f'--nproc_per_node={processes}', '-m', 'sf_teacher']
        again = shlex.join([*launcher, args.command, '--config', str(file), '--resume'])
        if rank == 0:
            print(f'sf-teacher: {stopped}' + (f'. Continue with\n  {again}' if file.exists() else ''), file=sys.stderr)
        raise SystemExit(128 + stopped.signum) from None
    if folder is not None:
        top1 = rows[-1].get('eval_top1')
        print(f'{folder}: exported and verified' + (f', {top1:.2f} % on validation' if top1 is not None else ''))
    return folder
