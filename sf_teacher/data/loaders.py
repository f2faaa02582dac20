"""Loaders over checked datasets; reading and augmentation are timm's."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from timm.data import create_loader
from torch.utils.data import Dataset, IterableDataset

from ..errors import SFTeacherError
from ..validation import setting
from .datasets import Data
from .in_memory import InMemoryLoader, load_images
from .settings import DataConfig


class Training(Protocol):
    """What loaders ask of the settings of a training."""

    @property
    def seed(self) -> int: ...

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""


def create_loaders(
        data: Data,
        config: DataConfig,
        train_config: Training,
        data_config: Mapping[str, Any],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        with_index: bool = False,
        decode: bool = True,
) -> tuple[Any, Any]:
    """Loaders for training and validation.

    Args:
        data: The datasets.
        config: Batch size, augmentation.
        train_config: Seed, mixing.
        data_config: Image size, mean, std, interpolation and crop, as `timm.data.resolve_data_config` gives them.
        device: Where the batches are.
        rank: This process.
        world_size: Number of processes.
        with_index: Whether training batches have a third item, the images' numbers in the data set [B].
        decode: Whether images that are kept in memory are read now; without, the loaders have a length only.

    Raises:
        SFTeacherError: The data cannot be loaded like this.
    """
    if with_index and isinstance(data.train, IterableDataset):
        raise SFTeacherError(f'{config.dataset} is read as a stream, which does not tell which images of the data set '
                             f'a batch holds, and the method needs to know: give folders, or another method')
    if not isinstance(data.train, IterableDataset):
        _check_batches(len(data.train), config.batch_size, world_size, train_config.mixes)
    batch_sizes = config.batch_size, config.validation_batch_size or config.batch_size
    if config.kept_in_memory:
        crop: dict[str, Any] = dict(crop_padding=0, hflip=0.) if config.no_aug else dict(
            crop_padding=config.crop_padding, hflip=flip_probability(config))
        loaders = []
        for dataset, batch_size, is_training in zip((data.train, data.validation), batch_sizes, (True, False),
                                                    strict=True):
            if isinstance(dataset, IterableDataset):
                raise SFTeacherError(f'{config.dataset} is read as a stream and cannot be kept in memory: leave out '
                                     f'{setting("in_memory")}')
            key = is_training, tuple(data_config['input_size']), data_config['interpolation']
            if not decode:
                loaders.append(InMemoryLoader(
                    torch.empty(len(dataset), *data_config['input_size'], dtype=torch.uint8, device='meta'),
                    torch.empty(len(dataset), dtype=torch.int64, device='meta'), batch_size, data_config['mean'],
                    data_config['std'], is_training=is_training, device='meta', rank=rank, world_size=world_size))
                continue
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

    def __getitem__(self, number: int) -> tuple[Any, torch.Tensor]:
        image, label = self.dataset[number]
        return image, torch.tensor([label, number])     # one tensor, as timm's collation wants it

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


def _check_batches(count: int, batch_size: int, world_size: int, mixes: bool) -> None:
    if count < batch_size * world_size:
        ranks = f' on each of {world_size} processes' if world_size > 1 else ''
        raise SFTeacherError(f'{count} training images are fewer than one batch of {batch_size}{ranks}: choose a '
                             f'{setting("batch_size")} of at most {max(count // world_size, 1)}'
                             + (f', and fewer than {world_size} processes' if count < world_size else ''))
    if mixes and batch_size % 2:
        raise SFTeacherError(f'mixup and cutmix pair the images of a batch: '
                             f'{setting("batch_size", batch_size)} must be even')
