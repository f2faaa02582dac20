"""What a checkpoint says of its model and of the images that this was trained on."""
import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config

from .reload import CheckError, check_arguments, read_config

_logger = logging.getLogger(__name__)

IMAGES = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
MODEL = ('model', 'num_classes', 'model_args')
_FOLDERS = ('', 'teacher', 'student')
_SIZES = {'input_size', 'img_size', 'in_chans'}
_OF_TIMM = {'model', 'num_classes', 'model_kwargs', 'crop_pct', 'mean', 'std', 'gp'}    # others too have "model"
_EXPORTED = {'arch', 'model_args', 'num_classes', 'sf_teacher_version'}


def recorded(checkpoint: Any, path: Path) -> dict[str, Any]:
    """What is recorded with the weights: arguments of timm's train script, by `export`, or in timm's config.json.

    Args:
        checkpoint: What the file holds.
        path: The file; timm's configuration may lie beside it, or in what the run that wrote it exported there.

    Returns:
        Of "model" (timm's name), "num_classes", "model_args", "class_names" and `IMAGES` those that are recorded; of
        the images what the train script was told, as its defaults are the model's own. What `allowed` refuses, and
        arguments that timm cannot read, are left out with a warning.
    """
    args = checkpoint.get('args') if isinstance(checkpoint, Mapping) else None
    found: dict[str, Any] = next(filter(None, (_of_folder(path.parent / name) for name in _FOLDERS)), {})
    if isinstance(args, argparse.Namespace) and vars(args).keys() >= _OF_TIMM:
        try:
            found = _of_timm(vars(args))
        except (AssertionError, TypeError, ValueError) as e:    # of timm, which they were not given to
            _logger.warning("the arguments in %s are none that timm's train script takes (%s: %s): nothing is taken "
                            'from them', path, type(e).__name__, e)
            found = {}
    elif isinstance(checkpoint, Mapping) and checkpoint.keys() >= _EXPORTED:
        arch, args, classes = (checkpoint[name] for name in ('arch', 'model_args', 'num_classes'))
        found = {**(found if found.get('model') == arch else {}), 'model': arch, 'num_classes': classes,
                 'model_args': args, **{k: checkpoint[k] for k in ('class_names', *IMAGES) if checkpoint.get(k)}}
    return allowed(found, path)


def allowed(found: dict[str, Any], where: Path) -> dict[str, Any]:
    """What is known of a model, without arguments that ask timm for more than building one, and with a warning then.

    Args:
        found: As `recorded` returns it; None counts as not known.
        where: The file that says so.
    """
    found = {name: value for name, value in found.items() if value is not None}
    try:
        if 'model' in found:
            check_arguments(found['model'], found['model_args'], str(where))
            found['model_args'] = {k: v for k, v in found['model_args'].items() if k != 'num_classes'}
    except CheckError as e:
        _logger.warning('%s. Its model is not taken from there', e)
        found = {name: value for name, value in found.items() if name not in MODEL}
    return found


def _of_folder(folder: Path) -> dict[str, Any]:
    """From the config.json that timm and `export` write beside the weights."""
    try:
        config = read_config(folder)
    except CheckError:      # there is none, or it is another library's
        return {}
    if 'architecture' not in config:
        return {}
    images = config.get('pretrained_cfg', {})
    return {'model': config['architecture'], 'num_classes': config.get('num_classes'),
            'model_args': config.get('model_args', {}), 'class_names': config.get('label_names'),
            **{name: images.get(name) for name in IMAGES}}


def _of_timm(args: dict[str, Any]) -> dict[str, Any]:
    """From the arguments of timm's train script, read as it reads them."""
    channels = args['input_size'][0] if args.get('input_size') and not args.get('in_chans') else args.get('in_chans')
    built = {'in_chans': channels, 'global_pool': args['gp'], 'bn_momentum': args.get('bn_momentum'),
             'bn_eps': args.get('bn_eps'), **dict(args['model_kwargs'])}
    said = {name for name in IMAGES if args.get(name)} | ({'input_size'} if any(map(args.get, _SIZES)) else set())
    images = resolve_data_config(args) if said else {}
    return {'model': args['model'], 'num_classes': args['num_classes'],
            'model_args': {name: value for name, value in built.items() if value is not None},
            **{name: images[name] for name in IMAGES if name in said}}
