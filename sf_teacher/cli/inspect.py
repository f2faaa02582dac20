"""`sf-teacher inspect`: where branches would go, before anything is trained."""
import argparse
import json

from ..training.settings import parse_boundaries
from .flags import key_value

HELP = 'what would be attached where, and what it would cost'
EXAMPLE = 'sf-teacher inspect resnet50 resnet18'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('teacher', help="timm's name of an architecture")
    parser.add_argument('students', nargs='*', metavar='student', help="timm's name of a student")
    parser.add_argument('--method', default='sftn', help='default %(default)s')
    parser.add_argument('--num-classes', type=int, metavar='N', help="default: the architecture's own")
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help='of the images')
    parser.add_argument('--method-kwargs', type=key_value, nargs='*', default=[], metavar='KEY=VALUE',
                        help='settings of the method, e.g. width=256')
    parser.add_argument('--boundaries', nargs='+', metavar='TEACHER[:STUDENT]',
                        help="where branches go: timm's indices or module paths (default: chosen)")
    parser.add_argument('--hooks', action='store_true',
                        help='print instead which modules feature methods hook, and what torchvision calls them')
    parser.add_argument('--json', action='store_true', help='print the description as JSON')


def run(args: argparse.Namespace) -> None:
    from ..analysis.inspection import inspect, render
    from ..methods import make_method

    if args.hooks:
        from ..analysis.hooks import hooks, render_hooks

        found = hooks(args.teacher, num_classes=args.num_classes, input_size=args.input_size)
        print(json.dumps(found, indent=2) if args.json else render_hooks(found))
        return
    result = inspect(args.teacher, args.students, method=make_method(args.method, dict(args.method_kwargs)),
                     num_classes=args.num_classes, boundaries=parse_boundaries(args.boundaries),
                     input_size=args.input_size)
    print(json.dumps(result, indent=2) if args.json else render(result))
