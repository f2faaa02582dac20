"""What an arm gains over another one: paired differences, their intervals for other teachers and images, verdicts."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from plan import Choice
from runs import Result

from sf_teacher.analysis.intervals import half_width_with_images, interval

RIGHT = {'top1': 'right', 'validation_top1': 'validation_right'}    # where a result says on which images


@dataclass(frozen=True)
class Row:
    """What is known of an arm for a student.

    Args:
        choice: What the validation images chose; None for students that learn alone.
        stages: By seed, the results of the teachers that it comes of and its own as the last one, by key.
        students: The students' results by the seed of their teacher; a seed counts when all of them are done.
    """
    choice: Choice | None
    stages: dict[int, dict[str, Result]]
    students: dict[int, list[Result]]


def packed(right: torch.Tensor) -> str:
    """Booleans [N] as hexadecimal digits, eight to a byte."""
    return np.packbits(right.cpu().numpy()).tobytes().hex()


def unpacked(text: str, accuracy: float) -> np.ndarray:
    """What `packed` was given: the shortest [N] whose mean is this percentage."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    return bits[:next(n for n in range(len(bits) - 7, len(bits) + 1) if abs(100 * bits.sum() / n - accuracy) < 1e-3)]


def nested_gains(row: Row, against: Row | None, accuracy: str = 'top1') -> list[float]:
    """One difference for each teacher that both have: the mean over its students, which are paired by their seed."""
    if against is None:
        return []
    return [statistics.fmean(mine[accuracy] - theirs[accuracy] for mine, theirs in zip(
            row.students[seed], against.students[seed], strict=True)) for seed in row.students
            if seed in against.students]


def with_images(row: Row, against: Row, accuracy: str = 'top1', level: float = 0.95) -> float | None:
    """Half-width of the gain's interval for other teachers and other images; None where it is not known."""
    right = RIGHT[accuracy]
    seeds = [seed for seed in row.students if seed in against.students]
    if len(seeds) < 3 or not all(right in r for each in (row, against) for seed in seeds for r in each.students[seed]):
        return None
    of_teacher = [[np.mean([unpacked(r[right], r[accuracy]) for r in each.students[seed]], 0)
                   for each in (row, against)] for seed in seeds]
    return half_width_with_images(100 * np.stack([mine - theirs for mine, theirs in of_teacher]), level)


def wider(row: Row, against: Row, level: float = 0.95) -> tuple[float, float]:
    """A gain on the test images and the half-width of the wider of its two intervals."""
    mean, half = interval(nested_gains(row, against), level)
    return mean, max(half, with_images(row, against, level=level) or 0.)


def excludes_0(row: Row, against: Row, level: float = 0.95) -> bool:
    """Whether the wider interval of a gain or loss does."""
    mean, half = wider(row, against, level)
    return abs(mean) > half


def holm(comparisons: Sequence[tuple[Row, Row]]) -> list[int]:
    """Which gains and losses stay at 5 % if they are corrected for their number (Holm 1979), by the wider intervals."""
    left, stay = list(range(len(comparisons))), []
    while left:
        sure = [i for i in left if excludes_0(*comparisons[i], 1 - 0.05 / len(left))]
        if not sure:
            break
        stay.append(sure[0])        # whichever is first: the surest one is among them, and what is sure stays so
        left.remove(sure[0])
    return sorted(stay)


def verdict(values: Sequence[float], of: str = 'seed', wide: float | None = None) -> str:
    """A gain or loss only where the 95 % interval of paired t excludes 0; no interval of one or two.

    Args:
        values: Paired differences.
        of: What there is one value for each of.
        wide: Half-width of another interval; the wider of the two decides.
    """
    if not values:
        return '-'
    mean, half = interval(values)
    if len(values) < 3:
        return f'{mean:+.2f} ({len(values)} {of}{"s" * (len(values) > 1)})'
    widest = half if wide is None else max(half, wide)
    kind = 'gain' if mean > widest else 'loss' if -mean > widest else 'no gain'
    more = '' if wide is None else f', with images [{mean - wide:+.2f}, {mean + wide:+.2f}]'
    return f'{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]{more} {kind}'


def compared(row: Row, against: Row | None, accuracy: str = 'top1') -> str:
    """The verdict on an arm against another one."""
    wide = with_images(row, against, accuracy) if against else None
    return verdict(nested_gains(row, against, accuracy), 'teacher', wide)
