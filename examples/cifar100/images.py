"""Images of a run: which are trained on, which choose and which are reported; and what a teacher says of them."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from nets import MEAN, STD
from torch import nn

from sf_teacher.data.datasets import load_data
from sf_teacher.data.in_memory import InMemoryLoader, load_images
from sf_teacher.data.settings import DataConfig
from sf_teacher.files import write_atomically

Images = dict[str, tuple[torch.Tensor, torch.Tensor]]


def load(source: DataConfig, cache: Path, size: int) -> Images:
    """All images, decoded once: uint8 [N, 3, size, size] and labels [N] by split."""
    path = cache / f'images-{size}-{hashlib.sha256(repr(source).encode()).hexdigest()[:8]}.pt'
    if not path.exists():
        data = load_data(source)
        images = {split: load_images(part, (3, size, size))
                  for split, part in (('train', data.train), ('test', data.validation))}
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(images, file))
    return torch.load(path, mmap=True)


def divided(
        images: tuple[torch.Tensor, torch.Tensor],
        classes: tuple[int, int],
        per_class: int | None,
        validation: int,
        seed: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the training images and of the validation images.

    Args:
        images: Pixels [N, 3, H, W] and labels [N].
        classes: First and last (exclusive) one.
        per_class: Training images of each class; None for all.
        validation: Validation images of each class.
        seed: Draws the training images from those that are not for validation, which are the same for every seed and
            wherever the images come from. None for the first images of each class and the last ones, in their order.
    """
    pixels, labels = images
    train, held_out = [], []
    for k in range(*classes):
        own = (labels == k).nonzero()[:, 0]
        end = len(own) - validation
        if end <= 0 or (validation and per_class and per_class > end):
            raise SystemExit(f'class {k} has {len(own)} images: too few for {per_class or 1} to train on and '
                             f'{validation} to choose by')
        if seed is not None:
            hashes = [hashlib.sha256(image.numpy()).digest() for image in pixels[own]]
            own = own[sorted(range(len(own)), key=hashes.__getitem__)]
            own[:end] = own[:end][torch.randperm(end, generator=torch.Generator().manual_seed(seed))]
        train.append(own[:end][:per_class])
        held_out.append(own[end:])
    found = torch.cat(train)
    return (found if per_class or seed is not None else found.sort()[0]), torch.cat(held_out)


class Split:
    """The images that a run sees.

    Args:
        images: All of them, by split, see `load`.
        settings: Of the run: classes, per_class, validation, drawn, batch_size, unlabelled.
        seed: Of the run.
        device: Where the batches are made.
    """

    def __init__(self, images: Images, settings: dict[str, Any], seed: int, device: torch.device) -> None:
        self.images, self.device, self.batch_size = images, device, settings['batch_size']
        self.first, end = settings['classes']
        self.num_classes, self.unlabelled = end - self.first, settings.get('unlabelled', False)
        drawn = settings.get('drawn', False)
        train, held_out = divided(images['train'], (self.first, end), settings['per_class'],
                                  settings.get('validation', 0), seed if drawn else None)
        test, _ = divided(images['test'], (self.first, end), None, 0, 0 if drawn else None)
        self.indices = {'train': ('train', train), 'validation': ('train', held_out), 'test': ('test', test)}

    def training(self, seed: int, with_index: bool = False) -> InMemoryLoader:
        """Shuffled, cropped and flipped batches; of images without labels every target is 0."""
        pixels, labels = self._of('train')
        targets = torch.zeros_like(labels) if self.unlabelled else labels
        return InMemoryLoader(pixels, targets, self.batch_size, MEAN, STD, True, seed=seed, device=self.device,
                              with_index=with_index)

    def evaluation(self, name: str) -> InMemoryLoader:
        """The images as they are, of ``"train"``, ``"validation"`` or ``"test"``."""
        return InMemoryLoader(*self._of(name), 500, MEAN, STD, False, device=self.device)

    def _of(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        split, index = self.indices[name]
        pixels, labels = self.images[split]
        return pixels[index], labels[index] - self.first


class Remembered(nn.Module):
    """A frozen teacher that looks up what it said of a training batch, bit for bit what it would say again.

    The students of a teacher and seed see the same batches in every run, whatever their temperature.

    Args:
        teacher: The teacher.
        loader: The loader of the run, of which the next batch is always the one that was drawn last.
        logits: Of each batch, in order, from the first epoch on: [epochs * batches, batch_size, classes].
    """

    def __init__(self, teacher: nn.Module, loader: Counted, logits: torch.Tensor) -> None:
        super().__init__()
        self.known, self.loader, self.logits = teacher, loader, logits
        self.pretrained_cfg = getattr(teacher, 'pretrained_cfg', {})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[self.loader.drawn]


class Counted:
    """A loader that knows the number of its latest batch, counted from the first epoch on."""

    def __init__(self, loader: InMemoryLoader) -> None:
        self.loader, self.epoch, self.drawn = loader, 0, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch, item in enumerate(self.loader):
            self.drawn = self.epoch * len(self) + batch
            yield item


@torch.no_grad()
def teacher_logits(
        teacher: nn.Module,
        loader: InMemoryLoader,
        epochs: int,
        path: Path,
        autocast: Callable[[], Any],
        channels_last: bool,
) -> torch.Tensor:
    """What a teacher says of every batch of every epoch, kept in a file."""
    if not path.exists():
        said = []
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for images, _ in loader:
                images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
                with autocast():
                    said.append(teacher(images))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(torch.stack(said), file))
    return torch.load(path)
