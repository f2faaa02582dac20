"""The whole path on real data, nothing to download: does a student learn more from a student-friendly teacher?

For every seed a standard teacher and a student-friendly one (SFTN) are trained from the same initial weights for the
same number of epochs, exported, reloaded with plain timm, and the same student is distilled from each with
`timm.task.LogitDistillationTask`. It prints what it measured, also where there is no gain.

    python examples/quickstart.py            # prints a table, writes quickstart.png and the teachers to --out

Data: scikit-learn's handwritten digits, upscaled, few of them for training, shifted and with noise. Learning rates were
chosen for the standard teacher and its student, then `METHOD` for the student-friendly one, by a small sweep on the
validation images with other seeds (`examples/sweeps/digits.py`); what is printed here is measured on the test images.
With that recipe no setting tried there beat the standard teacher, and those reported for SFTN did harm; 300 updates are
perhaps too few for branches that start untrained. `METHOD` is the default. Three seeds are quick and say little: on two
machines they gave opposite signs; `--seeds 12` shows neither gain nor loss.
"""
from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask

import sf_teacher

matplotlib.use('agg')
import matplotlib.pyplot as plt

TEACHER, STUDENT = 'test_resnet', 'test_efficientnet'     # 0.37 M and 0.10 M parameters
METHOD = sf_teacher.SFTN()
SIZE, TRAIN, VALIDATION = 32, 200, 500
MEAN = STD = (0.5, 0.5, 0.5)
EPOCHS, BATCH = 30, 20
TEACHER_LR, STUDENT_LR = 1e-2, 4e-2
KD = dict(task_loss_weight=0.1, distill_loss_weight=0.9, temperature=4.)
Advance = Callable[[], None]


@dataclass
class Images:
    """Images [B, 3, SIZE, SIZE], normalised, and their labels [B]."""
    x: torch.Tensor
    y: torch.Tensor


def corrupt(x: torch.Tensor, generator: torch.Generator, shift: int = 5, noise: float = 0.7) -> torch.Tensor:
    """Shift every image by up to `shift` pixels and add noise."""
    dx, dy = torch.randint(-shift, shift + 1, (2, len(x)), generator=generator)
    rows = torch.arange(x.shape[-2])[None, :] + dy[:, None] + shift
    columns = torch.arange(x.shape[-1])[None, :] + dx[:, None] + shift
    padded = F.pad(x, (shift,) * 4, value=-1.)
    x = padded[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return x + noise * torch.randn(x.shape, generator=generator)


def load(split_seed: int = 0) -> tuple[Images, Images, Images]:
    """Training images (clean; corrupted anew in every epoch), validation and test images (corrupted once)."""
    digits = load_digits()
    generator = torch.Generator().manual_seed(split_seed)
    order = torch.randperm(len(digits.target), generator=generator)
    x = torch.from_numpy(digits.images).float()[order, None] / 16
    x = F.interpolate(x, size=(SIZE, SIZE), mode='bilinear').expand(-1, 3, -1, -1)
    x = (x - MEAN[0]) / STD[0]
    y = torch.from_numpy(digits.target).long()[order]
    held_out = corrupt(x[TRAIN:], generator)
    return (Images(x[:TRAIN], y[:TRAIN]),
            Images(held_out[:VALIDATION], y[TRAIN:TRAIN + VALIDATION]),
            Images(held_out[VALIDATION:], y[TRAIN + VALIDATION:]))


def fit(task: TrainingTask, data: Images, epochs: int, lr: float, seed: int, advance: Advance = lambda: None) -> None:
    """Train any timm task; teachers and students, standard and student-friendly, all go through this loop."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = create_optimizer_v2(task, 'adamw', lr=lr, weight_decay=0.05)
    updates = math.ceil(len(data.y) / BATCH)
    scheduler, _ = create_scheduler_v2(optimizer, 'cosine', num_epochs=epochs, warmup_epochs=min(3, epochs - 1),
                                       warmup_lr=lr / 10, step_on_epochs=False, updates_per_epoch=updates)
    task.train()
    step = 0
    for _ in range(epochs):
        x = corrupt(data.x, generator)
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            scheduler.step_update(step)
            optimizer.zero_grad()
            task(x[batch], data.y[batch])['loss'].backward()
            optimizer.step()
            step += 1
        advance()


@torch.no_grad()
def predict(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits in eval mode."""
    model.eval()
    return torch.cat([model(part) for part in x.split(256)])


def accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
    """Top-1 in per cent."""
    return 100 * (logits.argmax(1) == y).float().mean().item()


def create(name: str, seed: int) -> torch.nn.Module:
    """A fresh timm model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=10, pretrained_cfg_overlay=dict(mean=MEAN, std=STD))


def teacher_task(seed: int, method: sf_teacher.Method | None) -> TrainingTask:
    """A task with a fresh teacher: plain training, or student-friendly with `method`."""
    teacher = create(TEACHER, seed)
    if method is None:
        return ClassificationTask(teacher, verbose=False)
    return sf_teacher.wrap(teacher, create(STUDENT, seed), method=method, input_size=(3, SIZE, SIZE))


def trained(task: TrainingTask) -> torch.nn.Module:
    """The plain model that a task has trained."""
    return task.get_eval_model().eval()


def student_task(seed: int, teacher: torch.nn.Module | None, **kd: float) -> TrainingTask:
    """A task with a fresh student, the same for every teacher: alone, or distilled by timm."""
    student = create(STUDENT, 1000 + seed)
    if teacher is None:
        return ClassificationTask(student, verbose=False)
    return LogitDistillationTask(student, teacher.requires_grad_(False), verbose=False, **{**KD, **kd})


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """KL(teacher || student) in nats, from logits [B, K]."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction='batchmean', log_target=True).item()


def export_and_reload(task: TrainingTask, folder: Path, seed: int, test: Images) -> torch.nn.Module:
    """Export a teacher, load it with plain timm and compare the logits."""
    teacher = trained(task)
    settings = dict(mean=MEAN, std=STD, overwrite=True, metadata={
        'data': f'scikit-learn handwritten digits, {TRAIN} training images', 'seed': seed,
        'metrics': {'test top-1': round(accuracy(predict(teacher, test.x), test.y), 2)}})
    if isinstance(task, sf_teacher.StudentFriendlyTask):
        task.export(folder, **settings)         # the model card says which method and students
    else:
        sf_teacher.export(teacher, folder, input_size=(3, SIZE, SIZE), **settings)
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
    if not torch.equal(predict(reloaded, test.x), predict(teacher, test.x)):
        raise SystemExit(f'{folder}: the reloaded teacher has other logits than the trained one')
    return reloaded


@contextlib.contextmanager
def progress(total: int) -> Iterator[tuple[Callable[[str], None], Advance]]:
    """A bar where there is a terminal, plain lines where there is none; yields announce(text) and advance()."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr, flush=True), lambda: None
        return
    columns = BarColumn(), MofNCompleteColumn(), TextColumn('epochs'), TimeElapsedColumn()
    with Progress(*columns, TextColumn('{task.description}'), console=Console(stderr=True)) as bar:
        job = bar.add_task('', total=total)
        yield lambda text: bar.update(job, description=text), lambda: bar.advance(job)


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean of paired differences and its 95 % interval (Student's t over the seeds)."""
    mean, n = statistics.mean(differences), len(differences)
    half = student_t.ppf(0.975, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - half, mean + half


def verdict(what: str, differences: list[float]) -> str:
    """One line that says what was measured, and whether it differs from zero."""
    if len(differences) < 2:
        return f'{what}: {differences[0]:+.2f} points (one seed says nothing about the spread)'
    mean, low, high = interval(differences)
    found = 'gain' if low > 0 else 'loss' if high < 0 else 'no gain: the interval includes zero'
    return f'{what}: {mean:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, paired over seeds): {found}'


def spread(values: list[float], digits: int) -> str:
    return f'{statistics.mean(values):.{digits}f} ± {statistics.stdev(values) if len(values) > 1 else 0:.{digits}f}'


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """One row for each way to train the student, mean ± standard deviation over the seeds."""
    lines = [f'{"":<24}{"teacher acc. %":>16}{"student acc. %":>16}{"KL(T||S)":>18}{"agreement %":>16}']
    for name, rows in results.items():
        cells = [spread([r[key] for r in rows], n) if key in rows[0] else '-'
                 for key, n in (('teacher', 2), ('student', 2), ('kl', 3), ('agreement', 2))]
        lines.append(f'{name:<24}{cells[0]:>16}{cells[1]:>16}{cells[2]:>18}{cells[3]:>16}')
    return '\n'.join(lines)


def figure(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Accuracy of the students and their divergence from the teacher; a dot is a seed, lines join the same seed."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout='constrained')
    panels = ('student', 'student accuracy on the test images, %'), ('kl', 'KL(teacher || student), nats')
    for ax, (key, label) in zip(axes, panels, strict=True):
        names = [name for name, rows in results.items() if key in rows[0]]
        values = [[row[key] for row in results[name]] for name in names]
        ax.plot(range(len(names)), values, '-', color='0.8', zorder=1)
        for i, column in enumerate(values):
            ax.scatter([i] * len(column), column, color=f'C{i + len(results) - len(names)}', zorder=2)
            ax.hlines(statistics.mean(column), i - 0.2, i + 0.2, color='black', zorder=3)
        ax.set_xticks(range(len(names)), [name.replace(' (', '\n(').replace(', ', '\n') for name in names])
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.set_ylabel(label)
        ax.spines[['top', 'right']].set_visible(False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3, help='how many (default %(default)s)')
    parser.add_argument('--epochs', type=int, default=EPOCHS, help='of every model (default %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('output/quickstart'), help='figure and exported teachers')
    parser.add_argument('--fast', action='store_true', help='1 seed, 2 epochs: shows that it runs, measures nothing')
    args = parser.parse_args()
    seeds, epochs = (1, 2) if args.fast else (args.seeds, args.epochs)
    torch.set_num_threads(1)        # models this small gain nothing from more, and lose much on a busy machine
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    train, _, test = load()
    kinds: dict[str, sf_teacher.Method | None] = {'standard teacher': None, 'student-friendly (SFTN)': METHOD}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ('student alone', *kinds)}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    with progress(seeds * 5 * epochs) as (announce, advance):
        for seed in range(seeds):
            announce(f'seed {seed}: student alone')
            task = student_task(seed, None)
            fit(task, train, epochs, STUDENT_LR, seed, advance)
            results['student alone'].append({'student': accuracy(predict(trained(task), test.x), test.y)})
            for name, method in kinds.items():
                announce(f'seed {seed}: {name}')
                task = teacher_task(seed, method)
                own = sum(p.numel() for p in trained(task).parameters())
                added = sum(p.numel() for p in task.parameters()) - own
                began = time.process_time()
                fit(task, train, epochs, TEACHER_LR, seed, advance)
                seconds[name].append(time.process_time() - began)
                folder = args.out / f'{"sftn" if method else "standard"}-seed{seed}'
                teacher = export_and_reload(task, folder, seed, test)
                announce(f'seed {seed}: student of the {name.split(" (")[0]}')
                task = student_task(seed, teacher)
                fit(task, train, epochs, STUDENT_LR, seed, advance)
                z_t, z_s = predict(teacher, test.x), predict(trained(task), test.x)
                results[name].append({
                    'teacher': accuracy(z_t, test.y), 'student': accuracy(z_s, test.y), 'kl': divergence(z_t, z_s),
                    'agreement': accuracy(z_s, z_t.argmax(1))})
    figure(results, args.out / 'quickstart.png')
    alone, standard, friendly = results.values()
    print(f'{TEACHER} -> {STUDENT}, {len(train.y)} training and {len(test.y)} test images, {epochs} epochs each, '
          f'{seeds} seed(s), mean ± standard deviation\n')
    print(table(results), end='\n\n')
    print(verdict('headroom, standard teacher over student alone',
                  [t['teacher'] - s['student'] for t, s in zip(standard, alone, strict=True)]))
    for key in ('student', 'teacher'):
        print(verdict(f'{key}, student-friendly over standard',
                      [f[key] - s[key] for f, s in zip(friendly, standard, strict=True)]))
    plain, cost = (statistics.median(values) for values in seconds.values())
    print(f'cost: {added / 1e6:.2f} M parameters beside the {own / 1e6:.2f} M of the teacher in training, none after; '
          f'training took {cost / plain:.1f} times the CPU time')
    print(f'reloaded teachers: logits equal bit for bit; figure and teachers in {args.out}; '
          f'{time.perf_counter() - start:.0f} s')
    if args.fast:
        print('--fast: these numbers mean nothing')


if __name__ == '__main__':
    main()
