"""`sf-teacher inspect`: where branches would go, before anything is trained."""
import argparse
import json

from ..analysis.settings import Inspection
from ..training.settings import parse_boundaries
from .flags import add_settings, settings

HELP = 'what would be attached where, and what it would cost'
EXAMPLE = 'sf-teacher inspect resnet50 resnet18'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--hooks', action='store_true',
                        help='print instead which modules feature methods hook, and what torchvision calls them')
    parser.add_argument('--json', action='store_true', help='print the description as JSON')
    add_settings(parser, Inspection)


def run(args: argparse.Namespace) -> None:
    with settings(args, Inspection) as config:
        from ..analysis.hooks import hooks, render_hooks
        from ..analysis.inspection import inspect, render
        from ..methods import make_method

        if args.hooks:
            found = hooks(config.teacher, num_classes=config.num_classes, input_size=config.input_size)
            print(json.dumps(found, indent=2) if args.json else render_hooks(found))
            return
        result = inspect(config.teacher, list(config.students), method=make_method(config.method, config.method_kwargs),
                         num_classes=config.num_classes, boundaries=parse_boundaries(config.boundaries),
                         input_size=config.input_size)
        print(json.dumps(result, indent=2) if args.json else render(result))
