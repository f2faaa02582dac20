"""Files that map class names to labels: timm's, of which a text must say what it seems to say."""
from __future__ import annotations

from pathlib import Path

from timm.data.readers import class_map as of_timm

from ..errors import SFTeacherError


def load_class_map(name: str, root: Path) -> dict[str, int]:
    """Labels by class name, of a text with one name a line or of a pickled dictionary.

    Args:
        name: The file, here or in `root`.
        root: The folder of the split.

    Raises:
        SFTeacherError: A line of the text is blank or repeats one before it: timm would make a class of it, or shift
            the labels of those behind it.
    """
    path = Path(name) if Path(name).exists() else root / name
    if path.suffix.lower() != '.txt':
        return of_timm.load_class_map(name, str(root))
    text = path.read_text(encoding='utf-8-sig', errors='surrogateescape')   # as names of files are
    lines = [line.strip() for line in text.rstrip().split('\n')]
    known: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            raise SFTeacherError(f'{path}, line {number} is blank, which would be a class: give one name a line, '
                                 f'without gaps')
        if line in known:
            raise SFTeacherError(f'{path}, line {number} repeats {line!r} of line {known[line] + 1}, which would shift '
                                 f'the labels of all that follow: give each class once')
        known[line] = number - 1
    return known
