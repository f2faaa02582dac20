"""The names under which RepDistiller and mdistiller look for a teacher that is one of their own nets."""
import importlib
from pathlib import Path
from typing import Any

from ..errors import SFTeacherError

# The dictionary of nets, beside the modules that define them; and the folder in which a teacher's is looked for.
LAYOUTS = {
    'repdistiller': ('model_dict', 'save/models'),
    'mdistiller': ('cifar_model_dict', 'download_ckpts/cifar_teachers'),
}


def check_layout(layout: str, factory: str | None, folder: Path) -> None:
    """Refuse a folder from which the repository would not load this teacher.

    Both repositories build the net that the folder's name says, and load ``ckpt_epoch_240.pth`` in it; mdistiller looks
    in one folder for each of its teachers only.

    Args:
        layout: ``"repdistiller"`` or ``"mdistiller"``.
        factory: ``"package.module:function"``, which builds the teacher.
        folder: Where it is exported to.

    Raises:
        SFTeacherError: The factory is not one of the repository's nets, or the folder's name says another.
    """
    if layout not in LAYOUTS:
        raise SFTeacherError(f'layout is one of {", ".join(map(repr, LAYOUTS))}, got {layout!r}')
    dictionary, place = LAYOUTS[layout]
    module, _, function = (factory or '').partition(':')
    package = module.rpartition('.')[0]
    nets: dict[str, Any] = getattr(importlib.import_module(package), dictionary, {}) if package else {}
    builders = {name: net[0] if isinstance(net, tuple) else net for name, net in nets.items()}
    names = [name for name, build in builders.items()      # an adapter's entry is no function of the repository's
             if (getattr(build, '__name__', None), getattr(build, '__module__', None)) == (function, module)]
    if not names:
        raise SFTeacherError(
            f"layout={layout!r} is for that repository's own nets, and factory={factory!r} is not in the {dictionary} "
            f'of a package. Name the function that builds the teacher, as "package.module:function"; teachers that are '
            f'not theirs go through sf_teacher.adapters.{layout}')
    parts = folder.name.split('_')
    read = '_'.join(parts[:3] if parts[0] == 'wrn' else parts[:1])
    if read not in names or (layout == 'mdistiller' and folder.name != f'{read}_vanilla'):
        raise SFTeacherError(f'{layout} builds the net that the folder says, and {folder.name!r} does not say '
                             f'{names[0]}: export to a folder named {names[0]}_vanilla, in its {place}')
