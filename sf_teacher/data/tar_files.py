"""Image files in a tar: which there are, which are left out and why.

timm's reader takes what macOS packs beside each file for images, passes over links without a word, and counts a member
that was appended anew twice.
"""
from __future__ import annotations

import io
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timm.data.readers.reader import Reader

from .image_files import Skipped, check_found, hidden, labelled, suffixes
from .natural_order import natural_key


class TarReader(Reader):
    """The image files of a tar, and of tars in it, with classes as `FolderReader` has them; a tar in it is a folder.

    Args:
        path: The tar, not compressed.
        class_map: File that maps class names to labels, as timm's.
        labels: ``'one'``, or ``'none'``: every label is -1, and images may lie in no folder.

    Raises:
        SFTeacherError: There is no image.
    """

    def __init__(self, path: Path, class_map: str = '', labels: str = 'one') -> None:
        super().__init__()      # type: ignore[no-untyped-call]
        self.root = str(path)
        self.places, self.skipped = scan_tar(path)
        files = sorted(self.places, key=natural_key)
        names = [os.path.basename(os.path.dirname(name)) for name in files]
        self.class_to_idx, self.samples = labelled(files, names, path, class_map, labels, self.skipped)
        check_found(self.samples, path, labels, self.skipped)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        name, label = self.samples[index]
        start, size = self.places[name]
        with open(self.root, 'rb') as file:     # anew: loading processes would move one file's position for each other
            file.seek(start)
            return io.BytesIO(file.read(size)), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index][0]
        return os.path.basename(name) if basename else name


def scan_tar(path: Path) -> tuple[dict[str, tuple[int, int]], Skipped]:
    """Where the image files of a tar begin and how long they are, by name, and what was left out."""
    known, found, skipped = suffixes(), {}, defaultdict(list)   # type: set[str], dict[str, tuple[int, int]], Skipped
    with tarfile.open(path, 'r:') as tar:
        for name, member, start in _members(tar):
            if any(map(hidden, name.split('/'))):
                skipped['hidden'].append(name)
            elif member.issym() or member.islnk():
                skipped['links, which are not followed in a tar'].append(name)
            elif not member.isfile() or member.issparse():
                skipped['no regular files'].append(name)
            elif os.path.splitext(name)[1].lower() not in known:
                skipped['no images by their ending'].append(name)
            else:
                if name in found:       # as unpacking has it
                    skipped['replaced by a later member of the same name'].append(name)
                found[name] = start, member.size
    return found, dict(skipped)


def _members(tar: tarfile.TarFile, folder: str = '', offset: int = 0) -> Iterator[tuple[str, tarfile.TarInfo, int]]:
    """Name, header and start of each member that is no folder, those of tars in it included.

    Raises:
        tarfile.ReadError: It does not end as a tar ends, or something follows its end. tarfile says nothing of a header
            that it cannot read, and stops there.
    """
    name = ''
    for member in tar:
        name = os.path.normpath(os.path.join(folder, member.name.lstrip('/')))
        start = offset + member.offset_data
        if member.isfile() and name.lower().endswith('.tar') and not hidden(os.path.basename(name)):
            with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
                yield from _members(inner, os.path.splitext(name)[0], start)
        elif not member.isdir():
            yield name, member, start
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f'it is damaged or incomplete behind {name or "its beginning"}: copy or pack it anew')
    while rest := tar.fileobj.read(2 ** 20):
        if rest.strip(tarfile.NUL):
            raise tarfile.ReadError(f'something follows its end behind {name or "its beginning"}, as where tars were '
                                    f'joined by cat: pack it anew, or join them by tar --concatenate')
