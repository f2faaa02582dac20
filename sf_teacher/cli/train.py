"""`sf-teacher train`, `distill` and `report`: flags made from the settings, and what is said at the end."""
from __future__ import annotations

import argparse
import ast
import inspect
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import SFTeacherError
from ..training.settings import DataConfig, ReportRun, StudentRun, TeacherRun, TrainConfig
from ..validation import Checked, from_dict, read_yaml


def add_train(commands: Any) -> None:
    parser = commands.add_parser('train', help='train a teacher together with student branches and export it')
    _add_run(parser, TeacherRun, _train)


def add_distill(commands: Any) -> None:
    parser = commands.add_parser('distill', help='train a student from an exported teacher, or alone, and export it')
    _add_run(parser, StudentRun, _distill)


def add_report(commands: Any) -> None:
    parser = commands.add_parser('report', help='measure how well students learn from exported teachers')
    parser.add_argument('--config', metavar='FILE', help='YAML with settings by the names of the flags; flags win')
    add_settings(parser, ReportRun, leave_out=('teacher', 'resume', 'tensorboard'))
    parser.set_defaults(run=_report)


def _add_run(parser: argparse.ArgumentParser, cls: type[Checked], work: Any) -> None:
    parser.add_argument('--config', metavar='FILE', help='YAML with settings by the names of the flags; flags win')
    parser.add_argument('--dry-run', action='store_true', help='check everything, print plan and cost, and stop')
    add_settings(parser, cls)
    parser.set_defaults(run=work, command=parser.prog.rpartition(' ')[-1])


def add_settings(parser: argparse.ArgumentParser, cls: type[Checked], leave_out: Sequence[str] = ()) -> None:
    """Add a flag for each setting, grouped by the class that has it. What is not given is not in the namespace."""
    hints = get_type_hints(cls)
    groups: dict[str, Any] = {}
    for f in sorted(fields(cls), key=lambda f: _owner(cls, f.name) is not cls):
        if f.name in leave_out:
            continue
        owner = _owner(cls, f.name)
        title = {TrainConfig: 'training', DataConfig: 'data'}.get(owner, 'models and method')
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        text = f.metadata['help']
        if '(default' not in text and not isinstance(default, bool | dict) and default not in ('', None, ()):
            text += f' (default: {" ".join(map(str, default)) if isinstance(default, tuple) else default})'
        kwargs = dict(dest=f.name, default=argparse.SUPPRESS, help=text.replace('%', '%%'))
        if f.metadata['positional']:
            del kwargs['dest']
            group.add_argument(f.name, nargs='*' if get_origin(hints[f.name]) is tuple else '?', **kwargs)
        else:
            group.add_argument('--' + f.name.replace('_', '-'), **kwargs, **_kind(hints[f.name], f))


def settings(args: argparse.Namespace, cls: Any) -> Any:
    """The config: defaults, then the YAML file, then the flags."""
    given = {f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)}
    values = read_yaml(args.config) if args.config else {}
    given = {k: dict(v) if k.endswith('kwargs') else v for k, v in given.items()}
    return from_dict(cls, {**values, **given}, args.config or 'the command line')


def _train(args: argparse.Namespace) -> None:
    from ..training.runs import plan_teacher, train_teacher

    _work(args, settings(args, TeacherRun), plan_teacher, train_teacher)


def _distill(args: argparse.Namespace) -> None:
    from ..training.runs import distill, plan_student

    _work(args, settings(args, StudentRun), plan_student, distill)


def _report(args: argparse.Namespace) -> None:
    from ..analysis.report import report, table
    from ..training.interruption import Interrupted

    logging.basicConfig(format='%(message)s', level=logging.INFO)
    config = settings(args, ReportRun)
    try:
        print(table(report(config)))
    except Interrupted as stop:
        raise SystemExit(128 + stop.signum) from None
    print(f'written: {Path(config.output) / "report.json"} and report.png')


def _work(args: argparse.Namespace, config: Any, plan: Any, run: Any) -> None:
    from ..training.dry_run import describe
    from ..training.interruption import Interrupted

    rank, processes = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    logging.basicConfig(format='%(message)s', level=logging.INFO if rank == 0 else logging.ERROR)
    if args.dry_run:
        text = describe(plan(config))
        if rank == 0:
            print(text)
        return
    try:
        rows, folder = run(config)
    except Interrupted as stop:
        if rank == 0:
            again = ['sf-teacher'] if processes == 1 else ['torchrun', f'--nproc_per_node={processes}', '-m',
                                                          'sf_teacher']
            again += [args.command, '--config', str(Path(config.output) / 'config.yaml'), '--resume']
            print(f'sf-teacher: {stop}. Continue with\n  {shlex.join(again)}', file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except SFTeacherError as error:
        raise SFTeacherError(f'process {rank}: {error}') if processes > 1 else error from None
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
        if args.command == 'train':
            print(f'for torchdistill, {folder / "torchdistill.yaml"} has the lines; for timm, --kd-model-name '
                  f'local-dir:{folder}; here, sf-teacher distill --teacher {folder}')


def _owner(cls: type, name: str) -> type:
    return next(c for c in reversed(cls.__mro__) if name in inspect.get_annotations(c))


def _kind(hint: Any, f: Any) -> dict[str, Any]:
    kind = next((k for k in get_args(hint) if k is not type(None)), hint) if get_origin(hint) not in (tuple, dict) \
        else hint
    metavar = f.name.rsplit('_', 1)[-1].upper()
    if kind is bool:
        return {'action': 'store_true' if f.name.startswith('no_') else argparse.BooleanOptionalAction}
    if get_origin(kind) is dict:
        return {'type': key_value, 'nargs': '*', 'metavar': 'KEY=VALUE'}
    if get_origin(kind) is tuple:
        return {'type': get_args(kind)[0], 'nargs': '+', 'metavar': metavar}
    choices = f.metadata['choices'] or None
    return {'type': kind, 'choices': choices, 'metavar': None if choices else metavar}


def key_value(text: str) -> tuple[str, Any]:
    """A flag's ``KEY=VALUE``; what is no Python literal is a string."""
    key, equals, value = text.partition('=')
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    try:
        return key, ast.literal_eval({'true': 'True', 'false': 'False', 'none': 'None', 'null': 'None'}.get(
            value.lower(), value))
    except (ValueError, SyntaxError):
        return key, value


COMMANDS = (add_train, add_distill, add_report)
