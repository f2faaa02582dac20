"""A module path that a model of ours does not have is an error that names the nearest ones, wherever a config says it.

torchdistill's `get_module` returns None for such a path, which ends elsewhere as an error about a `NoneType`, and a
model has no say in it. Importing this module therefore puts `get_module` below in the place of torchdistill's, which
it calls; other people's models are left to that.
"""
import sys
import weakref

from torch import nn
from torchdistill.common import module_util

from sf_teacher import SFTeacherError
from sf_teacher.analysis.hooks import nearest

_theirs = module_util.get_module
_keys: 'weakref.WeakKeyDictionary[nn.Module, str]' = weakref.WeakKeyDictionary()


def remember(model: nn.Module, key: str) -> nn.Module:
    """Let paths into this model be checked; `key` is what the config calls it."""
    _keys[model] = key
    return model


def get_module(root_module: nn.Module, module_path: str) -> nn.Module | None:
    """torchdistill's, with an error for what is missing in a model of ours.

    Raises:
        SFTeacherError: There is no module of this path.
    """
    found = _theirs(root_module, module_path)
    if found is None:
        for at, model in [(0, root_module)] + [
                (i, module) for i in range(1, module_path.count('.') + 1)
                if (module := _theirs(root_module, '.'.join(module_path.split('.')[:i]))) is not None]:
            if isinstance(model, nn.Module) and model in _keys:
                missing = '.'.join(module_path.split('.')[at:])
                raise SFTeacherError(
                    f'the config names the module {module_path!r}, and {_keys[model]} has no {missing!r}: '
                    f'{nearest(model, missing)}. `sf-teacher inspect MODEL --hooks` prints all')
    return found


for _module in [module for name, module in sys.modules.items() if name.startswith('torchdistill.')]:
    if getattr(_module, 'get_module', None) is _theirs:
        vars(_module)['get_module'] = get_module
