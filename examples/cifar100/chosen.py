"""The results of protocols whose settings were chosen on validation images: nested seeds, tables."""
from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from gains import Row, excludes_0, holm, nested_gains
from plan import chains, choose, reported_runs
from protocol import ALONE, STANDARD, Protocol, read
from runs import Result, stages
from tables import made_on, selection_table, table

HERE = Path(__file__).resolve().parent
FEW_LABELS = ('few_labels_25', 'few_labels', 'few_labels_100', 'few_labels_again')
IN_ORDER = ('few_labels_in_order_25', 'few_labels_in_order', 'few_labels_in_order_100')
FEW_IMAGES = ('few_images_5', 'few_images', 'few_images_25')
HOW = '''## How the first tables are made

Up to `few_images_25.yaml`, test images choose nothing: the temperature of each arm, and what a "best" arm is, are
chosen by one student for each temperature of each teacher of the selection seeds, on held-out training images, so the
gain on those only stands beside it. The seeds that are reported are others, the same for every arm. Accuracies are of
the last epoch. A gain is paired: the mean over the students of each teacher, then mean and 95 % interval (t) over the
teachers. "With images" is the interval for other teachers and other images drawn as the test images were (their
variances added); the wider of the two decides. Both are for the temperature that was chosen: what another choice would
change is not in them. A teacher's epochs and minutes are with those of the teacher that it started from, the minutes
with its guide's too. ± is the standard deviation over teachers, for the validation images over students.
'''
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


def corrected(names: Iterable[str]) -> str:
    """Of all comparisons with the standard teacher in some protocols, those that stay if corrected for their number."""
    comparisons, titles = [], []
    for name in names:
        protocol = read(HERE / f'{name}.yaml')
        for title, found in by_student(protocol):
            for arm, row in found.items():
                if arm not in (ALONE, STANDARD) and len(nested_gains(row, found.get(STANDARD))) > 2:
                    comparisons.append((row, found[STANDARD]))
                    titles.append((f'{protocol.per_class} labels, {title}', arm))
    sure, stay = [i for i, each in enumerate(comparisons) if excludes_0(*each)], holm(comparisons)
    lines = [f'- {title}: {"; ".join(titles[i][1] for i in stay if titles[i][0] == title)}'
             for title in dict.fromkeys(titles[i][0] for i in stay)]
    return '\n'.join([f'Of {len(titles)} comparisons with the standard teacher on the test images, {len(sure)} exclude '
                      f'0 in the wider interval. If', f'they are corrected for their number (Holm), {len(stay)} do:',
                      '', *(lines or ['- none'])])


def by_student(protocol: Protocol) -> Iterator[tuple[str, dict[str, Row]]]:
    """Each student of each pair: its title and its rows."""
    done = results_of(protocol)
    for pair, spec in protocol.pairs.items():
        for student in ('own', *spec.others):
            title = pair if student == 'own' else f'{pair}, student {student} (not the branch)'
            title += ', other classes' if protocol.chosen_by else ''
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
    seeds = ', '.join(map(str, protocol.selection_seeds))
    choice = 'Nothing is chosen here.' if protocol.chosen_by else (
        f'Chosen by the selection seeds {seeds} (not all for every arm) on {protocol.validation} images of each class.')
    settings = textwrap.fill(
        f'CIFAR-100, classes {first} to {end - 1}, {protocol.size} px, batches of {protocol.batch_size}. Teachers: '
        f'{protocol.per_class or 500 - protocol.validation} labelled images of each class, {protocol.train["epochs"]} '
        f'epochs unless the row says otherwise; students: {labels}, {student["epochs"]} epochs. {choice} '
        f'{len(own)} runs, {sum(r["seconds"] for r in own) / 3600:.1f} hours of training on '
        f'{"; ".join(made_on(own))}.', 120)
    return f'''## `{name}.yaml`

{protocol.about}

{settings}

''' + '\n\n'.join(parts) + '\n'
