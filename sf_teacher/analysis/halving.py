"""Which teacher to take, at which temperature: successive halving of candidates by short pilots (details ours)."""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import SettingError
from ..validation import setting
from .pilots import Candidate

FINALISTS = 3       # beside the baseline's best


@dataclass(frozen=True)
class Rung:
    """A round: the candidates that were piloted, for how many epochs, and their accuracies."""
    epochs: int
    top1: dict[Candidate, float]


def rungs(candidates: int, epochs: int) -> list[int]:
    """The epochs of each round; the number of candidates halves after each, until the finalists are left.

    There is at least one round where there is a choice, so that nothing is reported by what it was chosen by.
    """
    count = max(math.ceil(math.log2(candidates / (FINALISTS + 1))), 1) if candidates > 1 else 0
    return [max(epochs // 2 ** (count - 1 - i), 1) for i in range(count)]


def pilot_epochs(candidates: int, epochs: int, seeds: int, alone: bool = True) -> int:
    """Epochs of all pilots of a report together, the student alone included where there is one: its cost."""
    total, left = 0, candidates
    for of_round in rungs(candidates, epochs):
        total, left = total + left * of_round, math.ceil(left / 2)
    return total + (min(candidates, FINALISTS + 1) + alone) * seeds * epochs


def halve(
        candidates: Sequence[Candidate],
        baseline: str,
        epochs: int,
        pilot: Callable[[Candidate, int], float],
) -> list[Rung]:
    """Pilot all candidates briefly, keep the better half, pilot it for longer, and so on.

    The baseline's best candidate is kept in every round, as it is what the others are compared with.

    Args:
        candidates: All of them.
        baseline: Folder of the baseline.
        epochs: Of the last pilots.
        pilot: Trains one student for so many epochs; its accuracy on the images that are for choosing.
    """
    done: list[Rung] = []
    left = list(candidates)
    for of_round in rungs(len(left), epochs):
        found = {candidate: pilot(candidate, of_round) for candidate in left}
        done.append(Rung(of_round, found))
        left = survivors(found, baseline, math.ceil(len(left) / 2))
    return done


def survivors(top1: dict[Candidate, float], baseline: str, count: int) -> list[Candidate]:
    """The baseline's best candidate, then the best others, `count` together."""
    order = sorted(top1, key=lambda c: -top1[c])
    own = next(c for c in order if c.folder == baseline)
    return [own, *[c for c in order if c is not own][:count - 1]]


def finalists(candidates: Sequence[Candidate], done: Sequence[Rung], baseline: str) -> list[Candidate]:
    """The baseline's best candidate first, then the best others."""
    found = done[-1].top1 if done else dict.fromkeys(candidates, 0.)
    return survivors(found, baseline, FINALISTS + 1)


def seconds(budget: str) -> float:
    """``"90s"``, ``"20m"`` or ``"2h"`` in seconds.

    Raises:
        SettingError: It is something else.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([smh])', budget.strip())
    if match is None or not float(match[1]):
        raise SettingError(f'{setting("budget", budget)} must be a time such as 90s, 20m or 2h')
    return float(match[1]) * {'s': 1, 'm': 60, 'h': 3600}[match[2]]
