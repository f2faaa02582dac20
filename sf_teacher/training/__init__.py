"""The optional training loop behind `sf-teacher train` and `distill`: settings, loop, run folder.

What is trained is any `timm.task.TrainingTask`; of a `JointTask` it knows that epochs, and for some methods the numbers
of the images, are to be told. Names are imported when first asked for, so that the command line can read the settings
without importing torch.
"""
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .components import criterion, evaluate
    from .fitting import fit
    from .settings import TrainConfig
    from .signals import Interrupted

__all__ = ['Interrupted', 'TrainConfig', 'criterion', 'evaluate', 'fit']

_MODULES = {'Interrupted': 'signals', 'TrainConfig': 'settings', 'criterion': 'components',
            'evaluate': 'components', 'fit': 'fitting'}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'.{_MODULES[name]}', __name__), name)
