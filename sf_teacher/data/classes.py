"""How classes are called: in the data, in a trained model, and whether both mean the same."""
from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any
from unicodedata import normalize

from ..errors import SFTeacherError
from ..validation import setting

_logger = logging.getLogger(__name__)


def class_names(dataset: Any) -> dict[str, int] | list[str]:
    """Class names with their labels, as far as the dataset knows them."""
    reader = getattr(dataset, 'reader', dataset)
    for name in ('class_to_idx', 'class_name_to_idx', 'classes'):
        if getattr(reader, name, None):
            return getattr(reader, name)
    return []


def in_order(names: dict[str, int] | list[str], num_classes: int) -> list[str] | None:
    pairs = names.items() if isinstance(names, dict) else zip(names, range(len(names)), strict=True)
    by_label = {int(label): str(name) for name, label in pairs}
    if {len(names), len(set(by_label.values()))} != {num_classes} or set(by_label) != set(range(num_classes)):
        return None
    return [by_label[i] for i in range(num_classes)]


def check_same_classes(ours: list[str] | None, theirs: list[str] | None, whose: str) -> None:
    """Refuse a trained model whose logits mean other classes than the labels of the data.

    Args:
        ours: The data's class names, in the order of the labels, as far as they are known.
        theirs: The model's class names, in the order of its logits, as far as they are known.
        whose: The model, for messages.

    Raises:
        SFTeacherError: The names, or their order, differ.
    """
    if theirs is None or ours is None:
        _logger.info('%s no names of classes: whether its classes have the order of the labels cannot be checked',
                     f'{whose} holds' if theirs is None else 'the data hold')
        return
    if theirs == ours:
        return
    remedy = f'give the data that it was trained on, or map theirs with {setting("class_map")}, a file with its ' \
             f'names in its order, one a line'
    if sorted(theirs) == sorted(ours):
        at = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
        raise SFTeacherError(f'{whose} has the classes of the data in another order: class {at} is {theirs[at]!r} '
                             f'there and {ours[at]!r} in the data; {remedy}')
    raise SFTeacherError(f'{whose} has other classes than the data: {listed(set(theirs) - set(ours))} against '
                         f'{listed(set(ours) - set(theirs))}{look_alike(theirs, ours)}; {remedy}')


def look_alike(first: Iterable[str], second: Iterable[str]) -> str:
    """What to add where names differ and look the same, as between file systems that write accents in two ways."""
    composed = [{normalize('NFC', name) for name in names} for names in (first, second)]
    return ' (they look the same, and their accents are written in two ways of Unicode, NFC and NFD: rename one ' \
           'side)' if composed[0] == composed[1] else ''


def name_of(names: Any, label: int) -> str:
    """The name of a class, where it has one."""
    if isinstance(names, dict):
        return next((str(name) for name, i in names.items() if i == label), str(label))
    return str(names[label]) if label < len(names) else str(label)


def listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') or 'nothing'
