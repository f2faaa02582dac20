"""Figures of the analysis room, by matplotlib, which is imported when one is drawn."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import SFTeacherError
from .intervals import interval
from .verdicts import cka_by_stage


def matplotlib_pyplot() -> Any:
    """pyplot without a display.

    Raises:
        SFTeacherError: matplotlib is not installed.
    """
    try:
        import matplotlib
        matplotlib.use('agg')
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise SFTeacherError('the figure needs matplotlib: pip install matplotlib') from error
    return plt


def report_figure(result: dict[str, Any], path: Path) -> None:
    """The finalists of a report: their students' accuracy with intervals, and how alike teacher and student are."""
    plt = matplotlib_pyplot()
    names = list(result['pilots'])
    labels = [_short(name, result['teachers'].get(name)) for name in names]
    labels = labels if len(set(labels)) == len(names) else names
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.5 + 0.6 * max(len(names), 4)), layout='constrained')
    values = [interval([p['top1'] for p in result['pilots'][n]]) for n in names]
    left.barh(labels, [v[0] for v in values], xerr=[v[1] for v in values], color='tab:blue', height=0.5)
    left.invert_yaxis()
    low = min(v[0] - v[1] for v in values)
    left.set(title=f'{result["student"]} after {result["epochs"]} epochs', xlabel='accuracy (%), 95 % interval',
             xlim=(max(0., low - 5.), None))
    for name, label in zip(names, labels, strict=True):
        if name in result['teachers']:
            right.plot(cka_by_stage(result['pilots'][name]), marker='o', label=label)
    right.set(title='similarity of teacher and student', xlabel='stage', ylabel='CKA', ylim=(0, 1))
    right.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    right.legend(fontsize='small')
    for ax in (left, right):
        ax.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _short(name: str, teacher: dict[str, Any] | None) -> str:
    """The last two folders of a path, and the temperature."""
    if teacher is None or 'folder' not in teacher:
        return name
    return f'{"/".join(Path(teacher["folder"]).parts[-2:])}, T = {teacher["temperature"]:g}'
