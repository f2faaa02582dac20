"""What a checkpoint says of its model and of the images that this was trained on."""
import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config

from .class_names import class_names_in
from .reload import TEACHER, WEIGHTS, CheckError, check_arguments, read_config

_logger = logging.getLogger(__name__)

MODEL = ('model', 'num_classes', 'model_args')
IMAGES = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
_BESIDE_CONFIG = (TEACHER, WEIGHTS, 'pytorch_model.bin')    # the names that `export` and timm give to weights
_OF_TIMM = {'model', 'num_classes', 'model_kwargs', 'crop_pct', 'mean', 'std', 'gp'}    # others too have "model"
_EXPORTED = {'arch', 'model_args', 'num_classes', 'sf_teacher_version'}


def recorded(checkpoint: Any, path: Path, model: str | None = None) -> dict[str, Any]:
    """What is recorded with the weights: arguments of timm's train script, by `export`, or in timm's config.json.

    Args:
        checkpoint: What the file holds.
        path: The file; beside what `export` or timm wrote lies their config.json.
        model: timm's name of what it is to be, if the user has said it: what is of another model is left out.

    Returns:
        Of `MODEL`, `IMAGES` and "class_names" those that are recorded; of the images what the train script was told,
        as its defaults are the model's own. What `allowed` refuses, and arguments that timm cannot read, are left out
        with a warning.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Mapping) else {}
    args = checkpoint.get('args')
    if isinstance(args, argparse.Namespace) and vars(args).keys() >= _OF_TIMM:
        try:
            found = allowed(_of_timm(vars(args)), path)
        except (AssertionError, TypeError, ValueError) as e:    # of timm, which they were not given to
            _logger.warning("the arguments in %s are none that timm's train script takes (%s: %s): nothing is taken "
                            'from them', path, type(e).__name__, e)
            found = {}
        return found if same_model(model, found) else {k: v for k, v in found.items() if k not in MODEL}
    found = of_folder(path.parent) if path.name in _BESIDE_CONFIG else {}
    if checkpoint.keys() >= _EXPORTED:
        facts = {'model': checkpoint['arch'],
                 **{name: checkpoint.get(name) for name in (*MODEL[1:], *IMAGES, 'class_names')}}
        found = {**(found if found.get('model') == facts['model'] else {}), **allowed(facts, path)}
    return found if same_model(model, found) else {}


def same_model(model: str | None, found: Mapping[str, Any]) -> bool:
    """Whether a name that the user has given, if any, is the recorded one, whatever weights it was trained from."""
    return model is None or ('model' in found and model.split('.')[0] == found['model'].split('.')[0])


def allowed(found: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What is known of a model, without arguments that ask timm for more than building one, and with a warning then.

    Args:
        found: As `recorded` returns it; None counts as not known.
        where: The file that says so.
    """
    known = {name: value for name, value in found.items() if value is not None}
    try:
        if 'model' in known:
            check_arguments(known['model'], known['model_args'], str(where))
            known['model_args'] = {k: v for k, v in known['model_args'].items() if k != 'num_classes'}
    except CheckError as e:
        _logger.warning('%s. Its model is not taken from there', e)
        known = {name: value for name, value in known.items() if name not in MODEL}
    return known


def of_folder(folder: Path) -> dict[str, Any]:
    """What timm's config.json in a folder says, as `recorded` returns it; nothing where there is none."""
    try:
        config = read_config(folder)
    except CheckError as e:
        if e.about == 'config':
            _logger.warning('%s. Nothing is taken from there', e)
        return {}
    if 'architecture' not in config:        # another library's
        return {}
    images = config.get('pretrained_cfg', {})
    return allowed({
        'model': config['architecture'], 'num_classes': config.get('num_classes'),
        'model_args': config.get('model_args', {}), 'class_names': class_names_in(config.get('label_names')),
        **{name: images.get(name) for name in IMAGES}}, folder)


def _of_timm(args: dict[str, Any]) -> dict[str, Any]:
    """From the arguments of timm's train script, read as it reads them."""
    channels = args['input_size'][0] if args.get('input_size') and not args.get('in_chans') else args.get('in_chans')
    built = {'in_chans': channels, 'global_pool': args['gp'], 'bn_momentum': args.get('bn_momentum'),
             'bn_eps': args.get('bn_eps'), **dict(args['model_kwargs'])}
    said = {name for name in IMAGES if args.get(name)} | ({'input_size'} if args.get('img_size') else set())
    images = resolve_data_config(args) if said else {}
    name = args['model']
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:        # a tag of another version
        name = name.split('.')[0]
    return {'model': name, 'num_classes': args['num_classes'],
            'model_args': {name: value for name, value in built.items() if value is not None},
            **{name: images[name] for name in IMAGES if name in said}}
