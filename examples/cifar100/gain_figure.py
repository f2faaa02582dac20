"""The gain over the standard teacher against the size of the data, as a figure."""
from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chosen import CHOSEN, by_student
from gains import nested_gains, with_images
from protocol import ALONE, STANDARD, read

from sf_teacher.analysis.intervals import interval

HERE = Path(__file__).resolve().parent
FIGURES = {     # protocols of one figure, and what lies along its axis
    'few_labels': (CHOSEN[:3], 'labelled images of each class for the teacher', 'per_class'),
    'few_images': (CHOSEN[4:], 'images of each class for the student', 'student_per_class')}
COLUMNS = 2     # pairs beside each other
BESIDE = 1.02   # from arm to arm at the same size, on the logarithmic axis


@dataclass(frozen=True)
class Gain:
    """An arm's gain over the standard teacher: a value for each teacher, and half of its 95 % interval."""
    size: int
    values: list[float]
    half: float


def gains_by_size(names: Sequence[str], size: str) -> dict[str, dict[str, list[Gain]]]:
    """By pair and arm: the gains of at least three teachers, for each size of the data."""
    found: dict[str, dict[str, list[Gain]]] = {}
    for name in names:
        protocol = read(HERE / f'{name}.yaml')
        for title, known in by_student(protocol):
            for arm, row in known.items():
                standard = known.get(STANDARD)
                values = [] if arm in (ALONE, STANDARD) else nested_gains(row, standard)
                if standard and len(values) > 2:     # fewer have no interval
                    half = max(interval(values)[1], with_images(row, standard) or 0.)
                    found.setdefault(title, {}).setdefault(arm, []).append(Gain(getattr(protocol, size), values, half))
    return found


def figure(name: str) -> bool:
    """Gain over the standard teacher at its own best temperature against the size of the data; whether there is one.

    With one size known it is a column for each arm, with a dot for each teacher.
    """
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    names, label, size = FIGURES[name]
    found = gains_by_size(names, size)
    if not found:
        return False
    lines, columns = math.ceil(len(found) / COLUMNS), min(len(found), COLUMNS)
    fig, axes = plt.subplots(lines, columns, figsize=(1.5 + 5.5 * columns, 4.2 * lines), layout='constrained',
                             squeeze=False, sharey=True)
    for ax in axes.flat[len(found):]:
        ax.set_axis_off()
    arms = list(dict.fromkeys(arm for each in found.values() for arm in each))
    sizes = sorted({gain.size for each in found.values() for gains in each.values() for gain in gains})
    margin = BESIDE ** (len(arms) / 2 + 3)      # room for the outermost arms
    for ax, (pair, each) in zip(axes.flat[:len(found)], found.items(), strict=True):
        for arm, gains in each.items():
            i = arms.index(arm)
            xs = [i] if len(sizes) == 1 else [gain.size * BESIDE ** (i - (len(arms) - 1) / 2) for gain in gains]
            ax.errorbar(xs, [statistics.fmean(gain.values) for gain in gains], yerr=[gain.half for gain in gains],
                        marker='o', capsize=3, color=f'C{i % 10}', linestyle='-' if i < 10 else '--', label=arm)
            if len(sizes) == 1:
                ax.plot([i + 0.12] * len(gains[0].values), gains[0].values, 'o', color=f'C{i % 10}', alpha=0.4,
                        markersize=4)
        ax.axhline(0, color='black', linewidth=0.8)
        ax.spines[['top', 'right']].set_visible(False)
        ax.set_title(pair)
        if len(sizes) == 1:
            ax.set_xticks(range(len(arms)), [textwrap.fill(arm, 20) for arm in arms])
            ax.set(xlabel=f'{label}: {sizes[0]}', xlim=(-0.5, len(arms) - 0.5))
            continue
        ax.set(xlabel=label, xscale='log', xlim=(sizes[0] / margin, sizes[-1] * margin))
        ax.set_xticks(sizes, list(map(str, sizes)), minor=False)
        ax.minorticks_off()
        ax.legend(fontsize='x-small', frameon=False)
    fig.supylabel("student's gain over the standard teacher, each at its own temperature, points (95 % interval)",
                  fontsize='medium')
    (HERE / 'figures').mkdir(exist_ok=True)
    fig.savefig(HERE / 'figures' / f'gain_{name}.png', dpi=110)
    plt.close(fig)
    return True
