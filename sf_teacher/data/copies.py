"""Images that are in two folders, under the same name or another."""
from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SFTeacherError
from .image_files import FolderReader
from .natural_order import natural_key

_logger = logging.getLogger(__name__)

FEW = 0.01      # of the validation images: so many renamed copies are a flaw of the data, more are a split gone wrong


def check_copies(reader: Any, validation: Any, role: str = 'training') -> None:
    """Refuse validation images that are trained on too; a few under other names are left in, and named.

    Published data hold some: 10 of the 10,000 test images of CIFAR-100 are training images, byte for byte.

    Args:
        reader: What reads the images that are trained on; other readers than of folders are not looked at.
        validation: The same for validation.
        role: What the images that are trained on are called.

    Raises:
        SFTeacherError: An image has the class and name of its copy, or renamed copies are more than a few.
    """
    if not (isinstance(reader, FolderReader) and isinstance(validation, FolderReader)):
        return
    try:
        copies = find_copies(reader, validation)
    except OSError as error:
        raise SFTeacherError(f'{error.filename} cannot be read ({error.strerror}): make it readable, or take it out') \
            from error
    found = copies.named + copies.renamed
    text = f'{len(found)} validation images are {role} images too' \
           + f', {len(copies.renamed)} under other names' * bool(copies.renamed) + f', e.g. {", ".join(found[:3])}'
    if copies.named or len(copies.renamed) > FEW * len(validation):
        raise SFTeacherError(f'{text}: what is measured on them says nothing; take them out of one split')
    if found:
        _logger.warning('%s: they are few of %d, and left in', text, len(validation))
    if copies.looked_at < copies.alike:
        _logger.warning('renamed copies were looked for among %d of the %d validation images that have the size of a '
                        '%s image', copies.looked_at, copies.alike, role)


class Copies(NamedTuple):
    """Images of one folder that are in another too."""
    named: list[str]        # of the same class and name
    renamed: list[str]
    looked_at: int          # of the second folder's images, those whose bytes were compared with all of their size
    alike: int              # those that have a partner of their size


def find_copies(a: FolderReader, b: FolderReader, most: int = 50_000) -> Copies:
    """Files in `b` that are files in `a`, or hold the same bytes under any name.

    Only files of equal size can be the same, and their first 4 KiB tell nearly all apart. At most `most` are opened:
    those of the same class and name first, then those whose size is rarest.
    """
    there = {_short(path): path for path, _ in a.samples}
    common = [(there[_short(path)], path) for path, _ in b.samples if _short(path) in there]
    named = [path for other, path in common[::max(1, -(-2 * len(common) // most))] if _same(other, path)]
    sizes = defaultdict(lambda: ([], []))   # type: defaultdict[int, tuple[list[str], list[str]]]
    for side, reader in enumerate((a, b)):
        for path, _ in reader.samples:
            sizes[os.stat(path).st_size][side].append(path)
    groups = sorted((group for group in sizes.values() if all(group)), key=lambda group: sum(map(len, group)))
    renamed, looked_at, opened = [], 0, 2 * len(common)     # type: list[str], int, int
    for ours, theirs in groups:
        opened += len(ours) + len(theirs)
        if opened > most:
            break
        looked_at += len(theirs)
        heads = defaultdict(list)   # type: defaultdict[bytes, list[str]]
        for path in ours:
            heads[_head(path)].append(path)
        renamed += [path for path in theirs if any(_same(other, path) for other in heads.get(_head(path), ()))]
    return Copies(named, sorted(set(renamed) - set(named), key=natural_key), looked_at, sum(len(g[1]) for g in groups))


def _short(path: str) -> str:
    """Class and name."""
    return os.path.join(*path.split(os.sep)[-2:])


def _head(path: str) -> bytes:
    with open(path, 'rb', buffering=0) as file:
        return file.read(4096)


def _same(first: str, second: str) -> bool:
    x, y = os.stat(first), os.stat(second)
    return os.path.samestat(x, y) or (x.st_size == y.st_size and Path(first).read_bytes() == Path(second).read_bytes())
