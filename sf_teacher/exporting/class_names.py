"""Names of the classes in the order of a teacher's logits."""
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

from torch import nn

from ..checks import shown
from ..errors import SFTeacherError


def class_names_of(model: nn.Module) -> list[str] | None:
    """Names of the classes in the order of the logits, as a timm configuration holds them; None where it does not."""
    names = class_names_in((getattr(model, 'pretrained_cfg', None) or {}).get('label_names'))
    return names if names and len(names) == getattr(model, 'num_classes', len(names)) else None


def class_names_in(label_names: Any) -> list[str] | None:
    """The names in what a timm configuration calls ``label_names``, a list or a mapping; None where one is missing."""
    if isinstance(label_names, Mapping):        # JSON makes strings of the indices
        label_names = [label_names.get(i, label_names.get(str(i))) for i in range(len(label_names))]
    if not label_names or None in label_names:
        return None
    return [str(name) for name in label_names]


def check_same_order(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a trained student whose logits mean other classes than the teacher's, as far as both say theirs."""
    ours, theirs = class_names_of(teacher), class_names_of(student)
    if ours is not None and theirs is not None and ours != theirs:
        raise SFTeacherError(f'the classes of the trained student {type(student).__name__} are not those of the '
                             f'teacher in its order: {shown(theirs)} there, {shown(ours)} here. Give one that was '
                             f'trained on the same data')


def check_class_names(names: Sequence[str], num_classes: int) -> list[str]:
    """Names of classes as a list, or an error that says what they are not."""
    if isinstance(names, str | Mapping | Set) or not all(isinstance(name, str) and name for name in names):
        raise SFTeacherError(f'class_names must be one string a class, a list in the order of the logits; got '
                             f'{names!r}')
    if len(names) != num_classes:
        raise SFTeacherError(f'there are {len(names)} class_names and the teacher has {num_classes} classes')
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise SFTeacherError(f'class_names holds {", ".join(map(repr, twice[:3]))} more than once: their order would '
                             f'not say which is which')
    return list(names)
