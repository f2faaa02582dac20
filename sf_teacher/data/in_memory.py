"""Small images kept decoded in memory, cropped and flipped a batch at a time on the device."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageDataset, create_transform
from timm.data.distributed_sampler import OrderedDistributedSampler

from ..errors import SFTeacherError
from ..validation import setting
from .image_files import UNREADABLE, in_mode, undecodable


def load_images(
        dataset: Any,
        input_size: Sequence[int],
        interpolation: str = 'bicubic',
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode a dataset once, resized and centre-cropped to one size.

    Args:
        dataset: Map-style dataset of timm, torchvision or `DigitsDataset`.
        input_size: (C, H, W); one channel is grey, three are RGB.
        interpolation: How images of another size are resized.

    Returns:
        uint8 images [N, C, H, W] and int64 labels [N].

    Raises:
        SFTeacherError: An image cannot be decoded, or they do not fit in memory; names the file, or the size.
    """
    channels, height, width = input_size
    transform = create_transform((channels, height, width), crop_pct=1., interpolation=interpolation,
                                 use_prefetcher=True)
    _check_memory(len(dataset), input_size)
    images = torch.empty(len(dataset), *input_size, dtype=torch.uint8)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for i in range(len(dataset)):
        try:
            image, label = _read(dataset, i)
            image = in_mode(image, 'RGB' if channels == 3 else 'L')
            pixels = _pixels(image) if image.size == (width, height) else transform(image)
        except SFTeacherError:
            raise
        except UNREADABLE as error:
            name = dataset.filename(i) if hasattr(dataset, 'filename') else f'number {i}'
            raise undecodable(name, error) from error
        images[i], labels[i] = torch.as_tensor(pixels), int(label)
    return images, labels


class InMemoryLoader:
    """Loader over decoded images: batches are gathered, cropped, flipped and normalised on the device.

    Order, crops and flips are a function of (seed, epoch) only. They are drawn for the global batch, of which each
    rank takes its part: any number of ranks sees the same images in the same global batches. The last, incomplete
    batch of training is dropped, as in timm.

    Args:
        images: uint8 [N, C, H, W], as `load_images` gives them.
        labels: int64 [N].
        batch_size: Images in a batch of this rank.
        mean: Of the pixels in 0..1, by channel.
        std: The same.
        is_training: Whether to shuffle, crop and flip.
        crop_padding: Pixels of black padding on each side, within which the crop moves.
        hflip: Probability of a horizontal flip.
        seed: Seed of order, crops and flips.
        device: Where the images are kept and the batches made.
        rank: This process.
        world_size: Number of processes.
        with_index: Whether training batches have a third item, the images' numbers [B].

    Examples:

        ```python
        loader = InMemoryLoader(*load_images(dataset, (3, 32, 32)), 128, mean, std, is_training=True)
        loader.set_epoch(0)
        for images, labels in loader: ...
        ```
    """

    def __init__(
            self,
            images: torch.Tensor,
            labels: torch.Tensor,
            batch_size: int,
            mean: Sequence[float],
            std: Sequence[float],
            is_training: bool = False,
            crop_padding: int = 4,
            hflip: float = 0.5,
            seed: int = 42,
            device: torch.device | str = 'cpu',
            rank: int = 0,
            world_size: int = 1,
            with_index: bool = False,
    ) -> None:
        channels = images.shape[1]
        self.pad = crop_padding if is_training else 0
        self.images = F.pad(images, [self.pad] * 4).to(device)
        self.labels = labels.to(device)
        self.size = images.shape[-2:]
        self.batch_size, self.is_training, self.hflip, self.seed = batch_size, is_training, hflip, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        self.with_index = with_index and is_training
        self.sampler = OrderedDistributedSampler(images, world_size, rank) if not is_training else None
        self.device = torch.device(device)
        self.mean = torch.tensor(mean, device=device).mul(255).view(1, -1, 1, 1).expand(1, channels, 1, 1)
        self.std = torch.tensor(std, device=device).mul(255).view(1, -1, 1, 1).expand(1, channels, 1, 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order, crops and flips the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.sampler is not None:
            return -(-len(self.sampler) // self.batch_size)
        return len(self.images) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        if self.sampler is not None:
            order = torch.tensor(list(self.sampler), device=self.device)
            for index in order.split(self.batch_size):
                yield self._normalised(self.images[index]), self.labels[index]
            return
        for index, y, x, flip in zip(*(t.to(self.device) for t in self._draw()), strict=True):
            batch = self._normalised(self._crop(index, y, x, flip)), self.labels[index]
            yield (*batch, index) if self.with_index else batch

    def _draw(self) -> list[torch.Tensor]:
        """Image, crop offsets and flip of every place in this rank's batches, each [batches, batch_size]."""
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        n = len(self.images)
        drawn = [
            torch.randperm(n, generator=generator),
            torch.randint(2 * self.pad + 1, (n,), generator=generator),
            torch.randint(2 * self.pad + 1, (n,), generator=generator),
            torch.rand(n, generator=generator) < self.hflip,
        ]
        used = len(self) * self.batch_size * self.world_size
        return [t[:used].view(len(self), self.world_size, self.batch_size)[:, self.rank] for t in drawn]

    def _crop(self, index: torch.Tensor, y: torch.Tensor, x: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        windows = self.images.unfold(2, self.size[0], 1).unfold(3, self.size[1], 1)     # a view: [N, C, y, x, H, W]
        crops = windows[index, :, y, x]
        return torch.where(flip[:, None, None, None], crops.flip(-1), crops)

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().sub_(self.mean).div_(self.std)


def _read(dataset: Any, index: int) -> tuple[Image.Image, Any]:
    """One image and label. timm's own access would put the next image in the place of one it cannot read."""
    if isinstance(dataset, ImageDataset):
        file, label, *_ = dataset.reader[index]
        with file:
            image = Image.open(file)
            image.load()
        return image, label
    return dataset[index]


def _pixels(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _check_memory(count: int, input_size: Sequence[int]) -> None:
    needed = 2 * count * int(np.prod(input_size))      # once as decoded, once padded
    known = Path('/proc/meminfo')       # of Linux
    if not known.exists():
        return
    kib = next(line.split()[1] for line in known.read_text().splitlines() if line.startswith('MemAvailable'))
    free = int(kib) * 2 ** 10
    if needed > free:
        raise SFTeacherError(f'{count} images of {setting("input_size", tuple(input_size))} need '
                             f'{needed / 2 ** 30:.1f} GiB of memory and {free / 2 ** 30:.1f} are free: choose a '
                             f'smaller {setting("input_size")}, or leave out {setting("in_memory")}')
