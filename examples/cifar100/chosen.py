"""The results of protocols whose settings were chosen on validation images: nested seeds, tables, the gain's figure."""
from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from beside import RIGHT, unpacked
from plan import Choice, Result, choose, reported_runs, teacher_run
from protocol import ALONE, STANDARD, Protocol, read

from sf_teacher.analysis.similarity import interval

HERE = Path(__file__).resolve().parent
CHOSEN = ('few_labels_25', 'few_labels', 'few_labels_100', 'all_images', 'few_images_5', 'few_images', 'few_images_25')
FIGURES = {     # protocols of one figure, and what lies along its axis
    'few_labels': (CHOSEN[:3], 'labelled images of each class for the teacher', 'per_class'),
    'few_images': (CHOSEN[4:], 'images of each class for the student', 'student_per_class')}


@dataclass(frozen=True)
class Row:
    """What is known of an arm for a student.

    Args:
        choice: What the validation images chose; None for students that learn alone.
        teachers: The teacher's result by seed.
        students: The students' results by the seed of their teacher; a seed counts when all of them are done.
    """
    choice: Choice | None
    teachers: dict[int, Result]
    students: dict[int, list[Result]]


def results_of(protocol: Protocol) -> dict[str, Result]:
    """What is done, by key."""
    return {path.stem: json.loads(path.read_text()) for path in (HERE / 'results' / protocol.results).glob('*.json')}


def rows(protocol: Protocol, done: dict[str, Result], pair: str, student: str) -> dict[str, Row]:
    """By arm, those that have a choice or a result."""
    choices = choose(protocol, done)
    found = {}
    for name in (ALONE, *protocol.arms):
        choice = choices.get((pair, student, name))
        teachers, students = {}, {}
        for seed in protocol.seeds:
            runs = [run for run in reported_runs(protocol, pair, name, seed, choices) if run.student == student]
            if runs and all(run.key in done for run in runs):
                students[seed] = [done[run.key] for run in runs]
                if choice:
                    teachers[seed] = done[teacher_run(protocol, pair, choice.arm, seed).key]
        if choice or students:
            found[name] = Row(choice, teachers, students)
    return found


def nested_gains(row: Row, against: Row | None, accuracy: str = 'top1') -> list[float]:
    """One difference for each teacher that both have: the mean over its students, which are paired by their seed."""
    if against is None:
        return []
    return [statistics.fmean(mine[accuracy] - theirs[accuracy] for mine, theirs in zip(
            row.students[seed], against.students[seed], strict=True)) for seed in row.students
            if seed in against.students]


def with_images(row: Row, against: Row, accuracy: str = 'top1') -> float | None:
    """Half-width of the gain's 95 % interval for other teachers and other images; None where it is not known.

    The difference of teacher t's students on image i varies with both. Its variance over the teachers' means and that
    over the images' means are added, which counts what varies with both twice and so errs on the wide side (Owen 2007,
    "The pigeonhole bootstrap"); degrees of freedom by Welch and Satterthwaite.
    """
    from scipy.stats import t

    right = RIGHT[accuracy]
    seeds = [seed for seed in row.students if seed in against.students]
    if len(seeds) < 3 or not all(right in r for each in (row, against) for seed in seeds for r in each.students[seed]):
        return None
    of_teacher = [[np.mean([unpacked(r[right], r[accuracy]) for r in each.students[seed]], 0)
                   for each in (row, against)] for seed in seeds]
    gains = 100 * np.stack([mine - theirs for mine, theirs in of_teacher])     # [teachers, images]
    parts = [gains.mean(1 - axis).var(ddof=1) / gains.shape[axis] for axis in (0, 1)]
    freedom = sum(parts) ** 2 / sum(part ** 2 / (count - 1) for part, count in zip(parts, gains.shape, strict=True))
    return float(t.ppf(0.975, freedom) * sum(parts) ** 0.5)


def verdict(values: Sequence[float], of: str = 'seed', wide: float | None = None) -> str:
    """A gain or loss only where the 95 % interval of paired t excludes 0; no interval of one or two.

    Args:
        values: Paired differences.
        of: What there is one value for each of.
        wide: Half-width of a wider interval, which then decides.
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


def _mean(values: Iterable[float], digits: int = 2) -> str:
    known = list(values)
    spread = f' ± {statistics.stdev(known):.{digits}f}' if len(known) > 1 else ''
    return f'{statistics.fmean(known):.{digits}f}{spread}' if known else '-'


def _minutes(results: Iterable[Result]) -> str:
    """CPU time of a run, or its wall time where that is not known, and the wall time."""
    known = list(results)
    if not known:
        return '-'
    return ' / '.join(f'{statistics.fmean(r.get(name, r["seconds"]) for r in known) / 60:.1f}'
                      for name in ('cpu_seconds', 'seconds'))


def _name(protocol: Protocol, name: str, row: Row) -> str:
    if name == ALONE:
        return 'none (student alone)'
    return f'{name}: {row.choice.arm}' if row.choice and protocol.arms[name].best_of else name


def table(protocol: Protocol, found: dict[str, Row]) -> str:
    """What is reported: one row an arm."""
    head = ('teacher', 'T', 'teachers × students', "teacher's epochs", 'teacher, %', 'student, validation, %',
            'student, test, %', 'gain over the standard teacher, test', 'the same, validation',
            'teacher, CPU / wall minutes', 'student, CPU / wall minutes')
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for name, row in found.items():
        if not row.students:
            continue
        students = [r for each in row.students.values() for r in each]
        of_teacher = [[r['top1'] for r in each] for each in row.students.values()]
        against = protocol.arms[name].against if name != ALONE else STANDARD
        difference = '' if name == STANDARD else compared(row, found.get(STANDARD))
        if against != STANDARD:
            difference += f'; over "{against}": {compared(row, found.get(against))}'
        again = '' if name == STANDARD else compared(row, found.get(STANDARD), 'validation_top1')
        teachers = list(row.teachers.values())
        lines.append('| ' + ' | '.join([
            _name(protocol, name, row), f'{row.choice.temperature:g}' if row.choice else '-',
            f'{len(row.students)} × {len(students) // len(row.students)}',
            '-' if not teachers else str(teachers[0]['settings']['train']['epochs']),
            _mean(t['top1'] for t in teachers), _mean(r['validation_top1'] for r in students),
            _mean(statistics.fmean(each) for each in of_teacher), difference, again,
            _minutes(teachers), _minutes(students)]) + ' |')
    return '\n'.join(lines)


def selection_table(protocol: Protocol, found: dict[str, Row]) -> str:
    """What the validation images chose among."""
    shown = {name: row for name, row in found.items() if row.choice and not protocol.arms[name].best_of}
    if not shown:
        return ''
    head = ('teacher', *(f'T = {t:g}' for t in protocol.temperatures))
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for name, row in shown.items():
        cells = [f'**{v:.2f}**' if t == row.choice.temperature else f'{v:.2f}'       # type: ignore[union-attr]
                 for t, v in row.choice.validation.items()]     # type: ignore[union-attr]
        lines.append('| ' + ' | '.join([name, *cells]) + ' |')
    return '\n'.join(lines)


def reported(name: str) -> list[str]:
    """What a protocol reports: pair by pair its name and its table."""
    protocol = read(HERE / f'{name}.yaml')
    return [f'**{title}**\n\n{table(protocol, found)}' for title, found in _by_student(protocol)
            if any(row.students for row in found.values())]


def _by_student(protocol: Protocol) -> Iterator[tuple[str, dict[str, Row]]]:
    """Each student of each pair: its title and its rows."""
    done = results_of(protocol)
    for pair, spec in protocol.pairs.items():
        for student in ('own', *spec.others):
            title = pair if student == 'own' else f'{pair}, student {student} (not the branch)'
            yield title, rows(protocol, done, pair, student)


def section(name: str) -> str:
    """A protocol's part of RESULTS.md; empty where nothing has been run."""
    protocol, parts = read(HERE / f'{name}.yaml'), []
    for title, found in _by_student(protocol):
        selected, reported = selection_table(protocol, found), any(row.students for row in found.values())
        if not selected and not reported:
            continue
        missing = [arm for arm in protocol.arms if arm not in found or not found[arm].students]
        parts.append('\n\n'.join(filter(None, [
            f'### {title}', table(protocol, found) if reported else '',
            f'Not reported yet: {"; ".join(missing)}.' if missing else '',
            'Student on the validation images, by temperature (selection seeds '
            f'{", ".join(map(str, protocol.selection_seeds))}; what was chosen is bold):' if selected else '',
            selected])))
    if not parts:
        return ''
    first, end = protocol.classes
    images = protocol.student_per_class or protocol.per_class or 500 - protocol.validation
    labels = f'{images} images of each {"without labels" if protocol.unlabelled else "with their labels"}'
    student = {**protocol.train, **protocol.student}
    return f'''## `{name}.yaml`

{protocol.about}

CIFAR-100, classes {first} to {end - 1}, {protocol.size} px, batches of {protocol.batch_size}. Teachers:
{protocol.per_class or 500 - protocol.validation} labelled images of each class, {protocol.train["epochs"]} epochs
unless the row says otherwise; students: {labels}, {student["epochs"]} epochs. Accuracy of the last epoch. Test images
choose nothing: the temperature of each arm, and what a "best" arm is, are chosen by students of the selection seeds on
{protocol.validation} held-out training images of each class; the seeds that are reported are others, the same for
every arm. A gain is paired: the mean over the students of each teacher, then mean and 95 % interval (t) over the
teachers. "With images" is the interval for other teachers and other images of these classes (their variances added); it
decides. The validation images chose the temperatures, with other teachers, so the gain on them only stands beside it. ±
is the standard deviation over teachers, for the validation images over students.

''' + '\n\n'.join(parts) + '\n'


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
        for title, known in _by_student(protocol):
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
    fig, axes = plt.subplots(1, len(found), figsize=(1.5 + 5.5 * len(found), 4.5), layout='constrained', squeeze=False,
                             sharey=True)
    arms = list(dict.fromkeys(arm for each in found.values() for arm in each))
    sizes = sorted({gain.size for each in found.values() for gains in each.values() for gain in gains})
    for ax, (pair, each) in zip(axes[0], found.items(), strict=True):
        for arm, gains in each.items():
            i = arms.index(arm)
            xs = [i] if len(sizes) == 1 else [gain.size * 1.02 ** (i - (len(arms) - 1) / 2) for gain in gains]
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
        ax.set(xlabel=label, xscale='log')
        ax.set_xticks(sizes, list(map(str, sizes)), minor=False)
        ax.minorticks_off()
        ax.legend(fontsize='x-small', frameon=False)
    axes[0][0].set_ylabel("student's gain over the standard teacher,\n"
                          'each at its own temperature, points (95 % interval)')
    (HERE / 'figures').mkdir(exist_ok=True)
    fig.savefig(HERE / 'figures' / f'gain_{name}.png', dpi=110)
    plt.close(fig)
    return True


def document() -> str:
    """The sections of all these protocols, and their figures."""
    parts: list[Any] = [section(name) for name in CHOSEN]
    figures = [f'![gain](figures/gain_{name}.png)\n' for name in FIGURES
               if (HERE / 'figures' / f'gain_{name}.png').exists()]
    return '\n'.join([*filter(None, parts), *figures])
