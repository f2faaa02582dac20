"""Where a split lies, and what reads it: folders and tars by name, timm's other datasets, digits."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key
from torch.utils.data import Dataset, IterableDataset

from ..errors import SFTeacherError
from ..validation import setting
from .class_map import load_class_map
from .classes import class_names, listed
from .image_files import FolderReader, ImageFiles
from .settings import NO_SPLIT, DataConfig
from .tar_files import TarReader

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


def open_split(config: DataConfig, is_training: bool, seed: int, channels: int) -> Any:
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
        mapped = load_class_map(config.class_map, Path(config.data)) if config.class_map else None
        dataset = create_dataset(
            config.dataset, root=root, split=split,
            class_map=mapped,       # type: ignore[arg-type]
            download=config.dataset_download, is_training=is_training, batch_size=config.batch_size, seed=seed,
            input_img_mode=mode)
        count = len(dataset)
    except Exception as error:      # readers raise whatever their libraries raise
        raise SFTeacherError(f'{config.dataset or root}, split {split}: no images can be read from it '
                             f'({_reason(error)})') from error
    if not count and not isinstance(dataset, IterableDataset):
        raise SFTeacherError(f'{config.dataset or root}, split {split}, is empty')
    if mapped is None:
        _check_order(getattr(dataset, 'reader', None), config.dataset)
    return dataset


def _check_order(reader: Any, source: str) -> None:
    """Refuse class names of which timm's readers of files leave open which comes first."""
    if not isinstance(reader, ReaderImageFolder | ReaderImageInTar):
        return
    first: dict[str, str] = {}
    for name in sorted(map(str, class_names(reader))):
        other = first.setdefault(str(natural_key(name)), name)
        if other != name:
            raise SFTeacherError(f'{source} has the classes {other!r} and {name!r}, which timm puts in another order '
                                 f'in each process: leave out {setting("dataset", source)}, or give '
                                 f'{setting("class_map")}, a file with one class name a line')


def _open_files(config: DataConfig, root: Path, other: Path | None, mode: str) -> ImageFiles:
    """A split in a folder or tar."""
    if other is not None:
        check_apart(root, other)
    if config.class_map and not any(os.path.isfile(p) for p in (Path(config.class_map), root / config.class_map)):
        raise SFTeacherError(f'{setting("class_map", config.class_map)} is no file, here or in {root}: no images '
                             f'can be read from it without')
    try:
        reader = (FolderReader if root.is_dir() else TarReader)(root, config.class_map)
    except Exception as error:      # tarfile, pickle and timm raise whatever they like
        raise SFTeacherError(f'{root}, split {root.name.removesuffix(".tar")}: no images can be read from it '
                             f'({_reason(error)})') from error
    return ImageFiles(str(root), reader=reader, input_img_mode=mode)    # type: ignore[no-untyped-call]


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SFTeacherError) else f'{type(error).__name__}: {error}'


def check_apart(root: Path, other: Path, unlabelled: bool = False) -> None:
    """Refuse two places of images, to train on and to validate, of which one is the other or lies in it."""
    here, there = root.resolve(), other.resolve()
    beside = f'another {setting("unlabelled")}, beside {other}' if unlabelled else ''
    if here == there:
        raise SFTeacherError(f'training and validation would both read {root}: give '
                             f'{beside or "another " + setting("val_split")}')
    if here in there.parents or there in here.parents:
        inner, outer = (other, root) if here in there.parents else (root, other)
        splits = f'two folders beside each other as {setting("train_split")} and {setting("val_split")}'
        raise SFTeacherError(f'{inner} lies in {outer}, and training and validation would share its images: give '
                             f'{beside or splits}')


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
                         f'{listed(p.name for p in root.iterdir())}. Name yours with '
                         f'{setting("train_split")} and {setting("val_split")}')
