"""Image files in folders: which there are, which are left out and why, and how one is decoded.

timm's reader takes .png and .jpg only, follows loops of links, and makes a class of every folder, hidden ones too.
"""
from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader import Reader

from ..errors import SFTeacherError, first_line
from .class_map import load_class_map
from .natural_order import natural_key

SUFFIXES = frozenset(('.avif', '.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png',
                      '.pnm', '.ppm', '.tif', '.tiff', '.webp'))
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)      # what PIL raises

Skipped = dict[str, list[str]]      # reasons, and the paths left out for each


def suffixes() -> set[str]:
    """Endings of files that are read: those of images that PIL can decode here."""
    Image.init()
    return {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN} & SUFFIXES


def hidden(name: str) -> bool:
    """Whether a file or folder is no part of the data by its name."""
    return name.startswith('.') or name == '__MACOSX'


def scan(root: Path) -> tuple[list[str], Skipped]:
    """The image files below a folder, in natural order, and what was left out.

    Raises:
        SFTeacherError: A folder cannot be read.
    """
    known, found, skipped = suffixes(), [], defaultdict(list)   # type: set[str], list[str], Skipped
    pending: list[tuple[str, tuple[str, ...]]] = [(str(root), ())]
    while pending:
        folder, above = pending.pop()
        above = (*above, os.path.realpath(folder))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise SFTeacherError(f'{folder} cannot be read ({error.strerror}): make it readable, or take it out') \
                from error
        empty = True
        for entry in entries:
            path = entry.path
            if hidden(entry.name):
                skipped['hidden'].append(path)
            elif entry.is_dir():
                empty = False
                if os.path.realpath(path) in above:
                    skipped['links back to a folder around them'].append(path)
                else:
                    pending.append((path, above))
            elif os.path.splitext(entry.name)[1].lower() not in known:
                skipped['no images by their ending'].append(path)
            elif not entry.is_file():
                skipped['links to nothing' if entry.is_symlink() and not os.path.exists(path)
                        else 'no regular files'].append(path)
            else:
                empty = False
                found.append(path)
        if empty and len(above) > 1:
            skipped['folders without an image'].append(folder)
    return sorted(found, key=natural_key), dict(skipped)


class FolderReader(Reader):
    """Image files with the innermost folder of each as its class, as timm has it; or, with `labels='none'`, without.

    Args:
        root: The folder.
        class_map: File that maps class names to labels, as timm's.
        labels: ``'one'``, or ``'none'``: every label is -1, and images may lie directly in `root`.

    Raises:
        SFTeacherError: There is no image, or a folder cannot be read.
    """

    def __init__(self, root: Path, class_map: str = '', labels: str = 'one') -> None:
        super().__init__()      # type: ignore[no-untyped-call]
        self.root = str(root)
        files, self.skipped = scan(root)
        names = ['' if folder == self.root else os.path.basename(folder) for folder in map(os.path.dirname, files)]
        self.class_to_idx, self.samples = labelled(files, names, root, class_map, labels, self.skipped)
        check_found(self.samples, root, labels, self.skipped)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        return open(path, 'rb'), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path if absolute else os.path.relpath(path, self.root)


def labelled(
        files: Sequence[str],
        names: Sequence[str],
        root: Path,
        class_map: str,
        labels: str,
        skipped: Skipped,
) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """Labels by class, and the files with theirs; notes in `skipped` those that have none.

    Args:
        files: The files.
        names: The class of each, or ``''`` for one in no folder.
        root: Where they lie.
        class_map: See `FolderReader`.
        labels: The same.
        skipped: What was left out before.
    """
    if labels == 'none':
        return {}, [(file, -1) for file in files]
    mapped = load_class_map(class_map, root) if class_map else {
        name: i for i, name in enumerate(sorted({*names} - {''}, key=natural_key))}
    pairs = list(zip(files, names, strict=True))
    for reason, left in (
        ('in no folder of a class', [file for file, name in pairs if not name]),
        ('of a class that the class map does not have', [f for f, name in pairs if name and name not in mapped]),
    ):
        if left:
            skipped[reason] = left
    return mapped, [(file, mapped[name]) for file, name in pairs if name in mapped]


def check_found(samples: Sequence[Any], root: Path, labels: str, skipped: Skipped) -> None:
    """Refuse a place without images."""
    if not samples:
        raise SFTeacherError(f'Found 0 images in {root}' + (f' ({described(skipped)})' if skipped else '')
                             + '; images end in ' + ', '.join(sorted(suffixes()))
                             + (' and lie in a folder for each class' if labels == 'one' else ''))


class ImageFiles(ImageDataset):
    """timm's dataset, except that an image that cannot be read is named instead of replaced by the next one."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            file, label, *_ = self.reader[index]
            with file:
                image = in_mode(Image.open(file), self.input_img_mode)
        except UNREADABLE as error:
            name = self.filename(index)     # type: ignore[no-untyped-call]
            raise undecodable(name, error) from error
        if self.transform is not None:
            image = self.transform(image)
        return image, int(label)


def undecodable(name: str, error: Exception) -> SFTeacherError:
    """An image that cannot be read, as an error that says what to do so that a run that has begun can go on."""
    return SFTeacherError(f'image {name} of the dataset cannot be decoded ({first_line(error)}): repair it, or put '
                          f'another of its class in its place under the same name; without it a run that has begun '
                          f'cannot be resumed, and must start anew')


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image as RGB or grey (L) with 8 bits; 16 bits are scaled, where PIL would clip them to white."""
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):   # PGM's name there
        values = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    elif image.mode in ('I', 'F'):
        raise ValueError(f'its {"whole" if image.mode == "I" else "floating point"} numbers of 32 bits have no known '
                         f'range; store it with 8 or 16 bits')
    return image.convert(mode)


def described(skipped: Skipped) -> str:
    """What was left out, in words: counts, reasons and a few names."""
    return '; '.join(f'{len(paths)} {reason}: {", ".join(os.path.basename(p) for p in paths[:3])}'
                     + (' ...' if len(paths) > 3 else '') for reason, paths in sorted(skipped.items()))
