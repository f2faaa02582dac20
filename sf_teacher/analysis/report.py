"""How distillable is a teacher? Measured with pilot students, never predicted without them."""
from __future__ import annotations

import json
import logging
import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from timm.utils import unwrap_model
from timm.utils.distributed import is_distributed_env
from torch import nn

from ..errors import SettingError, SFTeacherError
from ..split.pairing import default_boundaries, pair_boundaries
from ..split.teacher_taps import teacher_boundaries
from ..training.components import eval_model
from ..training.data import load_data
from ..training.fitting import fit
from ..training.loading import load_teacher
from ..training.planning import KD_SETTINGS, Plan, plan_student
from ..training.run_folder import write_atomically
from ..training.settings import ReportRun, StudentRun
from ..validation import setting
from .similarity import Seen, calibration_error, divergence, entropy, interval, linear_cka, see

_logger = logging.getLogger(__name__)

ALONE = 'student alone'


def report(config: ReportRun) -> dict[str, Any]:
    """Train pilot students from each teacher and alone, and compare; writes report.json and report.png.

    Args:
        config: Teachers, student, data, and how the pilot students are trained.

    Returns:
        What report.json holds: for each teacher its accuracy, entropy and calibration, and over the seeds the
        students' accuracy, agreement, divergence and CKA; for each comparison the paired difference and a verdict.

    Raises:
        SFTeacherError: Something does not fit, or matplotlib is missing; no student has been trained.
    """
    folders = list(dict.fromkeys([*([config.baseline] if config.baseline else []), *config.teachers]))
    if not folders:
        raise SettingError('no teacher: give the exported folder of at least one, and a standard one as baseline')
    if not config.output:
        raise SettingError(f'no {setting("output")}: give the folder for report.json and report.png')
    if config.teacher:
        raise SFTeacherError(f'teacher={config.teacher!r} is a setting of distill: give the teachers of a report as '
                             f'`teachers` (without a flag on the command line)')
    if is_distributed_env():
        raise SFTeacherError('a report is made by one process: start it without torchrun')
    _matplotlib()
    # finds what cannot be loaded before any student is trained
    sizes = [resolve_data_config({}, model=load_teacher(folder))['input_size'] for folder in folders]
    if config.input_size is None and len({tuple(size) for size in sizes}) > 1:
        raise SFTeacherError(f'the teachers were exported for images of {" and ".join(map(str, sizes))}: their '
                             f'students would not be comparable; give {setting("input_size")}, one for all')
    common = {f.name: getattr(config, f.name) for f in fields(StudentRun)}
    pilot = StudentRun(**{**common, 'output': '', 'resume': False})
    data = load_data(pilot, pilot.seed, (pilot.input_size or sizes[0])[0])
    arms: dict[str, list[dict[str, Any]]] = {}
    teachers: dict[str, Any] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        for folder in [*folders, '']:
            like = plan_student(replace(pilot, teacher=folder or folders[0], seed=seed), data)
            plan = like if folder else plan_student(replace(
                pilot, seed=seed, input_size=like.config.input_size, mean=like.config.mean, std=like.config.std,
                interpolation=like.config.interpolation, crop_pct=like.config.crop_pct,
                **{name: getattr(StudentRun(), name) for name in KD_SETTINGS}), data)
            if not arms:        # everything has been checked
                _make_folder(config.output)
            name = folder or ALONE
            row, teacher = _pilot(plan)
            arms.setdefault(name, []).append({'seed': seed, **row})
            if teacher is not None:
                teachers[name] = teacher
            _logger.info('seed %d, %s: student %.2f %%', seed, name, row['student_top1'])
    result = {
        'student': config.student, 'data': config.data or config.dataset, 'epochs': config.epochs,
        'teachers': teachers, 'pilots': arms,
        'comparisons': [_compare(arms, name, reference) for name in folders
                        for reference in ([config.baseline] if config.baseline not in ('', name) else []) + [ALONE]],
    }
    write_atomically(Path(config.output) / 'report.json', lambda file: _put_json(file, result))
    _figure(result, Path(config.output) / 'report.png')
    return result


def _make_folder(output: str) -> None:
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SFTeacherError(f'cannot write to {setting("output", output)}: {error}') from error


def table(result: dict[str, Any]) -> str:
    """The report as text."""
    head = ('teacher', 'accuracy', 'entropy', 'ECE', 'student', 'agreement', 'KL', 'CKA by stage')
    rows = [head]
    for name, pilots in result['pilots'].items():
        teacher = result['teachers'].get(name)
        mean, half = interval([p['student_top1'] for p in pilots])
        own = [f'{teacher["top1"]:.2f}', f'{teacher["entropy"]:.3f}', f'{teacher["ece"]:.3f}'] if teacher else ['-'] * 3
        shared = ['-'] * 3
        if teacher:
            cka = ' '.join(f'{statistics.fmean(p["cka"][i]["value"] for p in pilots):.2f}'
                           for i in range(len(pilots[0]['cka'])))
            shared = [*(f'{statistics.fmean(p[k] for p in pilots):.3f}' for k in ('agreement', 'kl')), cka]
        rows.append((name, *own, f'{mean:.2f} ± {half:.2f}', *shared))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ['  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    verdicts = [c['verdict'] for c in result['comparisons']]
    note = f'Students: {result["student"]}, {result["epochs"]} epochs, {len(next(iter(result["pilots"].values())))} ' \
           f'seeds, 95 % confidence. The teachers are one each: their own spread is not in these intervals.'
    return '\n'.join([*lines, '', *verdicts, note])


def _pilot(plan: Plan) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Train one student; what it and its teacher are worth on the validation images."""
    fit(plan.task, plan.train_loader, None, plan.config)
    student, teacher = unwrap_model(eval_model(plan.task, plan.config.model_ema)), getattr(plan.task, 'teacher', None)
    if teacher is None:
        seen = see(student, plan.eval_loader)
        return {'student_top1': _top1(seen)}, None
    pairs = _pairs(teacher.model, student, plan.config.input_size)
    task: Any = plan.task       # the teacher sees its own mean and std, in training as here
    images = ((teacher.normalize_input(x.to(task.device), task.student_mean, task.student_std), y)
              for x, y in plan.eval_loader)
    a = see(teacher.model, images, [t for t, _ in pairs])
    b = see(student, plan.eval_loader, [s for _, s in pairs])
    row = {
        'student_top1': _top1(b),
        'agreement': (a.logits.argmax(-1) == b.logits.argmax(-1)).float().mean().item(),
        'kl': divergence(a.logits, b.logits),
        'cka': [{'teacher': t.name, 'student': s.name, 'value': linear_cka(x, y)}
                for (t, s), x, y in zip(pairs, a.features, b.features, strict=True)],
    }
    return row, {'top1': _top1(a), 'entropy': entropy(a.logits), 'ece': calibration_error(a.logits, a.labels)}


def _pairs(teacher: nn.Module, student: nn.Module, size: Any) -> list[tuple[Any, Any]]:
    found = [default_boundaries(teacher_boundaries(m, size)[0]) for m in (teacher, student)]
    return pair_boundaries(found[0], found[1], every=False)


def _compare(arms: dict[str, list[dict[str, Any]]], name: str, reference: str) -> dict[str, Any]:
    """The difference that a teacher makes to its students, seed by seed."""
    gains = [a['student_top1'] - b['student_top1'] for a, b in zip(arms[name], arms[reference], strict=True)]
    mean, half = interval(gains)
    kind = 'gain' if mean > half else 'loss' if -mean > half else 'no gain'
    than = reference if reference == ALONE else f'students of {reference}'
    verdict = f'{kind}: students of {name} are {mean:+.2f} points against {than} (95 %: {mean - half:+.2f} to ' \
              f'{mean + half:+.2f})'
    return {'teacher': name, 'reference': reference, 'gains': gains, 'mean': mean, 'half_width': half, 'kind': kind,
            'verdict': verdict}


def _top1(seen: Seen) -> float:
    return (seen.logits.argmax(-1) == seen.labels).float().mean().item() * 100


def _matplotlib() -> Any:
    try:
        import matplotlib
        matplotlib.use('agg')
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise SFTeacherError('the figure needs matplotlib: pip install matplotlib') from error
    return plt


def _figure(result: dict[str, Any], path: Path) -> None:
    plt = _matplotlib()
    names = list(result['pilots'])
    labels = [Path(n).parent.name + '/' + Path(n).name if '/' in n else n for n in names]
    labels = labels if len(set(labels)) == len(names) else names
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    values = [interval([p['student_top1'] for p in result['pilots'][n]]) for n in names]
    left.barh(labels, [v[0] for v in values], xerr=[v[1] for v in values], color='tab:blue', height=0.5)
    left.set(title=f'{result["student"]} after {result["epochs"]} epochs', xlabel='accuracy (%), 95 % interval')
    for name, label in zip(names, labels, strict=True):
        if name in result['teachers']:
            cka = [[c['value'] for c in p['cka']] for p in result['pilots'][name]]
            right.plot([statistics.fmean(stage) for stage in zip(*cka, strict=True)], marker='o', label=label)
    right.set(title='similarity of teacher and student', xlabel='stage', ylabel='CKA', ylim=(0, 1))
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _put_json(file: Any, result: dict[str, Any]) -> None:
    file.write((json.dumps(result, indent=1) + '\n').encode())
