"""`sf-teacher export`: a verified folder from a checkpoint of timm's train script or of one's own."""
from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import SettingError, SFTeacherError

_logger = logging.getLogger(__name__)

HELP = 'turn a checkpoint into a verified folder'
EXAMPLE = 'sf-teacher export model_best.pth.tar exported/resnet50 --model resnet50 --num-classes 100'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoint', help="of timm's train script, ours, Lightning, a wrapped or averaged model, or a "
                        'state_dict; EMA weights go first')
    parser.add_argument('folder', help='where to')
    parser.add_argument('--model', metavar='NAME', help="timm's name of the architecture")
    parser.add_argument('--num-classes', type=int, metavar='N', help='with --model')
    parser.add_argument('--factory', metavar='MODULE:FUNCTION', help='instead of --model: builds the teacher')
    parser.add_argument('--prefix', metavar='P', help="of the teacher's names, if the checkpoint holds several models")
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help='what it was trained at')
    parser.add_argument('--mean', type=float, nargs='+', metavar='M', help='what its images were normalised with')
    parser.add_argument('--std', type=float, nargs='+', metavar='S',
                        help='standard deviation that its images were divided by')
    parser.add_argument('--model-args', type=_json_object, default={}, metavar='JSON',
                        help='for timm.create_model or the factory')
    parser.add_argument('--class-names', nargs='+', metavar='NAME',
                        help='in the order of the logits; distillation compares them with the data')
    parser.add_argument('--metadata', type=_json_object, default={}, metavar='JSON', help='for the model card')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier export')
    parser.add_argument('--format', default='timm', metavar='FORMAT', help="'torchvision' adds torchvision.pth, for "
                        "torchvision's model of the same name (default %(default)s)")
    parser.add_argument('--layout', metavar='ZOO', help="'repdistiller' or 'mdistiller', for a net of theirs given by "
                        '--factory: adds ckpt_epoch_240.pth, which they load as a teacher of their own')


def run(args: argparse.Namespace) -> None:
    import timm

    from ..exporting.card import portable_path
    from ..exporting.checkpoint import load_checkpoint
    from ..exporting.exporter import export
    from ..exporting.reload import ZOO, import_factory
    from ..exporting.writer import TORCHDISTILL

    if (args.model is None) == (args.factory is None) or (args.model is not None and args.num_classes is None):
        raise SettingError('export needs --model with --num-classes for a model that timm builds by name, or '
                             '--factory MODULE:FUNCTION for another')
    try:
        if args.factory is None:
            model = timm.create_model(args.model, num_classes=args.num_classes, **args.model_args)
        else:
            sys.path.insert(0, os.getcwd())     # as `python -m` does
            model = import_factory(args.factory, args.model_args)
    except Exception as e:
        raise SFTeacherError(f'{args.model or args.factory} cannot be built: {type(e).__name__}: {e}') from e
    load_checkpoint(model, Path(args.checkpoint), args.prefix)
    known = _of_run(Path(args.checkpoint).parent, model)
    told = {name: getattr(args, name) or known.get(name) for name in ('input_size', 'mean', 'std', 'class_names')}
    folder = export(
        model, args.folder, factory=args.factory, model_args=args.model_args if args.factory else None, **told,
        metadata=args.metadata, overwrite=args.overwrite, format=args.format, layout=args.layout)
    if args.layout:
        print(f'{folder}: exported and verified; {args.layout} loads {folder / ZOO} as it is')
        return
    if args.factory:
        print(f'{folder}: exported and verified; its README.md says how to load it')
        return
    print(f'{folder}: exported and verified. In torchdistill ({TORCHDISTILL} in the folder):\n')
    print((folder / TORCHDISTILL).read_text(encoding='utf-8').replace(portable_path(folder), str(folder)))


def _of_run(folder: Path, model: Any) -> dict[str, Any]:
    """What the run in a checkpoint's folder, if it is one of ours, knows of its images, and of its classes.

    The crop and the interpolation go into the model's configuration, from which `export` takes them.
    """
    from ..exporting.reload import CONFIG as EXPORTED
    from ..training.run_folder import CONFIG
    from ..training.settings_file import read_yaml
    run: dict[str, Any] = {}
    with suppress(SettingError):        # there is none, or it is not ours
        run = read_yaml(folder / CONFIG)
    known = {name: run.get(name) for name in ('input_size', 'mean', 'std')}
    if not any(known.values()):
        return {}
    _logger.info('size, mean, deviation and crop are those of %s, where no flag says otherwise', folder / CONFIG)
    in_memory = run.get('in_memory') or run.get('data') == 'digits'
    crop = {'crop_pct': 1., 'crop_mode': 'center'} if in_memory else {'crop_pct': run.get('crop_pct')}
    facts = {**crop, 'interpolation': run.get('interpolation')}
    model.pretrained_cfg = {**(getattr(model, 'pretrained_cfg', None) or {}), **{k: v for k, v in facts.items() if v}}
    for name in ('teacher', 'student'):
        with suppress(OSError, ValueError, KeyError):    # it has exported none, or not yet
            known['class_names'] = json.loads((folder / name / EXPORTED).read_text(encoding='utf-8'))['label_names']
    return known


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f'not JSON: {e}') from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('expected an object, as in \'{"img_size": 64}\'')
    return value
