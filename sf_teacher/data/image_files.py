"""Image files in folders and tars: which there are, which are left out and why, and how one is decoded.

timm's reader takes .png and .jpg only, follows loops of links, and makes a class of every folder, hidden ones too.
"""
from __future__ import annotations

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers import img_extensions
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from ..errors import SFTeacherError, first_line

SUFFIXES = frozenset(('.avif', '.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png',
                      '.pnm', '.ppm', '.tif', '.tiff', '.webp'))
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)      # what PIL raises
LARGEST_TAR = 2 ** 31       # bytes; in a larger one the files that are left out are not counted

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
        self.class_to_idx: dict[str, int] = {}
        if labels == 'none':
            self.samples = [(path, -1) for path in files]
        else:
            names = [os.path.basename(os.path.dirname(path)) for path in files]
            loose = [path for path in files if os.path.dirname(path) == self.root]
            if loose:
                self.skipped['in no folder of a class'] = loose
            outside = set(loose)
            self.class_to_idx = load_class_map(class_map, str(root)) if class_map else {
                name: i for i, name in enumerate(sorted(
                    {n for n, p in zip(names, files, strict=True) if p not in outside}, key=natural_key))}
            unmapped = [p for n, p in zip(names, files, strict=True) if p not in outside and n not in self.class_to_idx]
            if unmapped:
                self.skipped['of a class that the class map does not have'] = unmapped
            outside.update(unmapped)
            self.samples = [(path, self.class_to_idx[name]) for path, name in zip(files, names, strict=True)
                            if path not in outside]
        if not self.samples:
            raise SFTeacherError(f'Found 0 images in {root}' + (f' ({described(self.skipped)})' if self.skipped else '')
                                 + '; images end in ' + ', '.join(sorted(suffixes()))
                                 + (' and lie in a folder for each class' if labels == 'one' else ''))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        return open(path, 'rb'), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path if absolute else os.path.relpath(path, self.root)


def tar_reader(path: Path, class_map: str = '') -> Any:
    """timm's reader of a tar, for all images that PIL decodes; says what it left out as `skipped`."""
    with suffixes_of_timm():
        reader: Any = ReaderImageInTar(str(path), **({'class_map': class_map} if class_map else {}))
    if found := [name for name in reader.class_name_to_idx if hidden(name) or not name]:
        raise SFTeacherError(f'{path} holds {"a hidden folder" if found[0] else "images in no folder of a class"}'
                             f'{": " * bool(found[0])}{found[0]}, which would be a class: make it without')
    reader.skipped = {}
    if path.is_file() and path.stat().st_size <= LARGEST_TAR:
        with tarfile.open(path) as tar:
            inside = [m.name for m in tar if m.isfile()]
        read = {sample[0].name for sample in reader.samples}
        if left := [name for name in inside if name not in read and not name.endswith('.tar')]:
            reader.skipped['no images by their ending, or of no class'] = left
    return reader


@contextmanager
def suffixes_of_timm() -> Iterator[None]:
    """Let timm's readers take all images that PIL decodes."""
    before = img_extensions.get_img_extensions()
    img_extensions.set_img_extensions(sorted(suffixes()))
    try:
        yield
    finally:
        img_extensions.set_img_extensions(before)


class ImageFiles(ImageDataset):
    """timm's dataset, except that an image that cannot be read is named instead of replaced by the next one."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            file, label, *_ = self.reader[index]
            with file:
                image = in_mode(Image.open(file), self.input_img_mode)
        except UNREADABLE as error:
            name = self.filename(index)     # type: ignore[no-untyped-call]
            raise SFTeacherError(f'image {name} of the dataset cannot be decoded '
                                 f'({first_line(error)}): repair it or take it out') from error
        if self.transform is not None:
            image = self.transform(image)
        return image, int(label)



def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image as RGB or grey (L) with 8 bits; 16 bits are scaled, where PIL would clip them to white."""
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PNG'):
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
