"""From a run's settings to checked datasets: what is in them, what was left out, and whether the splits fit."""
from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ..errors import SettingError, SFTeacherError
from ..validation import setting
from .classes import class_names, in_order, listed, look_alike, name_of
from .copies import check_copies
from .image_files import described
from .opening import open_split
from .settings import NO_SPLIT, DataConfig

_logger = logging.getLogger(__name__)


@dataclass
class Data:
    """Checked datasets of a run."""
    train: Any
    validation: Any
    num_classes: int
    decoded: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)     # for further runs
    contents: list[str] = field(default_factory=list)      # images per split and class, and what was left out
    class_names: list[str] | None = None        # in the order of the labels, where every class has one name


def load_data(config: DataConfig, seed: int = 42, channels: int = 3) -> Data:
    """Open and check both splits; no image is decoded yet.

    Raises:
        SFTeacherError: They are missing, empty, the same, or their labels fit neither each other nor `num_classes`.
    """
    if not config.data and not config.dataset:
        raise SettingError(f'no data: give {setting("data", "digits")}, a folder with train and validation in it, or '
                           f'{setting("dataset", "torch/cifar100")}')
    if channels not in (1, 3):
        raise SFTeacherError(f'{setting("input_size")} with {channels} channels: images are read as grey (1) or RGB '
                             f'(3); for others give fit loaders of your own')
    unlabelled = getattr(config, 'unlabelled', None)    # None: a teacher, which learns of labels only
    if config.train_split == NO_SPLIT and unlabelled == '':
        raise SettingError(f'{setting("train_split", NO_SPLIT)} leaves out the labelled images: give those without '
                           f'labels as {setting("unlabelled")}, or name another {setting("train_split")}')
    labelled = config.train_split != NO_SPLIT or not unlabelled
    train = open_split(config, True, seed, channels) if labelled else None
    validation = open_split(config, False, seed, channels)
    check_copies(getattr(train, 'reader', None), getattr(validation, 'reader', None))
    names = [class_names(d) for d in (train or validation, validation)]
    if names[0] and names[1] and names[0] != names[1]:
        differ = sorted(set(names[0]) ^ set(names[1]))
        raise SFTeacherError(
            f'the classes of {config.train_split} ({len(names[0])}) and {config.val_split} ({len(names[1])}) differ, '
            f'e.g. in {", ".join(differ[:3]) or "their order"}{look_alike(*names)}: labels would not mean the same. '
            f'Add what is missing, or give {setting("class_map")}, a file with one class name a line')
    found = [None if d is None else targets(d) for d in (train, validation)]
    if isinstance(names[0], dict) and names[0]:
        known = max(names[0].values()) + 1      # several names may mean one class
    else:
        known = len(names[0]) or max((int(t.max()) + 1 for t in found if t is not None), default=0)
    num_classes = config.num_classes or known
    if not num_classes:
        raise SettingError(f'the number of classes of {config.dataset} is not known in advance: give '
                           f'{setting("num_classes")}')
    if num_classes < 2:
        raise SFTeacherError(f'{config.data or config.dataset} holds one class ({listed(names[0])}): give images of '
                             f'at least 2, with a folder for each in {config.train_split} and {config.val_split}')
    for split, labels in zip((config.train_split, config.val_split), found, strict=True):
        if labels is None:
            continue
        if labels.min() < 0 or labels.max() >= num_classes:
            raise SFTeacherError(f'{split} has labels {labels.min()}..{labels.max()}, which do not fit '
                                 f'{setting("num_classes", num_classes)}: they must lie in 0..{num_classes - 1}')
        if absent := sorted(set(range(num_classes)) - set(labels.tolist())):
            _logger.warning('%d of %d classes have no image in %s: %s', len(absent), num_classes, split,
                            listed(name_of(names[0], label) for label in absent))
    data = Data(train, validation, num_classes, class_names=in_order(names[0], num_classes))
    for split, dataset, labels in zip((config.train_split, config.val_split), (train, validation), found, strict=True):
        if dataset is None:
            continue
        data.contents.append(f'{split}: {_counted(dataset, labels, names[0])}')
        if skipped := getattr(getattr(dataset, 'reader', None), 'skipped', None):
            data.contents[-1] += f'; left out {described(skipped)}'
            _logger.warning('%s: left out %s', split, described(skipped))
    return data


def _counted(dataset: Any, labels: np.ndarray[Any, Any] | None, names: Any) -> str:
    """How many images a split has, of each class if there are few."""
    if labels is None:
        return 'read as a stream' if isinstance(dataset, IterableDataset) else f'{len(dataset)} images'
    kinds, counts = np.unique(labels, return_counts=True)
    text = f'{len(labels)} images of {len(kinds)} classes'
    if len(kinds) <= 12:
        return f'{text} ({", ".join(f"{name_of(names, k)} {n}" for k, n in zip(kinds.tolist(), counts, strict=True))})'
    few, many = counts.argmin(), counts.argmax()
    return f'{text} ({counts[few]} of {name_of(names, kinds[few])} to {counts[many]} of {name_of(names, kinds[many])})'


def targets(dataset: Any) -> np.ndarray | None:
    """All labels, where they are known without decoding images."""
    reader = getattr(dataset, 'reader', dataset)
    if getattr(reader, 'targets', None) is not None:
        return np.asarray(reader.targets)
    samples = getattr(reader, 'samples', None)
    return np.array([label for _, label in samples]) if samples is not None and len(samples) else None
