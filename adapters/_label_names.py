"""Classes of a teacher and of the data, by name: in another order, the teacher's logits follow the data."""
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchdistill.common.constant import def_logger

from sf_teacher import SFTeacherError
from sf_teacher.exporting.class_names import class_names_of

logger = def_logger.getChild(__name__)


def follow_label_names(teacher: Any, label_names: Sequence[str] | str | None, model_name: str) -> list[int] | None:
    """Put a teacher's logits into the order of the data's labels, by the names of the classes.

    The rows of its classifier change places, so that hooks on the classifier see the data's order too.

    Args:
        teacher: A timm model, whose configuration holds the names if its folder does; changed in place.
        label_names: The data's class names in the order of its labels: a list, a text file with one a line, or an
            ImageFolder's folder, whose subfolders torchvision orders by name. None leaves the teacher as it is.
        model_name: For messages.

    Returns:
        What each class was before, where their order has changed; see `keep_order`.

    Raises:
        SFTeacherError: The data has other classes, there are no names to compare, or the classifier is not one with a
            row for each class.
    """
    known = class_names_of(teacher)
    if label_names is None:
        logger.info(f'Teacher `{model_name}`: whether its classes have the order of the data\'s labels cannot be '
                    f'checked without {"label_names" if known else "names of its classes"}')
        return None
    names = _read(label_names)
    if not known:
        raise SFTeacherError(f'teacher {model_name!r} holds no names of its classes, so their order cannot be compared '
                             f'with label_names: export it with class_names, or leave label_names out')
    if sorted(known) != sorted(names) or len(set(names)) != len(names):
        mine, yours = ([n for n in left if n not in set(right)] for left, right in ((known, names), (names, known)))
        raise SFTeacherError(f'teacher {model_name!r} has other classes: {len(known)}, among them {mine[:3]}, against '
                             f'{len(names)}, among them {yours[:3]}. Give the data that it was trained on')
    if known == names:
        return None
    order = [known.index(name) for name in names]
    _reorder(teacher, order, model_name)
    keep_order(teacher, order, model_name)
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, 'label_names': names}
    moved = next(i for i, name in enumerate(names) if name != known[i])
    logger.info(f'Teacher `{model_name}`: its logits were put into the order of label_names; class {moved} was '
                f'{known[moved]!r} and is {names[moved]!r}')
    return order


def keep_order(model: nn.Module, order: Sequence[int], model_name: str) -> None:
    """Refuse from now on to load the weights with the classes as they were, as ``src_ckpt`` would after the building.

    Args:
        model: The teacher, with its classes in their new order.
        order: What each class was before.
        model_name: For messages.
    """
    back = torch.tensor(order).argsort()
    model.register_load_state_dict_pre_hook(partial(_refuse_other_order, back=back, model_name=model_name))


def _refuse_other_order(
        model: nn.Module,
        state: Mapping[str, torch.Tensor],
        prefix: str,
        *_: Any,
        back: torch.Tensor,
        model_name: str,
) -> None:
    for name, parameter in model.named_parameters():
        given = state.get(prefix + name)
        if given is None or given.shape != parameter.shape or parameter.shape[:1] != back.shape:
            continue
        given = given.to(parameter.device)
        if torch.equal(given, parameter[back.to(parameter.device)]) and not torch.equal(given, parameter):
            raise SFTeacherError(f'these weights (src_ckpt?) would put the classes of teacher {model_name!r} back into '
                                 f'the order that label_names changed: leave src_ckpt out, model_name has the weights')


def _read(label_names: Sequence[str] | str) -> list[str]:
    if not isinstance(label_names, str):
        return [str(name) for name in label_names]
    path = Path(label_names)
    if path.is_dir():
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if path.is_file():
        text = path.read_text(encoding='utf-8-sig', errors='surrogateescape')       # as --class-map's are read
        return [name.strip() for name in text.split('\n') if name.strip()]
    raise SFTeacherError(f'label_names {label_names!r} does not exist (working directory {Path.cwd()}): give a list of '
                         f'names, a file with one a line, or the folder of an ImageFolder')


@torch.no_grad()
def _reorder(teacher: Any, order: list[int], model_name: str) -> None:
    """Let class i be what class ``order[i]`` was."""
    x = torch.randn(2, *timm.data.resolve_model_data_config(teacher)['input_size'],
                    generator=torch.Generator().manual_seed(0))
    wanted = teacher(x)[:, order]
    heads = teacher.get_classifier()        # several in DeiT and its like, whose logits are averaged
    for head in heads if isinstance(heads, tuple) else (heads,):
        for parameter in head.parameters():
            if parameter.shape[:1] == (len(order),):        # not a scalar, such as a scale
                parameter.copy_(parameter[order])
    if not torch.allclose(teacher(x), wanted, rtol=1e-4, atol=1e-5):
        raise SFTeacherError(f'teacher {model_name!r} has its classes in another order than label_names, and its '
                             f'classifier ({type(heads).__name__}) has no row for each class that could be moved: '
                             f'give the data in the order of the teacher, {class_names_of(teacher)}')
