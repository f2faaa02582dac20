"""Images without labels in the student's phase: what it learns from the teacher needs none."""
from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from ..errors import SFTeacherError
from ..validation import setting
from .copies import check_copies
from .datasets import Data
from .image_files import FolderReader, ImageFiles, described
from .opening import check_apart
from .settings import DataConfig
from .tar_files import TarReader

UNLABELLED = -1     # the label of an image without one


class WithUnlabelled(Dataset[Any]):
    """Labelled images, if any, followed by images without a label, whose label is -1.

    One epoch goes once through both, in one random order, so a batch holds of each what their numbers make likely.
    """

    def __init__(self, labelled: Any, unlabelled: Any) -> None:
        self.parts = (labelled, unlabelled)
        self.labelled = 0 if labelled is None else len(labelled)

    def __len__(self) -> int:
        return self.labelled + len(self.parts[1])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index < self.labelled:
            image, label = self.parts[0][index]
            return image, int(label)
        return self.parts[1][index - self.labelled][0], UNLABELLED

    def filename(self, index: int) -> str:
        """The name of an image, for messages."""
        part, index = (0, index) if index < self.labelled else (1, index - self.labelled)
        name = getattr(self.parts[part], 'filename', None)
        return str(name(index)) if name is not None else f'number {index}'

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == 'transform':     # which timm sets
            for part in self.parts:
                if part is not None:
                    part.transform = value


class LabelledOnly(nn.Module):
    """A loss over the images of a batch that have a label: their mean, or 0 if there are none.

    Args:
        criterion: The loss of logits [B, K] and labels [B], or soft targets [B, K], averaged over the batch.
    """

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        self.smoothing = getattr(criterion, 'smoothing', None)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if target.is_floating_point():      # shares [B, K] of classes, which only images with labels have
            mixed: torch.Tensor = self.criterion(logits, target)
            return mixed
        known = target != UNLABELLED
        if not known.any():
            return logits.sum() * 0.
        loss: torch.Tensor = self.criterion(logits[known], target[known])
        return loss


def lowest_label(task: Any) -> int:
    """The lowest label that a task takes in training."""
    return UNLABELLED if isinstance(getattr(task, 'criterion', None), LabelledOnly) else 0


def with_unlabelled(data: Data, config: DataConfig, source: str, channels: int) -> Data:
    """Data whose training images are those of `data`, if any, and those of `source`, a folder or a .tar.

    Raises:
        SFTeacherError: There are no images, they are the validation images, or the labelled ones are a stream.
    """
    if isinstance(data.train, IterableDataset):
        raise SFTeacherError(f'{config.dataset} is read as a stream, which cannot be mixed with '
                             f'{setting("unlabelled", source)}: give folders')
    root = Path(source)
    validation = getattr(getattr(data.validation, 'reader', None), 'root', None)
    if validation is not None:
        check_apart(root, Path(validation), unlabelled=True)
    if os.path.isdir(root):
        reader: FolderReader | TarReader = FolderReader(root, labels='none')
    elif os.path.isfile(root) and root.suffix == '.tar':
        try:
            reader = TarReader(root, labels='none')
        except (tarfile.TarError, OSError) as error:
            raise SFTeacherError(f'no images can be read from {root} ({type(error).__name__}: {error})') from error
    else:
        raise SFTeacherError(f'{setting("unlabelled", source)} is neither a folder of images nor a .tar')
    check_copies(reader, getattr(data.validation, 'reader', None), 'unlabelled')
    images = ImageFiles(     # type: ignore[no-untyped-call]
        str(root), reader=reader, input_img_mode='RGB' if channels == 3 else 'L')
    skipped = reader.skipped
    text = f'unlabelled: {len(images)} images' + (f'; left out {described(skipped)}' if skipped else '')
    return replace(data, train=WithUnlabelled(data.train, images), decoded={}, contents=[*data.contents, text])
