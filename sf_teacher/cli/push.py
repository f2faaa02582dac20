"""`sf-teacher push`: an exported folder on the Hugging Face Hub."""
import argparse

from ._factory import add_factory, find_modules_here

HELP = 'verify an exported folder and share it on the Hugging Face Hub'
EXAMPLE = 'sf-teacher push exported/resnet50 USER/resnet50-sft --dry-run'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', help='what export or train wrote, or the folder of a run')
    parser.add_argument('repo', help='USER/NAME or ORGANISATION/NAME; made if it does not exist')
    parser.add_argument('--private', action='store_true', help='make a new repository a private one')
    add_factory(parser)
    parser.add_argument('--dry-run', action='store_true', help='verify, and send nothing')


def run(args: argparse.Namespace) -> None:
    from ..exporting.push import push
    from ..exporting.verify import exported_folder

    if args.factory is not None:
        find_modules_here()
    folder = exported_folder(args.folder)
    url = push(folder, args.repo, private=args.private, factory=args.factory, dry_run=args.dry_run)
    if args.dry_run:
        print(f'{folder}: verified; it would be {url}')
    elif args.factory:
        print(f'{folder}: verified and uploaded to {url}')
    else:
        print(f'{folder}: verified and uploaded to {url}. Anybody who may read it loads it with\n\n'
              f'    timm.create_model("hf-hub:{args.repo}", pretrained=True)')
