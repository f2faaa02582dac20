"""The gain over the standard teacher as a figure: against the size of the data, and for each pair."""
from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chosen import FEW_IMAGES, FEW_LABELS, IN_ORDER, by_student
from gains import Row, nested_gains, wider
from protocol import ALONE, STANDARD, Protocol, read

HERE = Path(__file__).resolve().parent
FIGURES = {     # protocols of one figure, and what lies along its axis
    'few_labels': (FEW_LABELS, 'labelled images of each class for the teacher', 'per_class'),
    'few_labels_in_order': (IN_ORDER, 'labelled images of each class for the teacher', 'per_class'),
    'few_images': (FEW_IMAGES, 'images of each class for the student', 'student_per_class')}
BESIDE = 1.02   # from arm to arm at the same size, on the logarithmic axis


@dataclass(frozen=True)
class Gain:
    """An arm's gain over another one, a value for each teacher, and half of its 95 % interval."""
    pair: str
    size: int
    arm: str
    against: str
    values: list[float]
    half: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def colour(self) -> str:
        """Of a sure gain, a sure loss, and neither."""
        return 'C0' if self.mean > self.half else 'C3' if -self.mean > self.half else 'grey'


def known_gains(names: Sequence[str], size: str) -> list[Gain]:
    """All gains with an interval: over the standard teacher, and over what an arm is to be compared with besides."""
    found = []
    for protocol in (read(HERE / f'{name}.yaml') for name in names):
        for pair, rows in by_student(protocol):
            for arm, against in _comparisons(protocol, rows):
                if len(values := nested_gains(rows[arm], rows.get(against))) > 2:
                    found.append(Gain(pair, getattr(protocol, size), arm, against, values,
                                      wider(rows[arm], rows[against])[1]))
    return found


def _comparisons(protocol: Protocol, rows: dict[str, Row]) -> Iterator[tuple[str, str]]:
    for arm in rows:
        if arm not in (ALONE, STANDARD):
            yield from ((arm, against) for against in dict.fromkeys([STANDARD, *protocol.arms[arm].against]))


def figure(name: str) -> bool:
    """Draw the gains of a regime, each arm at the temperature that it chose; whether there are any.

    To the left those of pairs that are known for several sizes of the data, a line an arm; to the right every
    comparison at the size for which most are known.
    """
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    names, label, size = FIGURES[name]
    gains = known_gains(names, size)
    if not gains:
        return False
    sizes = sorted({g.size for g in gains})
    usual = Counter(g.size for g in gains).most_common(1)[0][0]
    several = [pair for pair in dict.fromkeys(g.pair for g in gains)
               if len({g.size for g in gains if g.pair == pair}) > 1]
    shown = [g for g in gains if g.size == usual]
    lines = len(shown) + len({g.pair for g in shown})
    fig, axes = plt.subplots(1, len(several) + 1, figsize=(4.5 * len(several) + 8.5, 1.2 + 0.24 * lines),
                             layout='constrained', squeeze=False)
    for ax, pair in zip(axes[0], several, strict=False):
        _against_size(ax, pair, [g for g in gains if g.pair == pair and g.against == STANDARD], sizes)
        ax.set(xlabel=label, ylabel="students' gain over the standard teacher's, points")
    _by_pair(axes[0, -1], shown)
    axes[0, -1].set_xlabel(f"students' gain over the standard teacher's, points\n({usual} {label})", loc='right')
    (HERE / 'figures').mkdir(exist_ok=True)
    fig.savefig(HERE / 'figures' / f'gain_{name}.png', dpi=110)
    plt.close(fig)
    return True


def _against_size(ax: Any, pair: str, gains: Sequence[Gain], sizes: Sequence[int]) -> None:
    arms = [arm for arm in dict.fromkeys(g.arm for g in gains) if len([g for g in gains if g.arm == arm]) > 1]
    for i, arm in enumerate(arms):
        own = [g for g in gains if g.arm == arm]
        ax.errorbar([g.size * BESIDE ** (i - (len(arms) - 1) / 2) for g in own], [g.mean for g in own],
                    yerr=[g.half for g in own], marker='o', capsize=3, color=f'C{i}', label=arm)
    ax.axhline(0, color='black', linewidth=0.8)
    ax.set(title=pair, xscale='log', xlim=(sizes[0] / 1.2, sizes[-1] * 1.2))
    ax.set_xticks(sizes, list(map(str, sizes)), minor=False)
    ax.minorticks_off()
    ax.spines[['top', 'right']].set_visible(False)
    ax.legend(fontsize='small', frameon=False, loc='lower left', bbox_to_anchor=(0, 0.08))


def _by_pair(ax: Any, gains: Sequence[Gain]) -> None:
    """A line for each comparison, below the name of its pair, with a dot for each teacher."""
    labels: list[str] = []
    for pair in dict.fromkeys(g.pair for g in gains):
        labels.append(pair)
        for g in (g for g in gains if g.pair == pair):
            y = len(labels)
            ax.errorbar(g.mean, y, xerr=g.half, marker='o', capsize=3, color=g.colour)
            ax.plot(g.values, [y] * len(g.values), '|', color=g.colour, alpha=0.6, markersize=8)
            labels.append(g.arm if g.against == STANDARD else f'{g.arm}, over "{g.against}"')
    ax.axvline(0, color='black', linewidth=0.8)
    ax.set_yticks(range(len(labels)), labels)
    for text in ax.get_yticklabels():
        if text.get_text() in {g.pair for g in gains}:
            text.set_fontweight('bold')
    ax.tick_params('y', length=0)
    ax.set_ylim(len(labels) - 0.3, -0.7)
    ax.spines[['top', 'right', 'left']].set_visible(False)
