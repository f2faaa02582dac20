"""Which teacher to take, at which temperature: chosen in rounds of short pilots (the order of the rounds is ours).

Teachers and temperatures are not all tried with each other: few long pilots tell more than many short ones, as short
ones say how fast a student learns and not how far it gets.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import SettingError
from ..validation import setting
from .pilots import Candidate

FULL_LENGTH = 8     # so many teachers are piloted for all epochs; more are thinned out first
KEPT = 3            # one of so many, after pilots as many times shorter: with 2, two rounds cost as much as no thinning


@dataclass(frozen=True)
class Round:
    """A round: the candidates that were piloted, for how many epochs, and their accuracies."""
    epochs: int
    top1: dict[Candidate, float]


def rungs(teachers: int, epochs: int) -> list[int]:
    """The epochs of each round of successive halving; there are none where there is nothing to choose.

    Where epochs are few, rounds may have as many of them: a later one then cuts further by the same pilots.
    """
    count = math.ceil(math.log(max(teachers / FULL_LENGTH, 1), KEPT)) + 1 if teachers > 1 else 0
    return [max(epochs // KEPT ** (count - 1 - i), 1) for i in range(count)]


def pilot_epochs(teachers: int, temperatures: int, epochs: int, seeds: int, beside: int = 0) -> int:
    """Epochs of all pilots of a report together, with so many more beside the finalists: its cost."""
    asked = set()       # a pilot that is asked for again is remembered

    def counted(candidate: Candidate, of_round: int) -> float:
        asked.add((candidate, of_round))
        return 0.

    _, finalists = choose([str(i) for i in range(teachers)], range(temperatures), epochs, counted)
    return sum(of_round for _, of_round in asked) + (len(finalists) + beside) * seeds * epochs


def choose(
        folders: Sequence[str],
        temperatures: Sequence[float],
        epochs: int,
        pilot: Callable[[Candidate, int], float],
) -> tuple[list[Round], list[Candidate]]:
    """The temperature of the baseline, the best other teacher at that temperature, and the temperature of that one.

    More than `FULL_LENGTH` other teachers are thinned out by successive halving, here by thirds: pilot all of them
    briefly, keep the best third, pilot it for longer, and so on.

    Args:
        folders: Of the teachers, the baseline first.
        temperatures: To try with the baseline, and with the best of the others.
        epochs: Of the longest pilots.
        pilot: Trains one student for so many epochs; its accuracy on the images that are for choosing.

    Returns:
        The rounds, of which there are none where nothing is to be chosen; and the finalists: the baseline, and the best
        other teacher if there is one, each at its best temperature.
    """
    done: list[Round] = []

    def piloted(candidates: Sequence[Candidate], of_round: int) -> list[Candidate]:
        """The candidates, the best first."""
        if len(candidates) > 1:
            done.append(Round(of_round, {c: pilot(c, of_round) for c in candidates}))
            return sorted(candidates, key=lambda c: -done[-1].top1[c])
        return list(candidates)

    baseline, *others = folders
    finalists = piloted([Candidate(baseline, t) for t in temperatures], epochs)[:1]
    left = [Candidate(folder, finalists[0].temperature) for folder in others]
    for of_round in rungs(len(left), epochs):
        left = piloted(left, of_round)[:math.ceil(len(left) / KEPT)]
    if left:
        finalists += piloted([Candidate(left[0].folder, t) for t in temperatures], epochs)[:1]
    return done, finalists


def seconds(budget: str) -> float:
    """``"90s"``, ``"20m"`` or ``"2h"`` in seconds.

    Raises:
        SettingError: It is something else.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([smh])', budget.strip())
    if match is None or not float(match[1]):
        raise SettingError(f'{setting("budget", budget)} must be a time such as 90s, 20m or 2h')
    return float(match[1]) * {'s': 1, 'm': 60, 'h': 3600}[match[2]]
