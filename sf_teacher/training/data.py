"""From a run's settings to checked datasets: what is in them, what was left out, and whether the splits fit."""
from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset

from ..errors import SettingError, SFTeacherError
from ..validation import setting
from .copies import check_copies
from .image_files import FolderReader, ImageFiles, described, tar_reader
from .settings import DataConfig

_logger = logging.getLogger(__name__)

NO_SPLIT = 'none'       # as train_split: no labelled images to train on
_SYNONYMS = {'train': ('training',), 'validation': ('val', 'valid', 'eval', 'test')}


class DigitsDataset(Dataset[Any]):
    """scikit-learn's 1797 handwritten digits, 8x8 and grey, which need no download; every fifth is for validation."""

    def __init__(self, is_training: bool) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise SFTeacherError(f'{setting("data", "digits")} comes with scikit-learn, which is not installed: pip '
                                 f'install scikit-learn, or give a folder') from error
        digits = load_digits()
        keep = (np.arange(len(digits.target)) % 5 != 0) == is_training
        self.images = (digits.images[keep] * 255 / 16).round().astype(np.uint8)
        self.targets = digits.target[keep].astype(int)
        self.classes = [str(name) for name in digits.target_names]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])


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
    labelled = config.train_split != NO_SPLIT or not getattr(config, 'unlabelled', '')
    train = _open(config, True, seed, channels) if labelled else None
    validation = _open(config, False, seed, channels)
    check_copies(getattr(train, 'reader', None), getattr(validation, 'reader', None))
    names = [class_names(d) for d in (train or validation, validation)]
    if names[0] and names[1] and names[0] != names[1]:
        differ = sorted(set(names[0]) ^ set(names[1]))
        raise SFTeacherError(
            f'the classes of {config.train_split} ({len(names[0])}) and {config.val_split} ({len(names[1])}) differ, '
            f'e.g. in {", ".join(differ[:3]) or "their order"}: labels would not mean the same. Add what is missing, '
            f'or give {setting("class_map")}, a file with one class name a line')
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
        raise SFTeacherError(f'{config.data or config.dataset} holds one class ({_listed(names[0])}): give images of '
                             f'at least 2, with a folder for each in {config.train_split} and {config.val_split}')
    for split, labels in zip((config.train_split, config.val_split), found, strict=True):
        if labels is None:
            continue
        if labels.min() < 0 or labels.max() >= num_classes:
            raise SFTeacherError(f'{split} has labels {labels.min()}..{labels.max()}, which do not fit '
                                 f'{setting("num_classes", num_classes)}: they must lie in 0..{num_classes - 1}')
        if absent := sorted(set(range(num_classes)) - set(labels.tolist())):
            _logger.warning('%d of %d classes have no image in %s: %s', len(absent), num_classes, split,
                            _listed(_name(names[0], label) for label in absent))
    data = Data(train, validation, num_classes, class_names=_in_order(names[0], num_classes))
    for split, dataset, labels in zip((config.train_split, config.val_split), (train, validation), found, strict=True):
        if dataset is None:
            continue
        data.contents.append(f'{split}: {_counted(dataset, labels, names[0])}')
        if skipped := getattr(getattr(dataset, 'reader', None), 'skipped', None):
            data.contents[-1] += f'; left out {described(skipped)}'
            _logger.warning('%s: left out %s', split, described(skipped))
    return data


def _in_order(names: dict[str, int] | list[str], num_classes: int) -> list[str] | None:
    pairs = names.items() if isinstance(names, dict) else zip(names, range(len(names)), strict=True)
    by_label = {int(label): str(name) for name, label in pairs}
    if {len(names), len(set(by_label.values()))} != {num_classes} or set(by_label) != set(range(num_classes)):
        return None
    return [by_label[i] for i in range(num_classes)]


def check_class_names(data: Data, theirs: list[str] | None, whose: str) -> None:
    """Refuse a trained model whose logits mean other classes than the labels of the data.

    Args:
        data: The data.
        theirs: The model's class names, in the order of its logits, as far as they are known.
        whose: The model, for messages.

    Raises:
        SFTeacherError: The names, or their order, differ.
    """
    ours = data.class_names
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
    raise SFTeacherError(f'{whose} has other classes than the data: {_listed(set(theirs) - set(ours))} against '
                         f'{_listed(set(ours) - set(theirs))}; {remedy}')


def _name(names: Any, label: int) -> str:
    """The name of a class, where it has one."""
    if isinstance(names, dict):
        return next((str(name) for name, i in names.items() if i == label), str(label))
    return str(names[label]) if label < len(names) else str(label)


def _counted(dataset: Any, labels: np.ndarray[Any, Any] | None, names: Any) -> str:
    """How many images a split has, of each class if there are few."""
    if labels is None:
        return 'read as a stream' if isinstance(dataset, IterableDataset) else f'{len(dataset)} images'
    kinds, counts = np.unique(labels, return_counts=True)
    text = f'{len(labels)} images of {len(kinds)} classes'
    if len(kinds) <= 12:
        return f'{text} ({", ".join(f"{_name(names, k)} {n}" for k, n in zip(kinds.tolist(), counts, strict=True))})'
    few, many = counts.argmin(), counts.argmax()
    return f'{text} ({counts[few]} of {_name(names, kinds[few])} to {counts[many]} of {_name(names, kinds[many])})'


def class_names(dataset: Any) -> dict[str, int] | list[str]:
    """Class names with their labels, as far as the dataset knows them."""
    reader = getattr(dataset, 'reader', dataset)
    for name in ('class_to_idx', 'class_name_to_idx', 'classes'):
        if getattr(reader, name, None):
            return getattr(reader, name)
    return []


def targets(dataset: Any) -> np.ndarray | None:
    """All labels, where they are known without decoding images."""
    reader = getattr(dataset, 'reader', dataset)
    if getattr(reader, 'targets', None) is not None:
        return np.asarray(reader.targets)
    samples = getattr(reader, 'samples', None)
    return np.array([label for _, label in samples]) if samples else None


def _open(config: DataConfig, is_training: bool, seed: int, channels: int) -> Any:
    if config.data == 'digits':
        return DigitsDataset(is_training)
    split, other = (config.train_split, config.val_split)[::1 if is_training else -1]
    mode = 'RGB' if channels == 3 else 'L'
    if not config.dataset:
        beside = None if other == NO_SPLIT and not is_training else _find(Path(config.data), other)
        return _open_files(config, _find(Path(config.data), split), beside, mode)
    if split == other:
        raise SFTeacherError(f'training and validation would both read {config.dataset}, split {split}: give another '
                             f'{setting("val_split")}')
    root = config.data or None
    try:
        dataset = create_dataset(
            config.dataset, root=root, split=split,
            class_map=config.class_map,     # type: ignore[arg-type]
            download=config.dataset_download, is_training=is_training, batch_size=config.batch_size, seed=seed,
            input_img_mode=mode)
        count = len(dataset)
    except Exception as error:      # readers raise whatever their libraries raise
        raise SFTeacherError(f'{config.dataset or root}, split {split}: no images can be read from it '
                             f'({type(error).__name__}: {error})') from error
    if not count and not isinstance(dataset, IterableDataset):
        raise SFTeacherError(f'{config.dataset or root}, split {split}, is empty')
    return dataset


def _open_files(config: DataConfig, root: Path, other: Path | None, mode: str) -> ImageFiles:
    """A split in a folder or tar."""
    if other is not None:
        check_apart(root, other)
    if config.class_map and not any(os.path.isfile(p) for p in (Path(config.class_map), root / config.class_map)):
        raise SFTeacherError(f'{setting("class_map", config.class_map)} is no file, here or in {root}: no images '
                             f'can be read from it without')
    try:
        reader = (FolderReader if root.is_dir() else tar_reader)(root, config.class_map)
    except Exception as error:      # tarfile, pickle and timm raise whatever they like
        reason = str(error) if isinstance(error, SFTeacherError) else f'{type(error).__name__}: {error}'
        raise SFTeacherError(f'{root}, split {root.name.removesuffix(".tar")}: no images can be read from it '
                             f'({reason})') from error
    return ImageFiles(str(root), reader=reader, input_img_mode=mode)    # type: ignore[no-untyped-call]


def check_apart(root: Path, other: Path) -> None:
    """Refuse two places of images of which one is the other or lies in it."""
    here, there = root.resolve(), other.resolve()
    if here == there:
        raise SFTeacherError(f'training and validation would both read {root}: give another {setting("val_split")}')
    if here in there.parents or there in here.parents:
        raise SFTeacherError(f'{max(root, other)} lies in {min(root, other)}, and training and validation would share '
                             f'its images: give two folders beside each other as {setting("train_split")} and '
                             f'{setting("val_split")}')


def _find(root: Path, split: str) -> Path:
    """The folder or tar of a split. timm would quietly read the whole of `root` where there is none."""
    if not os.path.isdir(root):     # False also for what cannot be a path
        raise SFTeacherError(f'{setting("data", str(root))} is no folder: give the folder that holds the splits, as '
                             f'folders or as .tar files (they need not be named {split}: see '
                             f'{setting("train_split")} and {setting("val_split")})')
    for name in (split, *_SYNONYMS.get(split, ())):
        if os.path.isdir(root / name):
            return root / name
        if os.path.isfile(root / f'{name}.tar'):
            return root / f'{name}.tar'
    raise SFTeacherError(f'there is no {split} in {root}, neither a folder nor a .tar; there are: '
                         f'{_listed(p.name for p in root.iterdir())}. Name yours with '
                         f'{setting("train_split")} and {setting("val_split")}')


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') or 'nothing'
