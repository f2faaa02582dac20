"""What the advisor's choice costs: `sf-teacher report` on teachers of a protocol, against students trained in full.

    python examples/cifar100/regret.py --data DIR --work WORK --budget 20m

The candidates are the teachers of the selection seed whose students of every temperature are done (`run.py few_labels`
made them; their weights are in WORK). The advisor sees the students' images, with labels where they have them, and the
held-out images, and pilots within its budget. Its regret is the test accuracy of the full-length student of the best
candidate, less that of the candidate that it recommends; beside it is that of the baseline at the temperature that its
pilots chose. The best of several single trainings is lucky too, so that nobody's regret would be 0. Each pair and
budget is a JSON file in results/advisor/; `results.py` shows them.
"""
from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from beside import machine
from chosen import results_of
from images import divided, load
from protocol import Arm, Protocol, path_of, read, student_train
from runs import Result, student_runs, teacher_run
from torchvision.transforms.functional import to_pil_image

from sf_teacher.analysis.halving import seconds
from sf_teacher.analysis.report import report
from sf_teacher.analysis.settings import ReportRun
from sf_teacher.analysis.verdicts import table
from sf_teacher.data.settings import NO_SPLIT, DataConfig
from sf_teacher.errors import SFTeacherError
from sf_teacher.files import write_atomically

HERE = Path(__file__).resolve().parent
RESULTS, ADVISOR = HERE / 'results', 'advisor'


def write_images(images: dict[str, Any], protocol: Protocol, seed: int, folder: Path) -> None:
    """The images of a seed's students and the held-out ones, as PNG files."""
    pixels, labels = images['train']
    parts = divided(images['train'], protocol.classes, protocol.student_per_class, protocol.validation,
                    seed if protocol.drawn else None)
    for name, indices in zip(('train', 'validation'), parts, strict=True):
        for i in indices.tolist():
            path = folder / name / f'{labels[i]:03d}' / f'{i:05d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(pixels[i]).save(path)


def known(protocol: Protocol, results: Path, pair: str, seed: int) -> dict[str, dict[float, Result]]:
    """By arm of whom every temperature is done: the students trained in full from that teacher."""
    done = results_of(protocol, results)
    found = {}
    for name, arm in protocol.arms.items():
        if arm.best_of or arm.halfway or arm.loss or arm.simplifier:      # not a teacher of its own, or not plain KD
            continue
        runs = {t: student_runs(protocol, pair, name, seed, t)[0].key for t in protocol.temperatures}
        if all(key in done for key in runs.values()):
            found[name] = {t: done[key] for t, key in runs.items()}
    return found


def settings(protocol: Protocol, pair: str, teachers: Iterable[str], output: Path, budget: str) -> ReportRun:
    """The report's: students as the protocol has them, with the images in `output`."""
    spec, images = dict(protocol.pairs[pair].student), output / 'images'
    more: dict[str, Any] = {name: value for name, value in protocol.kd.items() if name != 'temperature'}
    if protocol.unlabelled:
        more |= {'train_split': NO_SPLIT, 'unlabelled': str(images / 'train')}
    return ReportRun(
        teachers=tuple(teachers), output=str(output), data=str(images), in_memory=True, student=spec.pop('name'),
        model_kwargs=spec, input_size=(3, protocol.size, protocol.size), batch_size=protocol.batch_size, budget=budget,
        temperatures=tuple(map(float, protocol.temperatures)),
        **more, **student_train(protocol, protocol.pairs[pair], Arm()))


def regrets(result: Result) -> dict[str, float]:
    """Points of the baseline and of the recommended candidate below the best."""
    full = {(arm, t): top1 for arm, t, top1 in result['candidates']}
    return {name: max(full.values()) - full[tuple(result[name])] for name in ('baseline', 'recommended')}


def as_today(result: Result) -> Result:
    """What today's rule recommends: the one that led, which an earlier version named and recommended only when sure."""
    if 'leader' not in result:
        return result
    interval = re.search(r'([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]', result['text'])
    gain, _, high = map(float, interval.groups()) if interval else (None, None, None)
    return {**result, 'baseline': result['recommended'], 'recommended': result['leader'], 'gain': gain,
            'half_width': high - gain if gain is not None else None}


def shown() -> str:
    """The table of what has been run."""
    found = [as_today(json.loads(path.read_text())) for path in (RESULTS / ADVISOR).glob('*.json')]
    head = ('protocol, pair', 'pilots', 'budget', 'minutes used', "pilots' epochs", 'candidates', 'baseline',
            'its student, %', 'regret', 'recommended', 'its lead in the pilots', 'its student, %', 'regret',
            'best candidate', 'its student, %', 'worst, %')
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for r in sorted(found, key=lambda r: (r['protocol'], r['pair'], r['seconds'])):
        full = {(arm, t): top1 for arm, t, top1 in r['candidates']}
        best = max(full, key=full.__getitem__)
        how = 'in three steps' if 'rounds' in r else 'of all candidates (an earlier version)'
        cells = [f'{r["protocol"]}, {r["pair"]}', how, r['budget'], f'{r["seconds"] / 60:.1f}', str(r['epochs']),
                 str(len(full))]
        for name, regret in regrets(r).items():
            arm, t = r[name]
            lead = [] if name == 'baseline' else [_lead(r)]
            cells += [f'{arm} at T = {t:g}', *lead, f'{full[arm, t]:.2f}', f'{regret:.2f}']
        cells += [f'{best[0]} at T = {best[1]:g}', f'{full[best]:.2f}', f'{min(full.values()):.2f}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _lead(result: Result) -> str:
    return '-' if result['gain'] is None else f'{result["gain"]:+.2f} ± {result["half_width"]:.2f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--protocol', default='few_labels', help='one that chooses temperatures, or a YAML file')
    parser.add_argument('--pair', help='one of its pairs (default: the first)')
    parser.add_argument('--data', default='data', help='folder with the training and test images, as for run.py')
    parser.add_argument('--work', type=Path, default=Path('runs/cifar100'), help='where run.py keeps its teachers')
    parser.add_argument('--results', type=Path, default=RESULTS, help='JSON files of finished runs')
    parser.add_argument('--budget', default='20m', help="the advisor's")
    args = parser.parse_args()
    path = path_of(args.protocol)
    protocol = read(path)
    if not protocol.temperatures:
        parser.error(f'{path.stem} tries no temperatures, which the advisor does')
    if args.pair not in (None, *protocol.pairs):
        parser.error(f'{path.stem} has no pair {args.pair!r}; it has {", ".join(map(repr, protocol.pairs))}')
    pair, seed = args.pair or next(iter(protocol.pairs)), protocol.selection_seeds[0]
    students = known(protocol, args.results, pair, seed)
    if not students:
        parser.error(f'{pair}: no teacher of seed {seed} has students of every temperature in {args.results}: make '
                     f'them by run.py {path.stem}')
    folders = {str(args.work / teacher_run(protocol, pair, name, seed).key / 'teacher'): name for name in students}
    if missing := [name for folder, name in folders.items() if not Path(folder).is_dir()]:
        parser.error(f'the weights of {", ".join(missing)} of seed {seed} are not in {args.work}: give the --work of '
                     f'run.py, or train them again with a --results of its own')
    named = '-'.join([path.stem, *re.findall(r'\w+', pair), args.budget])
    output = args.work / f'{ADVISOR}-{named}'
    try:
        seconds(args.budget)
        images = load(DataConfig(data=args.data, val_split='test'), args.work, protocol.size)
        write_images(images, protocol, seed, output / 'images')
        found = report(settings(protocol, pair, folders, output, args.budget))
    except SFTeacherError as error:
        parser.error(str(error))
    print(table(found))
    taken, baseline = found['recommendation'], found['teachers'][found['baseline']]
    chosen = {'baseline': [folders[baseline['folder']], baseline['temperature']],
              'recommended': [folders[taken['teacher']], taken['temperature']]}
    candidates = [[arm, t, each[t]['top1']] for arm, each in students.items() for t in each]
    result = {
        'protocol': path.stem, 'pair': pair, 'seed': seed, 'budget': args.budget, 'epochs': found['epochs'],
        'seconds': round(taken['seconds'], 1), 'rounds': found['rounds'], **chosen, 'candidates': candidates,
        **{name: taken[name] for name in ('gain', 'half_width', 'sure', 'text')},
        'machine': machine(torch.device('cpu'))}
    (args.results / ADVISOR).mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + '\n'
    for folder, name in folders.items():
        text = text.replace(folder, name)
    write_atomically(args.results / ADVISOR / f'{named}.json', lambda file: file.write(text.encode()))
    for name, regret in regrets(result).items():
        arm, t = result[name]
        print(f'{name}: {arm} at T = {t:g}, regret {regret:.2f} of {len(candidates)} candidates')


if __name__ == '__main__':
    main()
