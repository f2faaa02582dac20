"""The curves of a run as a picture: loss terms, accuracy, branches."""
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import files

_logger = logging.getLogger(__name__)

CURVES = 'curves.png'


def draw_curves(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write curves.png where matplotlib is installed, and say so where it is not.

    Args:
        rows: Those of summary.csv.
        folder: The run's.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _logger.info('%s is drawn where matplotlib is installed', folder / CURVES)
        return
    panels = {title: names for title, names in _panels(rows).items() if names}
    figure = Figure(figsize=(4.5 * len(panels), 3.5), layout='constrained')
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            points = [(row['epoch'] + 1, row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), marker='.' if len(points) < 30 else None,
                      label=name.removeprefix('train_'))
        axes.set(title=title, xlabel='epoch')
        axes.legend(fontsize='small')
    files.write_atomically(folder / CURVES, lambda file: figure.savefig(file, dpi=120, format='png'))


def _panels(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Which columns go together."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    accuracy = [name for name in names if name in ('train_top1', 'eval_top1')]
    branches = [name for name in names if name.startswith('train_branch_top1/')]
    gaps = [name for name in names if name.startswith('train_branch_gap/')]
    terms = [name for name in names if name.startswith(('train_', 'eval_')) and '/' not in name
             and not name.endswith(('top1', 'top5'))]
    return {'loss terms': terms, 'accuracy, %': accuracy + branches, 'KL(teacher || branch), nats': gaps}
