"""The results of protocols whose settings were chosen on validation images: nested seeds, tables."""
from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from gains import Row, compared
from plan import chains, choose, reported_runs
from protocol import ALONE, STANDARD, Protocol, read
from runs import Result, stages

HERE = Path(__file__).resolve().parent
FEW_LABELS = ('few_labels_25', 'few_labels', 'few_labels_100')
IN_ORDER = ('few_labels_in_order_25', 'few_labels_in_order', 'few_labels_in_order_100')
FEW_IMAGES = ('few_images_5', 'few_images', 'few_images_25')
LETTERS = 'ABCDEFGH'
CHOSEN = (*FEW_LABELS, *IN_ORDER, 'all_images', *FEW_IMAGES)


def results_of(protocol: Protocol, results: Path = HERE / 'results') -> dict[str, Result]:
    """What is done, by key."""
    return {path.stem: json.loads(path.read_text()) for path in (results / protocol.results).glob('*.json')}


def rows(protocol: Protocol, done: dict[str, Result], pair: str, student: str) -> dict[str, Row]:
    """By arm, those that have a choice or a result."""
    choices = choose(protocol, done)
    found = {}
    for name in (ALONE, *protocol.arms):
        choice = choices.get((pair, student, name))
        before, students = {}, {}
        for seed in protocol.seeds:
            runs = [run for run in reported_runs(protocol, pair, name, seed, choices) if run.student == student]
            if runs and all(run.key in done for run in runs):
                students[seed] = [done[run.key] for run in runs]
                if choice:
                    before[seed] = {run.key: done[run.key] for run in stages(protocol, pair, choice.arm, seed)}
        if choice or students:
            found[name] = Row(choice, before, students)
    return found


def _mean(values: Iterable[float], digits: int = 2) -> str:
    known = list(values)
    spread = f' ± {statistics.stdev(known):.{digits}f}' if len(known) > 1 else ''
    return f'{statistics.fmean(known):.{digits}f}{spread}' if known else '-'


def made_on(results: Iterable[Result]) -> list[str]:
    """The machines of some results, with the versions there."""
    return sorted({'{device}, {threads} thread(s), torch {torch}, timm {timm}'.format(**r['machine']) for r in results})


def _minutes(runs: Iterable[list[Result]], machines: list[str]) -> str:
    """CPU time of a model's runs, or wall time where that is not known, and wall time, with the machine's letter."""
    known = list(runs)
    if len(mine := made_on(r for each in known for r in each)) != 1:        # one is faster than the other
        return '-'
    times = (statistics.fmean(sum(r.get(name, r['seconds']) for r in each) for each in known) / 60
             for name in ('cpu_seconds', 'seconds'))
    letter = f' {LETTERS[machines.index(mine[0])]}' if len(machines) > 1 else ''
    return ' / '.join(f'{t:.1f}' for t in times) + letter


def _epochs(stages: dict[str, Result], halfway: bool) -> str:
    """Of a teacher, after those of what it started from; a guide's beside them."""
    if not stages:
        return '-'
    settings = list(stages.values())[-1]['settings']
    epochs = settings['train']['epochs']
    found, guide = [epochs // 2 if halfway else epochs], stages.get(settings.get('guide', ''))
    while settings['after']:
        settings = stages[settings['after']]['settings']
        found.insert(0, settings['train']['epochs'])
    return ' + '.join(map(str, found)) + (f', its guide {guide["settings"]["train"]["epochs"]}' if guide else '')


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
    machines = made_on(r for row in found.values() if row.students for each in (
        *(each.values() for each in row.stages.values()), *row.students.values()) for r in each)
    for name, row in found.items():
        if not row.students:
            continue
        students = [r for each in row.students.values() for r in each]
        of_teacher = [[r['top1'] for r in each] for each in row.students.values()]
        difference = '' if name == STANDARD else compared(row, found.get(STANDARD))
        for against in protocol.arms[name].against if name != ALONE else ():
            if against != STANDARD:
                difference += f'; over "{against}": {compared(row, found.get(against))}'
        again = '' if name == STANDARD else compared(row, found.get(STANDARD), 'validation_top1')
        halfway = bool(row.choice and protocol.arms[row.choice.arm].halfway)
        trained = [] if halfway else [list(each.values()) for each in row.stages.values()]      # not measured half-way
        lines.append('| ' + ' | '.join([
            _name(protocol, name, row), f'{row.choice.temperature:g}' if row.choice else '-',
            f'{len(row.students)} × {len(students) // len(row.students)}',
            _epochs(next(iter(row.stages.values()), {}), halfway),
            _mean(each[-1]['top1'] for each in trained), _mean(r['validation_top1'] for r in students),
            _mean(statistics.fmean(each) for each in of_teacher), difference, again,
            _minutes(trained, machines), _minutes([[r] for r in students], machines)]) + ' |')
    if len(machines) > 1:
        lines += ['', f'Minutes: {"; ".join(map(": ".join, zip(LETTERS, machines, strict=False)))}; none where the '
                  f'runs of a row are of several machines.']
    return '\n'.join(lines)


def selection_table(protocol: Protocol, found: dict[str, Row]) -> str:
    """What the validation images chose among."""
    shown = {name: row for name, row in found.items() if row.choice and not protocol.arms[name].best_of}
    if not shown:
        return ''
    head = ('teacher', 'teachers that choose', *(f'T = {t:g}' for t in protocol.temperatures))
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for name, row in shown.items():
        cells = [f'**{v:.2f}**' if t == row.choice.temperature else f'{v:.2f}'       # type: ignore[union-attr]
                 for t, v in row.choice.validation.items()]     # type: ignore[union-attr]
        lines.append('| ' + ' | '.join([name, str(len(row.choice.seeds)), *cells]) + ' |')    # type: ignore[union-attr]
    return '\n'.join(lines)


def reported(name: str) -> list[str]:
    """What a protocol reports: the name and the table of each pair in which something is compared."""
    protocol = read(HERE / f'{name}.yaml')
    return [f'**{title}**\n\n{table(protocol, found)}' for title, found in by_student(protocol)
            if any(row.students for name, row in found.items() if name not in (ALONE, STANDARD))]


def screened(name: str) -> list[str]:
    """What the validation images chose among in each pair of a protocol."""
    protocol = read(HERE / f'{name}.yaml')
    return [f'**{title}**\n\n{selected}' for title, found in by_student(protocol)
            if (selected := selection_table(protocol, found))]


def by_student(protocol: Protocol) -> Iterator[tuple[str, dict[str, Row]]]:
    """Each student of each pair: its title and its rows."""
    done = results_of(protocol)
    for pair, spec in protocol.pairs.items():
        for student in ('own', *spec.others):
            title = pair if student == 'own' else f'{pair}, student {student} (not the branch)'
            yield title, rows(protocol, done, pair, student)


def section(name: str) -> str:
    """A protocol's part of RESULTS.md; empty where nothing has been run."""
    protocol, parts = read(HERE / f'{name}.yaml'), []
    done = results_of(protocol)
    planned = [run.key for part in ('select', 'report') for chain in chains(protocol, done, part) for run in chain]
    own = [done[key] for key in dict.fromkeys(planned) if key in done]
    for title, found in by_student(protocol):
        selected, reported = selection_table(protocol, found), any(row.students for row in found.values())
        if not selected and not reported:
            continue
        missing = [arm for arm in protocol.arms if arm not in found or not found[arm].students]
        parts.append('\n\n'.join(filter(None, [
            f'### {title}', table(protocol, found) if reported else '',
            f'Not reported yet: {"; ".join(missing)}.' if missing else '',
            'Student on the validation images, by temperature, mean over the teachers that choose; what was chosen is '
            'bold:' if selected else '',
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
choose nothing: the temperature of each arm, and what a "best" arm is, are chosen by one student for each temperature
of each teacher of the selection seeds ({", ".join(map(str, protocol.selection_seeds))}; not all for every arm), on
{protocol.validation} held-out training images of each class; the seeds that are reported are others, the same for
every arm. A gain is paired: the mean over the students of each teacher, then mean and 95 % interval (t) over the
teachers. "With images" is the interval for other teachers and other images drawn as the test images were (their
variances added); the wider of the two decides. Both are for the temperature that was chosen: what another choice would
change is not in them. The validation images chose it, so the gain on them only stands beside it. A teacher's epochs
and minutes are with those of the teacher that it started from, the minutes with its guide's too. ± is the standard
deviation over teachers, for the validation images over students.
{len(own)} runs, {sum(r["seconds"] for r in own) / 3600:.1f} hours of training on {"; ".join(made_on(own))}.

''' + '\n\n'.join(parts) + '\n'
