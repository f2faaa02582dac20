"""`sf-teacher verify`: whether an exported folder still gives back its teacher."""
import argparse
import json

from ._factory import add_factory, find_modules_here

HELP = 'check that an exported folder still gives back its teacher'
EXAMPLE = 'sf-teacher verify runs/teacher/teacher'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', help='what export or train wrote, or the folder of a run')
    parser.add_argument(
        '--tolerance', type=float, default=1e-4, metavar='T',
        help='largest difference of logits allowed, as a fraction of the largest (default %(default)s; 0: bit-equal)')
    add_factory(parser)
    parser.add_argument('--json', action='store_true', help='print the report as JSON')


def run(args: argparse.Namespace) -> None:
    from ..exporting.verify import exported_folder, verify

    if args.factory is not None:
        find_modules_here()
    folder = exported_folder(args.folder)
    report = verify(folder, tolerance=args.tolerance, factory=args.factory)
    if args.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{folder}: {report['arch'] or report['factory']}, {report['num_classes']} classes")
    shown = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')
    print('  ' + ', '.join(f'{name} {report[name]}' for name in shown if report[name] is not None))
    for name, there in report['exported_with'].items():
        here = report['checked_with'][name]
        print(f'  {name}: {there}' + (f' when exported, {here} here' if here != there else ''))
    for text in report['unchecked']:
        print(f'  note: {text}')
    how = 'bit-equal' if report['bit_equal'] else f"equal within {report['max_difference']:.3g}"
    print(f"  logits {how} (largest {report['largest_logit']:.3g})")
