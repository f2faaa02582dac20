"""From a run's settings to checked datasets and loaders; reading and augmentation are timm's."""
from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils.data import Dataset, IterableDataset

from ..errors import SettingError, SFTeacherError
from ..validation import setting
from .in_memory import InMemoryLoader, load_images
from .settings import DataConfig, TrainConfig

_logger = logging.getLogger(__name__)

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


def load_data(config: DataConfig, seed: int = 42, channels: int = 3) -> Data:
    """Open and check both splits; no image is decoded yet.

    Raises:
        SFTeacherError: They are missing, empty, the same, or their labels fit neither each other nor `num_classes`.
    """
    if not config.data and not config.dataset:
        raise SettingError(f'no data: give {setting("data", "digits")}, a folder with train and validation in it, or '
                           f'{setting("dataset", "torch/cifar100")}')
    train, validation = (_open(config, is_training, seed, channels) for is_training in (True, False))
    names = [class_names(d) for d in (train, validation)]
    if names[0] and names[1] and names[0] != names[1]:
        differ = sorted(set(names[0]) ^ set(names[1]))
        raise SFTeacherError(
            f'the classes of {config.train_split} ({len(names[0])}) and {config.val_split} ({len(names[1])}) differ, '
            f'e.g. in {", ".join(differ[:3]) or "their order"}: labels would not mean the same. Add what is missing, '
            f'or give {setting("class_map")}, a file with one class name a line')
    found = [targets(d) for d in (train, validation)]
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
        absent = num_classes - len(np.unique(labels))
        if absent:
            _logger.warning('%d of %d classes have no image in %s', absent, num_classes, split)
    return Data(train, validation, num_classes)


def create_loaders(
        data: Data,
        config: DataConfig,
        train_config: TrainConfig,
        data_config: Mapping[str, Any],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        with_index: bool = False,
) -> tuple[Any, Any]:
    """Loaders for training and validation.

    Args:
        data: The datasets.
        config: Batch size, augmentation.
        train_config: Seed, mixing.
        data_config: Image size, mean, std, interpolation and crop, as `timm.data.resolve_data_config` gives them.
        device: Where batches are delivered.
        rank: This process.
        world_size: Number of processes.
        with_index: Whether training batches have a third item, the images' numbers in the data set [B].

    Raises:
        SFTeacherError: The data cannot be loaded like this.
    """
    if with_index and isinstance(data.train, IterableDataset):
        raise SFTeacherError(f'{config.dataset} is read as a stream, which does not tell which images of the data set '
                             f'a batch holds, and the method needs to know: give folders, or another method')
    if not isinstance(data.train, IterableDataset):
        _check_batches(len(data.train), config.batch_size, world_size, train_config.mixes)
    batch_sizes = config.batch_size, config.validation_batch_size or config.batch_size
    if config.in_memory or config.data == 'digits':
        crop: dict[str, Any] = dict(crop_padding=0, hflip=0.) if config.no_aug else dict(
            crop_padding=config.crop_padding, hflip=flip_probability(config))
        loaders = []
        for dataset, batch_size, is_training in zip((data.train, data.validation), batch_sizes, (True, False),
                                                    strict=True):
            if isinstance(dataset, IterableDataset):
                raise SFTeacherError(f'{config.dataset} is read as a stream and cannot be kept in memory: leave out '
                                     f'{setting("in_memory")}')
            key = is_training, tuple(data_config['input_size']), data_config['interpolation']
            if key not in data.decoded:
                data.decoded[key] = load_images(dataset, data_config['input_size'], data_config['interpolation'])
            images, labels = data.decoded[key]
            loaders.append(InMemoryLoader(
                images, labels, batch_size, data_config['mean'], data_config['std'], is_training=is_training, **crop,
                seed=train_config.seed, device=device, rank=rank, world_size=world_size, with_index=with_index))
        return loaders[0], loaders[1]
    common: dict[str, Any] = dict(
        input_size=data_config['input_size'], mean=data_config['mean'], std=data_config['std'],
        interpolation=data_config['interpolation'], num_workers=config.workers, distributed=world_size > 1,
        persistent_workers=False, pin_memory=device.type == 'cuda', device=device)
    training: Any = Indexed(data.train) if with_index else data.train
    train = create_loader(
        training, batch_size=batch_sizes[0], is_training=True, no_aug=config.no_aug,
        scale=(config.scale[0], config.scale[1]), hflip=flip_probability(config), color_jitter=config.color_jitter,
        auto_augment=config.aa or None, re_prob=config.reprob, **common)
    if hasattr(train.sampler, 'set_epoch'):
        train.sampler.seed = train_config.seed      # timm leaves it at 0: every seed would see one order
    validation = create_loader(
        data.validation, batch_size=batch_sizes[1], crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'], **common)
    return IndexedLoader(train) if with_index else train, validation


class Indexed(Dataset[Any]):
    """A data set whose targets are pairs (label, number of the image)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[Any, tuple[int, int]]:
        image, label = self.dataset[number]
        return image, (label, number)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'dataset':
            super().__setattr__(name, value)
        else:       # timm sets the transform
            setattr(self.dataset, name, value)


class IndexedLoader:
    """A loader over `Indexed` whose batches are (images, labels, numbers)."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.sampler = loader, loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for images, pairs in self.loader:
            yield images, pairs[:, 0], pairs[:, 1]


def flip_probability(config: DataConfig) -> float:
    """Probability of a horizontal flip; a flipped digit is another sign."""
    return config.hflip if config.hflip is not None else 0. if config.data == 'digits' else 0.5


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
    split = config.train_split if is_training else config.val_split
    root: str | None = config.data or None
    if not config.dataset:
        other = _find(Path(config.data), config.val_split if is_training else config.train_split)
        root = str(_find(Path(config.data), split))
        if Path(root).resolve() == other.resolve():
            raise SFTeacherError(f'training and validation would both read {root}: give another '
                                 f'{setting("val_split")}')
    try:
        dataset = create_dataset(
            config.dataset, root=root, split=split, search_split=bool(config.dataset),
            class_map=config.class_map,     # type: ignore[arg-type]
            download=config.dataset_download, is_training=is_training, batch_size=config.batch_size, seed=seed,
            input_img_mode='RGB' if channels == 3 else 'L')
        count = len(dataset)
    except Exception as error:      # readers raise whatever their libraries raise
        raise SFTeacherError(f'{config.dataset or root}, split {split}: no images can be read from it '
                             f'({type(error).__name__}: {error})') from error
    if not count and not isinstance(dataset, IterableDataset):
        raise SFTeacherError(f'{config.dataset or root}, split {split}, is empty')
    return dataset


def _find(root: Path, split: str) -> Path:
    """The folder or tar of a split. timm would quietly read the whole of `root` where there is none."""
    if not root.is_dir():
        raise SFTeacherError(f'{setting("data", str(root))} is no folder: give the folder that holds the splits, as '
                             f'folders or as .tar files (they need not be named {split}: see '
                             f'{setting("train_split")} and {setting("val_split")})')
    for name in (split, *_SYNONYMS.get(split, ())):
        for path in (root / name, root / f'{name}.tar'):
            if path.exists():
                return path
    raise SFTeacherError(f'there is no {split} in {root}, neither a folder nor a .tar; there are: '
                         f'{_listed(p.name for p in root.iterdir())}. Name yours with '
                         f'{setting("train_split")} and {setting("val_split")}')


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') or 'nothing'


def _check_batches(count: int, batch_size: int, world_size: int, mixes: bool) -> None:
    if count < batch_size * world_size:
        ranks = f' on each of {world_size} processes' if world_size > 1 else ''
        raise SFTeacherError(f'{count} training images are fewer than one batch of {batch_size}{ranks}: choose a '
                             f'{setting("batch_size")} of at most {max(count // world_size, 1)}'
                             + (f', and fewer than {world_size} processes' if count < world_size else ''))
    if mixes and batch_size % 2:
        raise SFTeacherError(f'mixup and cutmix pair the images of a batch: '
                             f'{setting("batch_size", batch_size)} must be even')
