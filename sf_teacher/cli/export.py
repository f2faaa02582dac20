"""`sf-teacher export`: a verified folder from a checkpoint of timm's train script or of one's own."""
from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SettingError, SFTeacherError
from ._factory import find_modules_here

_logger = logging.getLogger(__name__)

HELP = 'turn a checkpoint into a verified folder'
EXAMPLE = 'sf-teacher export my_resnet50.pth exported/resnet50 --model resnet50 --num-classes 100'

_IN_CONFIG = ('interpolation', 'crop_pct', 'crop_mode')      # what `export` takes from a timm model's configuration
_OF_TIMM = ('model', 'num_classes', 'interpolation', 'crop_pct')      # flags that say nothing of a factory's model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoint', help="of timm's train script, ours, Lightning, a wrapped or averaged model, or a "
                        'state_dict; EMA weights go first')
    parser.add_argument('folder', help='where to')
    parser.add_argument('--model', metavar='NAME', help="timm's name of the architecture; it and all that follows are "
                        'by default what the checkpoint says, or the settings beside it')
    parser.add_argument('--num-classes', type=int, metavar='N', help='with --model')
    parser.add_argument('--factory', metavar='MODULE:FUNCTION', help='instead of --model: builds the teacher')
    parser.add_argument('--prefix', metavar='P', help="of the teacher's names, if the checkpoint holds several models")
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help='what it was trained at')
    parser.add_argument('--mean', type=float, nargs='+', metavar='M', help='what its images were normalised with')
    parser.add_argument('--std', type=float, nargs='+', metavar='S',
                        help='standard deviation that its images were divided by')
    parser.add_argument('--interpolation', metavar='NAME', help='how its images were resized for validation')
    parser.add_argument('--crop-pct', type=float, metavar='F', help='share of the side that was cropped for validation')
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
    from ..exporting.card import portable_path
    from ..exporting.checkpoint import load_checkpoint, read_file
    from ..exporting.exporter import export
    from ..exporting.recorded import IMAGES, MODEL, recorded, same_model
    from ..exporting.reload import ZOO
    from ..exporting.writer import TORCHDISTILL

    given = [f'--{name.replace("_", "-")}' for name in _OF_TIMM if getattr(args, name)]
    if args.factory is not None and given:
        raise SettingError(f'export takes {", ".join(given)} for a model that timm builds by name, or --factory '
                           f'MODULE:FUNCTION for another, and not both')
    path = Path(args.checkpoint)
    checkpoint = read_file(path)
    inside = recorded(checkpoint, path, args.model)
    known = inside or _of_run(checkpoint, path.parent)
    unknown = (*MODEL, *_IN_CONFIG) if args.factory else () if same_model(args.model, known) else MODEL
    known = {name: known[name] for name in known if name not in unknown}
    told = {name: value for name in (*IMAGES, 'class_names') if (value := getattr(args, name, None) or known.get(name))}
    if taken := [name for name in known if not getattr(args, name, None)]:
        print('as the checkpoint says, or the settings beside it: ' + ', '.join(
            f'{name} {len(known[name]) if name == "class_names" else known[name]}' for name in taken))
    model = _build(args, known, None if 'model_args' in inside else told.get('input_size'))
    load_checkpoint(model, checkpoint, path, args.prefix)
    config = {name: told.pop(name) for name in _IN_CONFIG if name in told}
    if config:
        model.pretrained_cfg = {**(getattr(model, 'pretrained_cfg', None) or {}), **config}
    if 'crop_pct' in config:
        model.pretrained_cfg['test_crop_pct'] = None        # timm's validate script prefers it
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


def _build(args: argparse.Namespace, known: dict[str, Any], input_size: Any) -> Any:
    """The plain model that the weights go into, by the flags or by what is known of it."""
    from ..exporting.reload import import_factory
    from ..factory import create_model
    if args.factory is not None:
        find_modules_here()
        try:
            return import_factory(args.factory, args.model_args)
        except Exception as e:
            raise SFTeacherError(f'{args.factory} cannot be built: {type(e).__name__}: {e}') from e
    name, num_classes = args.model or known.get('model'), args.num_classes or known.get('num_classes')
    if name is None or num_classes is None:
        raise SettingError(f'{args.checkpoint} does not say which model it holds: give --model with --num-classes for '
                           f'one that timm builds by name, or --factory MODULE:FUNCTION for another')
    return create_model(name, 'teacher', num_classes, input_size, {**known.get('model_args', {}), **args.model_args})


def _of_run(checkpoint: Any, folder: Path) -> dict[str, Any]:
    """What the run that wrote a checkpoint, if it is one of ours, says of its model and its images.

    That is what it has exported or, before its end, what its settings say.
    """
    from ..exporting.recorded import allowed, of_folder
    from ..exporting.verify import is_local, local_path
    from ..training.run_folder import CONFIG
    from ..training.settings import StudentRun, TeacherRun
    from ..training.settings_file import read_yaml
    from ..validation import from_dict
    if not isinstance(checkpoint, Mapping) or not {'state_dict', 'optimizer', 'rng', 'rows'} <= checkpoint.keys():
        return {}
    try:
        values = read_yaml(folder / CONFIG)
        kind, role = (StudentRun, 'student') if 'kd' in values else (TeacherRun, 'teacher')
        run: Any = from_dict(kind, values, CONFIG)
    except SettingError as e:
        _logger.warning('what the run that wrote the checkpoint says of its model and its images is not known (%s): '
                        'where no flag says otherwise, they are as is usual for the architecture', e)
        return {}
    if exported := of_folder(folder / role):
        return exported
    name = getattr(run, role)
    started_from = of_folder(local_path(name)) if is_local(name) else {}
    crop = {'crop_pct': 1., 'crop_mode': 'center'} if run.kept_in_memory else {'crop_pct': run.crop_pct}
    return allowed({
        'model': started_from.get('model', name), 'num_classes': run.num_classes,
        'model_args': {**started_from.get('model_args', {}), **run.model_kwargs}, 'input_size': run.input_size,
        'mean': run.mean, 'std': run.std, 'interpolation': run.interpolation, **crop}, folder / CONFIG)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f'not JSON: {e}') from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('expected an object, as in \'{"img_size": 64}\'')
    return value
