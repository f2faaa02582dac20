"""How the options of `examples/quickstart.py` were chosen: on the validation images, with seeds it does not use.

    python examples/sweeps/digits.py --jobs 2 --out digits.jsonl

First the recipe is tuned for the *standard* teacher (learning rates, temperature and weight of the distillation), then,
with that recipe, the options of SFTN, starting from those reported, one at a time. A run that is started again with the
same --out goes on where it stopped. `digits.jsonl` beside this file is what was measured; each line names its recipe,
since the learning rates were tuned on the way, and only those of the present one are counted. Prints for each setting
the accuracy of teacher and student on the validation images, mean ± std over the seeds.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quickstart as q

import sf_teacher

SEEDS = (100, 101, 102, 103)
Setting = dict[str, Any]        # recipe options by name, and 'method': changes to SFTN.reported() or None (standard)
RECIPES: dict[str, Setting] = {
    'recipe: as committed': {},
    'recipe: teacher lr 5e-3': {'teacher_lr': 5e-3},
    'recipe: teacher lr 2e-2': {'teacher_lr': 2e-2},
    'recipe: student lr 1e-2': {'student_lr': 1e-2},
    'recipe: student lr 2e-2': {'student_lr': 2e-2},
    'recipe: student lr 8e-2': {'student_lr': 8e-2},
    'recipe: temperature 1': {'kd': {'temperature': 1.}},
    'recipe: temperature 2': {'kd': {'temperature': 2.}},
    'recipe: task 0.5, distill 0.5': {'kd': {'task_loss_weight': 0.5, 'distill_loss_weight': 0.5}},
}
METHODS: dict[str, Setting] = {
    'SFTN(), as reported': {'method': {}},
    'kl_weight=1': {'method': {'kl_weight': 1.}},
    'kl_weight=0 (deep supervision only)': {'method': {'kl_weight': 0.}},
    'kl_weight=6': {'method': {'kl_weight': 6.}},
    'ce_weight=0': {'method': {'ce_weight': 0.}},
    'temperature=4': {'method': {'temperature': 4.}},
    'temperature=4, kl_weight=0.3': {'method': {'temperature': 4., 'kl_weight': 0.3}},
    'temperature=4, kl_weight=1': {'method': {'temperature': 4., 'kl_weight': 1.}},
    'detach_teacher_logits': {'method': {'detach_teacher_logits': True}},
    'branch||teacher': {'method': {'kl_direction': 'branch||teacher'}},
    'detach_features (control: no gradient through the features)': {'method': {'detach_features': True}},
    'kl_weight=1, detach_teacher_logits': {'method': {'kl_weight': 1., 'detach_teacher_logits': True}},
    'kl_weight=0.3': {'method': {'kl_weight': 0.3}},
    'kl_weight=0.3, detach_teacher_logits': {'method': {'kl_weight': 0.3, 'detach_teacher_logits': True}},
    # the first half of the epochs without branches; the first of these is the control, it has no branches at all
    'half: ce_weight=0, kl_weight=0 (standard)': {'method': {'ce_weight': 0., 'kl_weight': 0.}, 'plain_epochs': 0.5},
    'half: kl_weight=0 (deep supervision only)': {'method': {'kl_weight': 0.}, 'plain_epochs': 0.5},
    'half: SFTN()': {'method': {}, 'plain_epochs': 0.5},
    'half: kl_weight=1': {'method': {'kl_weight': 1.}, 'plain_epochs': 0.5},
    'half: kl_weight=1, detach_teacher_logits': {
        'method': {'kl_weight': 1., 'detach_teacher_logits': True}, 'plain_epochs': 0.5},
    'half: detach_teacher_logits': {'method': {'detach_teacher_logits': True}, 'plain_epochs': 0.5},
}


RECIPE = [q.TEACHER, q.STUDENT, q.TRAIN, q.EPOCHS, q.BATCH, q.TEACHER_LR, q.STUDENT_LR, *q.KD.values()]


def measure(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Train one teacher and distil one student; accuracies on the validation images."""
    torch.set_num_threads(1)
    train, validation, _ = q.load()
    options = setting.get('method')
    task = q.teacher_task(seed, None if options is None else replace(sf_teacher.SFTN.reported(), **options))
    lr, plain = setting.get('teacher_lr', q.TEACHER_LR), int(setting.get('plain_epochs', 0) * q.EPOCHS)
    if plain:
        q.fit(q.ClassificationTask(task.teacher, verbose=False), train, plain, lr, seed)
    q.fit(task, train, q.EPOCHS - plain, lr, seed)
    teacher = q.trained(task)
    student = q.student_task(seed, teacher, **setting.get('kd', {}))
    q.fit(student, train, q.EPOCHS, setting.get('student_lr', q.STUDENT_LR), seed)
    z_t, z_s = q.predict(teacher, validation.x), q.predict(student.trainable_module, validation.x)
    return {'name': name, 'seed': seed, 'recipe': RECIPE, 'teacher': q.accuracy(z_t, validation.y),
            'student': q.accuracy(z_s, validation.y), 'kl': q.divergence(z_t, z_s)}


def _measure(job: tuple[str, int, Setting]) -> dict[str, Any]:
    return measure(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--jobs', type=int, default=2, help='processes')
    parser.add_argument('--out', type=Path, default=Path('digits.jsonl'), help='results, one line a run')
    parser.add_argument('--only', nargs='+', default=[''], help='settings whose name contains one of these')
    args = parser.parse_args()
    settings = {name: s for name, s in {**RECIPES, **METHODS}.items() if any(part in name for part in args.only)}
    results = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    results = [r for r in results if r['recipe'] == RECIPE]
    done = {(r['name'], r['seed']) for r in results}
    jobs = [(name, seed, s) for seed in SEEDS for name, s in settings.items() if (name, seed) not in done]
    with multiprocessing.get_context('spawn').Pool(args.jobs) as pool, args.out.open('a') as file:
        for result in pool.imap_unordered(_measure, jobs):
            print(json.dumps(result), file=file, flush=True)
            results.append(result)
    print(f'{"setting":<60} {"teacher":>13} {"student":>13} {"KL":>6}')
    for name in settings:      # all of them have been measured by now
        rows = [r for r in results if r['name'] == name]
        spread = partial(_spread, rows)
        kl = statistics.mean(r['kl'] for r in rows)
        print(f'{name:<60} {spread("teacher"):>13} {spread("student"):>13} {kl:6.3f}')


def _spread(rows: list[dict[str, Any]], key: str) -> str:
    values = [r[key] for r in rows]
    return f'{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}'


if __name__ == '__main__':
    main()
