"""`sf-teacher`: the command line.

A subcommand is two functions, `_add_NAME` for its arguments and `_NAME` for its work. It returns nothing; what is wrong
it raises as SFTeacherError.
"""
import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SFTeacherError
from ..training.settings import parse_boundaries
from ..version import __version__
from . import train as training_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; 0 if it succeeded, 1 if it raised SFTeacherError, whose text goes to stderr."""
    parser = argparse.ArgumentParser(prog='sf-teacher', description='Teachers from which students learn more.')
    parser.add_argument('--version', action='version', version=f'sf_teacher {__version__}')
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True, dest='command')
    for add in (_add_inspect, *training_commands.COMMANDS, _add_export, _add_verify):
        add(commands)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = commands.choices[args.command]
        close = [c for text in unknown for c in difflib.get_close_matches(text, known._option_string_actions, 2)]
        parser.exit(2, f'{known.prog}: {" ".join(unknown)} is not understood'
                       + (f'; like it: {", ".join(close)}' if close else '') + f' ({known.prog} --help lists all)\n')
    try:
        args.run(args)
    except SFTeacherError as e:
        print(f'sf-teacher: {e}', file=sys.stderr)
        return 1
    return 0


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser('inspect', help='what would be attached where, and what it would cost')
    parser.add_argument('teacher', help="timm's name of an architecture")
    parser.add_argument('students', nargs='*', metavar='student')
    parser.add_argument('--method', default='sftn', help='default %(default)s')
    parser.add_argument('--num-classes', type=int, metavar='N', help="default: the architecture's own")
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'))
    parser.add_argument('--method-kwargs', type=training_commands.key_value, nargs='*', default=[], metavar='KEY=VALUE',
                        help='settings of the method, e.g. width=256')
    parser.add_argument('--boundaries', nargs='+', metavar='TEACHER[:STUDENT]',
                        help="where branches go: timm's indices or module paths (default: chosen)")
    parser.add_argument('--json', action='store_true', help='print the description as JSON')
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> None:
    from ..analysis.inspection import inspect, render
    from ..methods import make_method

    result = inspect(args.teacher, args.students, method=make_method(args.method, dict(args.method_kwargs)),
                     num_classes=args.num_classes, boundaries=parse_boundaries(args.boundaries),
                     input_size=args.input_size)
    print(json.dumps(result, indent=2) if args.json else render(result))


def _add_export(commands: Any) -> None:
    parser = commands.add_parser('export', help='turn a timm checkpoint into a verified folder')
    parser.add_argument('checkpoint', help="of timm's train script or ours, or a state_dict; EMA weights go first")
    parser.add_argument('folder', help='where to')
    parser.add_argument('--model', metavar='NAME', help="timm's name of the architecture")
    parser.add_argument('--num-classes', type=int, metavar='N', help='with --model')
    parser.add_argument('--factory', metavar='MODULE:FUNCTION', help='instead of --model: builds the teacher')
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help='what it was trained at')
    parser.add_argument('--mean', type=float, nargs='+', metavar='M', help='what its images were normalised with')
    parser.add_argument('--std', type=float, nargs='+', metavar='S')
    parser.add_argument('--model-args', type=_json_object, default={}, metavar='JSON',
                        help='for timm.create_model or the factory')
    parser.add_argument('--metadata', type=_json_object, default={}, metavar='JSON', help='for the model card')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier export')
    parser.add_argument(
        '--format', default='timm', metavar='FORMAT',
        help="'torchvision' adds torchvision.pth, for torchvision's model of the same name (default %(default)s)",
    )
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    import timm

    from ..exporting.exporter import TORCHDISTILL, export
    from ..exporting.reload import import_factory

    if (args.model is None) == (args.factory is None) or (args.model is not None and args.num_classes is None):
        raise SFTeacherError('export needs --model with --num-classes for a model that timm builds by name, or '
                             '--factory MODULE:FUNCTION for another')
    if not Path(args.checkpoint).is_file():
        raise SFTeacherError(f'there is no checkpoint at {args.checkpoint}')
    try:
        if args.factory is None:
            model = timm.create_model(
                args.model, num_classes=args.num_classes, checkpoint_path=args.checkpoint, **args.model_args)
        else:
            sys.path.insert(0, os.getcwd())     # as `python -m` does
            model = import_factory(args.factory, args.model_args)
            timm.models.load_checkpoint(model, args.checkpoint)
    except Exception as e:
        raise SFTeacherError(f'{args.checkpoint} cannot be loaded into {args.model or args.factory}: '
                             f'{type(e).__name__}: {e}') from e
    folder = export(
        model,
        args.folder,
        factory=args.factory,
        model_args=args.model_args if args.factory else None,
        input_size=args.input_size,
        mean=args.mean,
        std=args.std,
        metadata=args.metadata,
        overwrite=args.overwrite,
        format=args.format,
    )
    if args.factory:
        print(f'{folder}: exported and verified; its README.md says how to load it')
        return
    print(f'{folder}: exported and verified. In torchdistill ({TORCHDISTILL} in the folder):\n')
    print((folder / TORCHDISTILL).read_text(encoding='utf-8'))


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser('verify', help='check that an exported folder still gives back its teacher')
    parser.add_argument('folder')
    parser.add_argument(
        '--tolerance', type=float, default=1e-4, metavar='T',
        help='largest difference of logits allowed, as a fraction of the largest (default %(default)s; 0: bit-equal)',
    )
    parser.add_argument(
        '--factory', metavar='MODULE:FUNCTION', help='builds a teacher that timm cannot build by name; its code is run',
    )
    parser.add_argument('--json', action='store_true', help='print the report as JSON')
    parser.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> None:
    from ..exporting.verify import verify

    report = verify(args.folder, tolerance=args.tolerance, factory=args.factory)
    if args.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{args.folder}: {report['arch'] or report['factory']}, {report['num_classes']} classes")
    shown = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')
    print('  ' + ', '.join(f'{name} {report[name]}' for name in shown if report[name] is not None))
    for name, there in report['exported_with'].items():
        here = report['checked_with'][name]
        print(f'  {name}: {there}' + (f' when exported, {here} here' if here != there else ''))
    how = 'bit-equal' if report['bit_equal'] else f"equal within {report['max_difference']:.3g}"
    print(f"  logits {how} (largest {report['largest_logit']:.3g})")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f'not JSON: {e}') from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('expected an object, as in \'{"img_size": 64}\'')
    return value
