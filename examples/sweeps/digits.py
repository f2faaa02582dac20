"""How `examples/quickstart.py` was set up: on the validation images, with ten seeds that it does not use.

    python examples/sweeps/digits.py                     # some 20 minutes of CPU time; continues where it stopped

For every pair of models and every seed it trains the standard teacher and SFTN, then two controls: the standard teacher
for 1.75 times the epochs, as much compute, and deep supervision only, which is SFTN without its divergence; and of each
teacher a student at each temperature. `digits.jsonl` beside this file is what was measured. Prints for each pair and
teacher the temperature that is best for its students, and the paired difference to the standard teacher at its own best
one, over the seeds that have been measured so far.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quickstart as q

import sf_teacher
from sf_teacher.analysis.intervals import interval

SEEDS = range(100, 110)
PAIRS: dict[str, tuple[q.Spec, q.Spec]] = {
    'test_resnet -> test_resnet, narrow': (q.TEACHER, q.STUDENT),
    'resnet10t, narrow -> test_efficientnet': (
        ('resnet10t', {'channels': [16, 32, 64, 128]}), ('test_efficientnet', {})),
}
ARMS: dict[str, tuple[sf_teacher.Method | None, float]] = {     # method, and factor of the epochs
    'standard': (None, 1.),
    'SFTN': (sf_teacher.SFTN(), 1.),
    'standard, as much compute': (None, 1.75),
    'deep supervision only': (sf_teacher.SFTN(kl_weight=0.), 1.),
}
TEMPERATURES = (2., 8.)


def measure(digits: q.Digits, pair: str, arm: str, seed: int) -> list[dict[str, Any]]:
    """Train one teacher, and a student at each temperature; accuracies on the validation images."""
    (teacher_spec, student_spec), (method, factor) = PAIRS[pair], ARMS[arm]
    few, others = digits.divided(seed)
    began = time.process_time()
    task = q.teacher_task(seed, method, teacher_spec, student_spec)
    q.fit(task, few, round(factor * q.TEACHER_EPOCHS), seed)
    teacher = task.get_eval_model().eval().requires_grad_(False)
    rows = []
    for temperature in TEMPERATURES:
        student = q.student_task(seed, teacher, temperature, student_spec)
        q.fit(student, others, q.STUDENT_EPOCHS, seed)
        values = q.measured(teacher, student.get_eval_model(), digits.validation)
        rows.append({'pair': pair, 'arm': arm, 'seed': seed, 'temperature': temperature,
                     **{name: round(value, 3) for name, value in values.items()},
                     'cpu_seconds': round(time.process_time() - began, 1)})
        began = time.process_time()
    return rows


def summary(results: list[dict[str, Any]]) -> str:
    """For each pair and teacher its best temperature, and the difference to the standard teacher at its own."""
    lines = [f'{"":<28}{"seeds":>6}{"T":>4}{"teacher, %":>12}{"student, %":>12}   minus the standard one\'s']
    for pair in PAIRS:
        lines.append(pair)
        standard: dict[int, float] = {}
        for arm in ARMS:
            rows = [r for r in results if (r['pair'], r['arm']) == (pair, arm)]
            if not rows:
                continue
            best = max(TEMPERATURES, key=lambda t: fmean(r['student'] for r in rows if r['temperature'] == t))
            student = {r['seed']: r['student'] for r in rows if r['temperature'] == best}
            line = f'  {arm:<26}{len(student):>6}{best:>4g}{fmean(r["teacher"] for r in rows):>12.2f}' \
                   f'{fmean(student.values()):>12.2f}'
            standard = standard or student
            if arm != 'standard':
                mean, half = interval([student[seed] - standard[seed] for seed in student.keys() & standard.keys()])
                line += f'   {mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]'
            lines.append(line)
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.jsonl'), help='a line a student')
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = q.Digits()
    results = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(r['pair'], r['arm'], r['seed']) for r in results}
    arms = list(ARMS)
    for pair, group, seed in product(PAIRS, (arms[:2], arms[2:]), SEEDS):       # the pairs that matter most come first
        for arm in (arm for arm in group if (pair, arm, seed) not in done):
            rows = measure(digits, pair, arm, seed)
            with args.out.open('a') as file:
                file.write(''.join(json.dumps(row) + '\n' for row in rows))
            results += rows
    print(summary(results))


if __name__ == '__main__':
    main()
