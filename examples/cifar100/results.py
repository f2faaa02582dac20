"""Make RESULTS.md, the figures and the table of docs/results.md from the JSON files in results/, and nothing else.

    python examples/cifar100/results.py
"""
from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import chosen
import gain_figure
import regret
from gains import verdict
from protocol import ALONE, STANDARD, Protocol, read
from runs import student_runs
from tables import made_on

from sf_teacher.analysis.intervals import interval

HERE = Path(__file__).resolve().parent
OVERVIEW = HERE.parents[1] / 'docs/results.md'
SCREENED = ('all_images', 'few_images')     # with what chose
PROTOCOLS = ('cpu', 'controls', 'other_student', 'methods', 'sweep', 'sweep_few_images', 'paper60', 'paper', 'modern')
Result = dict[str, Any]
Arms = dict[str, list[tuple[Result | None, Result]]]       # by arm: teacher's and student's result for each seed


def collect(protocol: Protocol, pair: str, student: str = 'own') -> Arms:
    """What is done, by arm; a seed counts when teacher and student are done."""
    done = chosen.results_of(protocol)
    found: Arms = {}
    for arm in (ALONE, *protocol.arms):
        for seed in protocol.seeds:
            run = next(r for r in student_runs(protocol, pair, arm, seed) if r.student == student)
            teacher = done.get(run.settings.get('teacher', ''))
            if run.key in done and (arm == ALONE or teacher):
                found.setdefault(arm, []).append((teacher, done[run.key]))
    return found


def spread(values: Iterable[float | None], digits: int = 2) -> str:
    """Mean ± standard deviation; no deviation of a single value."""
    known = [v for v in values if v is not None]
    if not known:
        return '-'
    mean = f'{statistics.fmean(known):.{digits}f}'
    return f'{mean} ± {statistics.stdev(known):.{digits}f}' if len(known) > 1 else mean


def gains(arms: Arms, arm: str, who: int, against: str = STANDARD) -> list[float]:
    """Differences to the teacher (0) of another arm or to its student (1), seed by seed."""
    reference = {s['seed']: (t, s) for t, s in arms.get(against, [])}
    return [pair[who]['top1'] - reference[pair[1]['seed']][who]['top1']       # type: ignore[index]
            for pair in arms[arm] if pair[1]['seed'] in reference and pair[who] is not None]


def table(protocol: Protocol, arms: Arms) -> str:
    """One row an arm."""
    head = ('teacher', 'seeds', 'teacher, %', 'student, %', "student against the standard teacher's", 'KL(T‖S), nats',
            'CKA', 'agreement, %')
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for arm, runs in arms.items():
        students, against = [s for _, s in runs], _against(protocol, arm)
        difference = '' if arm == STANDARD else verdict(gains(arms, arm, 1, against))
        lines.append('| ' + ' | '.join([
            'none (student alone)' if arm == ALONE else arm, str(len(runs)), spread(t and t['top1'] for t, _ in runs),
            spread(s['top1'] for s in students),
            difference + (f' (against "{against}")' if against != STANDARD and difference else ''),
            spread((s.get('kl') for s in students), 3), spread((s.get('cka') for s in students), 3),
            spread((s.get('agreement') for s in students), 1)]) + ' |')
    return '\n'.join(lines)


def _against(protocol: Protocol, arm: str) -> str:
    return protocol.arms[arm].against[0] if arm in protocol.arms else STANDARD


def section(name: str) -> str:
    """A protocol's part of RESULTS.md; empty where nothing has been run."""
    protocol = read(HERE / f'{name}.yaml')
    parts, results = [], []
    for pair, spec in protocol.pairs.items():
        for student in spec.others or ('own',):
            arms = collect(protocol, pair, student)
            if set(arms) - {ALONE}:
                title = pair if student == 'own' else f'{pair}, student {student} (not the branch)'
                missing = [arm for arm in protocol.arms if arm not in arms]
                note = f'\nNot run: {", ".join(missing)}.\n' if missing else ''
                parts.append(f'### {title}\n\n{table(protocol, arms)}\n{note}')
                results += [r for runs in arms.values() for both in runs for r in both if r is not None]
    if not parts:
        return ''
    unique = {json.dumps(r['settings'], sort_keys=True) + str(r['seed']): r for r in results}.values()
    first, end = protocol.classes
    head = f'''## `{name}.yaml`

{protocol.about}

CIFAR-100, classes {first} to {end - 1}, {protocol.per_class or 500} training images of each, {protocol.size} px,
{protocol.train["epochs"]} epochs of batches of {protocol.batch_size} unless a row says otherwise; seeds
{", ".join(sorted({str(r["seed"]) for r in unique}))}; accuracy of the last epoch on the test images, mean ± standard
deviation; differences to the standard teacher are paired by seed, with their 95 % interval. {len(unique)} runs,
{sum(r["seconds"] for r in unique) / 3600:.1f} hours of training on {"; ".join(made_on(unique))}.

'''
    figures = f'![figure](figures/{name}.png)\n' if (HERE / 'figures' / f'{name}.png').exists() else ''
    return head + '\n'.join(parts) + '\n' + figures


def document() -> str:
    """RESULTS.md."""
    intro = ('# Results on CIFAR-100\n\nWritten by `python examples/cifar100/results.py` from the JSON files in '
             '[results/](results/), one for each training, which `python examples/cifar100/run.py PROTOCOL` wrote. '
             'Nothing here is typed by hand. "No gain" is said wherever the interval includes 0.\n\n')
    figures = [f'![gain](figures/gain_{name}.png)\n' for name in gain_figure.FIGURES
               if (HERE / 'figures' / f'gain_{name}.png').exists()]
    chosen_sections = '\n'.join([chosen.HOW, *filter(None, map(chosen.section, chosen.CHOSEN)), *figures])
    return intro + '\n'.join(filter(None, [chosen_sections, *map(section, PROTOCOLS)]))


def overview() -> str:
    """docs/results.md, with the tables of cpu.yaml, few_labels*.yaml, of `SCREENED` and the advisor between marks."""
    protocol = read(HERE / 'cpu.yaml')
    text = OVERVIEW.read_text(encoding='utf-8')
    for name, tables in (('cpu', [table(protocol, collect(protocol, pair)) for pair in protocol.pairs]),
                         *((name, chosen.reported(name)) for name in chosen.CHOSEN if name.startswith('few_labels')),
                         *((name, chosen.screened(name) + chosen.reported(name)) for name in SCREENED),
                         ('comparisons of few labels', [chosen.corrected(chosen.FEW_LABELS)]),
                         ('comparisons of labels in order', [chosen.corrected(chosen.IN_ORDER)]),
                         ('regret', [regret.shown()])):
        begin, end = f'<!-- {name}, by examples/cifar100/results.py -->', f'<!-- end of {name} -->'
        before, rest = text.split(begin)
        text = begin.join([before, '\n' + '\n\n'.join(tables) + f'\n{end}' + rest.split(end)[1]])
    return text


def _style(arm: str, arms: list[str]) -> Result:
    """A colour and a legend's line for each of at most ten arms; of more, only the two that all are compared with."""
    if len(arms) <= 10 or arm in (ALONE, STANDARD):
        return {'color': f'C{arms.index(arm)}', 'label': arm, 'zorder': 3}
    first = next(other for other in arms if other not in (ALONE, STANDARD))
    return {'color': '0.75', 'label': 'all other rows' if arm == first else None}


def figure(name: str) -> None:
    """Student accuracy over the epochs; KL against CKA of teacher and student; gain by arm."""
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    protocol = read(HERE / f'{name}.yaml')
    rows = [(pair if student == 'own' else f'{pair}, {student}', arms) for pair, spec in protocol.pairs.items()
            for student in spec.others or ('own',) if set(arms := collect(protocol, pair, student)) - {ALONE, STANDARD}]
    if not rows:
        return
    heights = [max(4., 1. + 0.3 * len(arms)) for _, arms in rows]
    fig, axes = plt.subplots(len(rows), 3, figsize=(17, sum(heights)), layout='constrained', squeeze=False,
                             height_ratios=heights)
    for (pair, arms), (curve, alike, gain) in zip(rows, axes, strict=True):
        for arm, runs in arms.items():
            style = _style(arm, list(arms))
            same = [s['curve'] for _, s in runs if len(s['curve']) == len(runs[0][1]['curve'])]
            mean = [statistics.fmean(c) for c in zip(*same, strict=True)]
            curve.plot(range(1, len(mean) + 1), mean, **style)
            if arm != ALONE:
                alike.scatter([s['kl'] for _, s in runs], [s['cka'] for _, s in runs], **style)
        curve.set(title=f'{pair}\nstudents', xlabel='epoch', ylabel='test accuracy, % (mean of the seeds)')
        alike.set(title='teacher and student, a dot a seed', xlabel='KL(teacher || student), nats', ylabel='CKA')
        names = [arm for arm in arms if arm not in (ALONE, STANDARD)]
        for who, offset, label in ((0, 0.15, 'teacher'), (1, -0.15, 'student')):
            values = [gains(arms, arm, who, _against(protocol, arm)) or [math.nan] for arm in names]
            found = [(statistics.fmean(v), interval(v)[1] if len(v) > 2 else math.nan) for v in values]
            gain.errorbar([m for m, _ in found], [i + offset for i in range(len(names))], fmt='o', label=label,
                          xerr=[half for _, half in found], capsize=3, color='0.6' if who == 0 else 'C3')
        gain.axvline(0, color='black', linewidth=0.8)
        gain.set_yticks(range(len(names)), names)
        gain.set_ylim(len(names) - 0.5, -1.2)      # room for the legend
        gain.set(title='against the standard arm,\nor the one that the table names',
                 xlabel='points; 95 % interval of three seeds and more')
        gain.legend(loc='upper left', ncols=2, fontsize='small')
        curve.legend(fontsize='x-small')
        for ax in (curve, alike, gain):
            ax.spines[['top', 'right']].set_visible(False)
    (HERE / 'figures').mkdir(exist_ok=True)
    fig.savefig(HERE / 'figures' / f'{name}.png', dpi=90)
    plt.close(fig)


def main() -> None:
    for name in PROTOCOLS:
        figure(name)
    for name in gain_figure.FIGURES:
        gain_figure.figure(name)
    (HERE / 'RESULTS.md').write_text(document(), encoding='utf-8')
    OVERVIEW.write_text(overview(), encoding='utf-8')


if __name__ == '__main__':
    main()
