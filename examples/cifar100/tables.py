"""Tables of protocols whose settings were chosen on validation images: what is reported, and what was chosen among."""
from __future__ import annotations

import statistics
from collections.abc import Iterable

from gains import Row, compared, nested_gains
from protocol import ALONE, STANDARD, Protocol
from runs import Result

LETTERS = 'ABCDEFGH'


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
            if against != STANDARD and nested_gains(row, found.get(against)):
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
    if not shown or protocol.chosen_by:
        return ''
    head = ('teacher', 'teachers that choose', *(f'T = {t:g}' for t in protocol.temperatures))
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for name, row in shown.items():
        cells = [f'**{v:.2f}**' if t == row.choice.temperature else f'{v:.2f}'       # type: ignore[union-attr]
                 for t, v in row.choice.validation.items()]     # type: ignore[union-attr]
        lines.append('| ' + ' | '.join([name, str(len(row.choice.seeds)), *cells]) + ' |')    # type: ignore[union-attr]
    return '\n'.join(lines)
