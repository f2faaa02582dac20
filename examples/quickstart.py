"""Few labels, many images without: the whole path in small, with nothing to download. A check of the pipeline.

For every seed a standard teacher and a student-friendly one (SFTN) are trained on a few labelled handwritten digits,
from the same initial weights and on the same images; then the same student learns from each of them on many other
digits, of which it gets no label, by `timm.task.LogitDistillationTask`. The teachers of the first seed are exported and
reloaded with plain timm.

    python examples/quickstart.py       # prints a table, writes quickstart.png and the teachers to --out

Each teacher has the temperature that was best for its students on the validation images with other seeds
(`examples/sweeps/digits.py`); what is printed here is measured on test images, by which nothing was chosen. The seeds
differ more than the teachers do, so no verdict is given.
"""
from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask

import sf_teacher
from sf_teacher.analysis.intervals import interval
from sf_teacher.analysis.predictions import predict
from sf_teacher.data.datasets import load_data
from sf_teacher.data.in_memory import InMemoryLoader, load_images
from sf_teacher.data.settings import DataConfig
from sf_teacher.functional import kl_divergence, top1

Images = tuple[torch.Tensor, torch.Tensor]      # uint8 [N, 3, 16, 16] and labels [N]
Spec = tuple[str, dict[str, Any]]               # timm name and arguments of a model
Advance = Callable[[], None]

TEACHER: Spec = ('test_resnet', {})                                    # 0.37 M parameters
STUDENT: Spec = ('test_resnet', {'channels': [8, 12, 16, 24]})         # 0.04 M
SIZE, MEAN, STD = (3, 16, 16), (0.5,) * 3, (0.5,) * 3
LABELS, VALIDATION = 5, 337         # labelled images of each class; images that choose
TEACHER_EPOCHS, STUDENT_EPOCHS, BATCH = 60, 6, 50
LR = 1e-2
ARMS: dict[str, tuple[sf_teacher.Method | None, float]] = {     # method and temperature of the distillation
    'standard teacher': (None, 2.),
    'student-friendly (SFTN)': (sf_teacher.SFTN(), 2.),
}


class Digits:
    """scikit-learn's 1797 handwritten digits: a pool to train on, images that choose, and the test images."""

    def __init__(self) -> None:
        data = load_data(DataConfig(data='digits'))
        images, labels = load_images(data.train, SIZE)
        self.pool: Images = images[:-VALIDATION], labels[:-VALIDATION]
        self.validation: Images = images[-VALIDATION:], labels[-VALIDATION:]
        self.test: Images = load_images(data.validation, SIZE)

    def divided(self, seed: int) -> tuple[Images, Images]:
        """The labelled images of a seed, `LABELS` of each class, and the others, whose targets are all 0."""
        images, labels = self.pool
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        few = torch.cat([order[labels[order] == k][:LABELS] for k in labels.unique()])
        others = order[~torch.isin(order, few)]
        return (images[few], labels[few]), (images[others], torch.zeros_like(labels[others]))


def fit(task: TrainingTask, images: Images, epochs: int, seed: int, advance: Advance = lambda: None) -> None:
    """Train any timm task; teachers and students, standard and student-friendly, all go through this loop."""
    torch.manual_seed(seed)
    loader = InMemoryLoader(*images, BATCH, MEAN, STD, is_training=True, crop_padding=2, hflip=0., seed=seed)
    optimizer = create_optimizer_v2(task, 'adamw', lr=LR, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(optimizer, 'cosine', num_epochs=epochs, warmup_epochs=1, warmup_lr=LR / 10,
                                       step_on_epochs=False, updates_per_epoch=len(loader))
    task.train()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for step, (x, y) in enumerate(loader):
            scheduler.step_update(epoch * len(loader) + step)
            optimizer.zero_grad()
            task(x, y)['loss'].backward()
            optimizer.step()
        advance()


def create(spec: Spec, seed: int) -> torch.nn.Module:
    """A fresh timm model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return timm.create_model(spec[0], num_classes=10, pretrained_cfg_overlay=dict(mean=MEAN, std=STD), **spec[1])


def teacher_task(seed: int, method: sf_teacher.Method | None, teacher: Spec = TEACHER, student: Spec = STUDENT) \
        -> TrainingTask:
    """A task with a fresh teacher: plain training, or student-friendly with `method`."""
    model = create(teacher, seed)
    if method is None:
        return ClassificationTask(model, verbose=False)
    return sf_teacher.wrap(model, create(student, seed), method=method, input_size=SIZE)


def student_task(seed: int, teacher: torch.nn.Module, temperature: float, student: Spec = STUDENT) -> TrainingTask:
    """A task with a fresh student, the same for every teacher, that learns from the teacher's predictions alone."""
    return LogitDistillationTask(create(student, 1000 + seed), teacher, task_loss_weight=0., distill_loss_weight=1.,
                                 temperature=temperature, verbose=False)


def logits(model: torch.nn.Module, images: Images) -> torch.Tensor:
    """What a model says of images, in eval mode."""
    return predict(model, InMemoryLoader(*images, 400, MEAN, STD)).logits


def export_and_reload(task: TrainingTask, folder: Path, seed: int, images: Images) -> torch.nn.Module:
    """Export a teacher, load it with plain timm and compare the logits."""
    teacher = task.get_eval_model().eval()
    settings: dict[str, Any] = dict(mean=MEAN, std=STD, overwrite=True, metadata={
        'data': f'handwritten digits of scikit-learn, {LABELS} labelled images of each class', 'seed': seed})
    if isinstance(task, sf_teacher.StudentFriendlyTask):
        task.export(folder, **settings)         # the model card says which method and students
    else:
        sf_teacher.export(teacher, folder, input_size=SIZE, **settings)
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    if not torch.equal(logits(reloaded, images), logits(teacher, images)):
        raise SystemExit(f'{folder}: the reloaded teacher has other logits than the trained one')
    return reloaded


@contextlib.contextmanager
def progress(total: int) -> Iterator[tuple[Callable[[str], None], Advance]]:
    """One bar with the time that is left, lines where there is no terminal; yields announce(text) and advance()."""
    columns = (BarColumn(), TextColumn('{task.percentage:.0f} %'), TimeRemainingColumn(),
               TextColumn('{task.description}', markup=False))
    terminal = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not terminal) as bar:
        job = bar.add_task('', total=total)

        def announce(text: str) -> None:
            bar.update(job, description=text)
            task = bar.tasks[0]
            if not terminal:
                left = f'{timedelta(seconds=round(task.time_remaining))} left' if task.time_remaining else ''
                print(f'{task.percentage:3.0f} %  {text}  {left}'.rstrip(), file=sys.stderr, flush=True)
        yield announce, lambda: bar.advance(job)


def measured(teacher: torch.nn.Module, student: torch.nn.Module, images: Images) -> dict[str, float]:
    """Accuracies of both in %, and their divergence in nats."""
    z_t, z_s = logits(teacher, images), logits(student, images)
    return {'teacher': top1(z_t, images[1]).item(), 'student': top1(z_s, images[1]).item(),
            'kl': kl_divergence(z_t, z_s).item()}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """A row for each teacher, mean ± standard deviation over the seeds, then the paired differences."""
    def cell(values: list[float], digits: int) -> str:
        return f'{fmean(values):.{digits}f} ± {stdev(values) if len(values) > 1 else 0.:.{digits}f}'

    def row(*cells: str) -> str:
        return f'{cells[0]:<26}' + ''.join(f'{text:>18}' for text in cells[1:])

    lines = [row('', 'teacher acc. %', 'student acc. %', 'KL(T||S)')]
    lines += [row(name, *(cell([r[key] for r in rows], digits) for key, digits in (
        ('teacher', 2), ('student', 2), ('kl', 3)))) for name, rows in results.items()]
    standard, friendly = results.values()
    for key in ('teacher', 'student') if len(standard) > 1 else ():
        mean, half = interval([f[key] - s[key] for f, s in zip(friendly, standard, strict=True)])
        lines.append(f'{key}, student-friendly minus standard: {mean:+.2f} points, 95 % interval {mean - half:+.2f} to '
                     f'{mean + half:+.2f}, paired over seeds')
    return '\n'.join(lines)


def draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Accuracy of teachers and students; a dot is a model, lines join a seed, bars are means."""
    figure = Figure(figsize=(8, 3.8), layout='constrained')
    figure.suptitle(f'Handwritten digits: teachers with {LABELS} labelled images a class, students without labels')
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ('teacher', 'student'), strict=True):
        values = [[row[key] for row in rows] for rows in results.values()]
        axes.plot(range(len(values)), values, '-', color='0.8', zorder=1)
        for i, column in enumerate(values):
            axes.scatter([i] * len(column), column, color=f'C{i}', zorder=2)
            axes.hlines(fmean(column), i - 0.2, i + 0.2, color='black', zorder=3)
        axes.set_xticks(range(len(values)), [name.replace(' (', '\n(') for name in results])
        axes.set(title=f'{key}s', xlim=(-0.5, len(values) - 0.5))
        axes.spines[['top', 'right']].set_visible(False)
    figure.axes[0].set_ylabel('accuracy on the test images, %')
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5, help='how many (default %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('output/quickstart'), help='figure and exported teachers')
    parser.add_argument('--fast', action='store_true', help='1 seed, 2 epochs: shows that it runs, measures nothing')
    args = parser.parse_args()
    seeds, (t_epochs, s_epochs) = (1, (2, 2)) if args.fast else (args.seeds, (TEACHER_EPOCHS, STUDENT_EPOCHS))
    torch.set_num_threads(1)        # models this small gain nothing from more, and lose much on a busy machine
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    digits = Digits()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    with progress(seeds * len(ARMS) * (t_epochs + s_epochs)) as (announce, advance):
        for seed in range(seeds):
            few, others = digits.divided(seed)
            for name, (method, temperature) in ARMS.items():
                announce(f'seed {seed}: {name}')
                task = teacher_task(seed, method)
                fit(task, few, t_epochs, seed, advance)
                teacher = task.get_eval_model().eval().requires_grad_(False)
                if seed == 0:       # checked in a fresh process, which takes seconds
                    folder = args.out / ('sftn' if method else 'standard')
                    teacher = export_and_reload(task, folder, seed, digits.test)
                announce(f'seed {seed}: student of the {name}')
                task = student_task(seed, teacher, temperature)
                fit(task, others, s_epochs, seed, advance)
                results[name].append(measured(teacher, task.get_eval_model(), digits.test))
    draw(results, args.out / 'quickstart.png')
    print(f'{10 * LABELS} labelled images for the teachers, {len(others[1])} without labels for the students, '
          f'{len(digits.test[1])} test images; {seeds} seed(s)\n\n{table(results)}\n')
    print('--fast: these numbers mean nothing' if args.fast else
          'This is a check of the pipeline. With models and data this small the seeds differ more than the teachers,\n'
          'so no verdict is given. docs/results.md has what was measured.')
    print(f'Logits of the reloaded teachers: equal bit for bit. {time.perf_counter() - start:.0f} s\n\n'
          f'figure:   {args.out / "quickstart.png"}\nteachers: {args.out}/standard and sftn, of seed 0\n'
          f'try next: {sys.executable} -m sf_teacher train test_resnet --student test_efficientnet --data digits '
          f'--epochs 3 --output runs/first')


if __name__ == '__main__':
    main()
