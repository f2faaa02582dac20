"""The order of names of classes and files: the same in every process, whatever the names."""
from __future__ import annotations

import re

Key = tuple[list[str | tuple[int, str]], str]


def natural_key(name: str) -> Key:
    """Numbers by their value, letters without their case, as timm has it; names that tie so by their characters.

    timm's own leaves `A` and `a`, or `1` and `01`, in the order in which a set gives them, which is another one in
    each process, and does not take digits such as `²`.
    """
    parts: list[str | tuple[int, str]] = []
    for i, part in enumerate(re.split('([0-9]+)', name.lower())):
        digits = part.lstrip('0')
        parts.append((len(digits), digits) if i % 2 else part)
    return parts, name
