"""What a report says: the comparisons of its students, the teacher that it recommends, and its table."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from .columns import columns
from .intervals import half_width_with_images, interval
from .pilots import Candidate

ALONE = 'student alone'


def name_of(candidate: Candidate) -> str:
    """What a candidate is called in a report."""
    return f'{candidate.folder} at T = {candidate.temperature:g}' if candidate.folder else ALONE


def compare(arms: dict[str, list[dict[str, Any]]], name: str, reference: str) -> dict[str, Any]:
    """The difference that a teacher makes to its students, seed by seed; the wider of two intervals decides.

    One is for other seeds on the same images, the other one for other seeds and images.
    """
    gains = [a['top1'] - b['top1'] for a, b in zip(arms[name], arms[reference], strict=True)]
    mean, half = interval(gains)
    on_images = [100. * (_right(a) - _right(b)) for a, b in zip(arms[name], arms[reference], strict=True)]
    half = max(half, half_width_with_images(np.stack(on_images)))
    kind = 'gain' if mean > half else 'loss' if -mean > half else 'no gain'
    than = reference if reference == ALONE else f'students of {reference}'
    verdict = f'{kind}: students of {name} are {mean:+.2f} points against {than} (95 %: {mean - half:+.2f} to ' \
              f'{mean + half:+.2f})'
    return {'teacher': name, 'reference': reference, 'gains': gains, 'mean': mean, 'half_width': half, 'kind': kind,
            'verdict': verdict}


def _right(row: dict[str, Any]) -> np.ndarray:
    return np.array(list(map(int, row['right'])))


def recommend(
        teachers: dict[str, Any],
        comparisons: Sequence[dict[str, Any]],
        baseline: str,
        candidates: int,
        seconds: float,
) -> dict[str, Any]:
    """The teacher whose students are the best, surely or not: the baseline, the best other one, or that one's twin.

    All are trained already, so that to take the one that leads costs nothing; whether it is sure is said.
    """
    against = max((c for c in comparisons if c['reference'] == baseline), key=lambda c: c['mean'], default=None)
    beside = next((c for c in comparisons if c['reference'] not in (baseline, ALONE)), None)
    gain = against if against and against['mean'] > 0 else None
    chosen = gain['teacher'] if gain else baseline
    sure = against is None or against['kind'] != 'no gain'
    text = f'take {teachers[chosen]["folder"]} at T = {teachers[chosen]["temperature"]:g}'
    best = f'the best of {candidates - 1} others' if candidates > 2 else ''
    if against is None:
        text += ', the only teacher'
    elif gain:
        text += f', {best}' if best else ''
        text += f': {_points(gain)} points over {baseline}'
        if beside and chosen == beside['teacher']:
            text += f'; {_points(beside)} over {beside["reference"]}, trained on for as long'
        elif beside:
            text += f'; {beside["teacher"]}, trained on for as long, made {_points(beside)} points over it'
    else:
        other = f'{best}, {against["teacher"]},' if best else against['teacher']
        text += f', the baseline at its best temperature: {other} made {_points(against)} points'
    if not sure:
        text = f'no sure difference: {text}; more validation images, seeds or epochs may tell'
    text += f' ({seconds / 60:.1f} minutes of training)'
    return {'teacher': teachers[chosen]['folder'], 'temperature': teachers[chosen]['temperature'], 'text': text,
            'sure': sure, 'gain': gain and gain['mean'], 'half_width': gain and gain['half_width'], 'seconds': seconds}


def _points(comparison: dict[str, Any]) -> str:
    mean, half = comparison['mean'], comparison['half_width']
    return f'{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]'


def cka_by_stage(pilots: Sequence[dict[str, Any]]) -> list[float]:
    """The mean over pilots at each stage; nan where one has none, as its features there are constant."""
    values = ([math.nan if c['value'] is None else c['value'] for c in p['cka']] for p in pilots)
    return [statistics.fmean(stage) for stage in zip(*values, strict=True)]


def table(result: dict[str, Any]) -> str:
    """The report as text."""
    head = ('teacher', 'accuracy', 'entropy', 'ECE', 'student', 'agreement', 'KL', 'CKA by stage')
    rows = [head]
    for name, pilots in result['pilots'].items():
        teacher = result['teachers'].get(name)
        mean, half = interval([p['top1'] for p in pilots])
        own = [f'{teacher["top1"]:.2f}', f'{teacher["entropy"]:.3f}', f'{teacher["ece"]:.3f}'] if teacher else ['-'] * 3
        shared = ['-'] * 3
        if teacher:
            cka = ' '.join('n/a' if math.isnan(value) else f'{value:.2f}' for value in cka_by_stage(pilots))
            shared = [*(f'{statistics.fmean(p[k] for p in pilots):.3f}' for k in ('agreement', 'kl')), cka or '-']
        rows.append((name, *own, f'{mean:.2f} ± {half:.2f}', *shared))
    verdicts = [c['verdict'] for c in result['comparisons']]
    epochs, asked = result['epochs'], result['epochs_without_budget']
    fewer = f' ({asked} do not fit into the budget; shorter pilots may order teachers otherwise)'
    note = f'Students: {result["student"]}, {epochs} epochs{fewer if epochs < asked else ""}, ' \
           f'{len(next(iter(result["pilots"].values())))} seeds, 95 % confidence: differences are for other ' \
           f'students of these teachers and other images like these. Other teachers of a kind vary more.' + (
               ' Their accuracy is on one half of the validation images, what stands beside it on all of them.'
               if result['rounds'] else '')
    return '\n'.join([*columns(rows, ''), '', *verdicts, note, '', result['recommendation']['text']])
