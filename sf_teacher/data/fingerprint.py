"""What tells the images of one run from those of another."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable

from .datasets import Data, targets


def fingerprint(data: Data) -> str:
    """Digits that are others where images were added, left out or given another label; pixels are not read."""
    digest = hashlib.sha256(_bytes(data.contents))
    for dataset in (data.train, data.validation):
        for part in getattr(dataset, 'parts', (dataset,)):      # labelled images, and those without labels
            labels = None if part is None else targets(part)
            samples = getattr(getattr(part, 'reader', None), 'samples', None)      # of some readers an array
            digest.update(b'' if labels is None else labels.tobytes())
            if samples is not None:
                digest.update(_bytes(str(getattr(image, 'name', image)) for image, *_ in samples))
    return digest.hexdigest()


def _bytes(names: Iterable[str]) -> bytes:
    """Names as the file system has them, which need not be UTF-8."""
    return '\n'.join(names).encode(errors='surrogateescape')
