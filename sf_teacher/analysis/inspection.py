"""`sf-teacher inspect`: what would be attached where, why, and what a training step would cost."""
from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..checks import check_model, check_size
from ..cost import joint_cost, step_cost
from ..errors import SFTeacherError
from ..factory import create_model
from ..methods import get_method
from ..methods.base import Method, options
from ..split.boundaries import Size, default_input_size
from ..split.pairing import default_boundaries
from ..split.selection import Boundaries
from ..split.split_points import student_boundaries
from ..split.teacher_taps import teacher_boundaries
from ..task import StudentFriendlyTask
from .columns import columns

_logger = logging.getLogger(__name__)


def inspect(
        teacher: str,
        students: Sequence[str] = (),
        *,
        method: str | Method = 'sftn',
        num_classes: int | None = None,
        boundaries: Boundaries | None = None,
        input_size: Size | None = None,
) -> dict[str, Any]:
    """Describe a teacher, its students, how they would be joined, and the cost of a training step.

    The teacher takes no memory: it is built and run on the meta device where it allows that. FLOPs count a
    multiplication and an addition as two; activations are the tensors that autograd keeps for the backward pass.

    Args:
        teacher: timm name.
        students: timm names; without any, only the teacher is described (unless the method needs none).
        method: As in `wrap`.
        num_classes: As in `wrap`.
        boundaries: As in `wrap`.
        input_size: As in `wrap`.

    Returns:
        Plain values, as ``sf-teacher inspect --json`` prints them.

    Raises:
        SFTeacherError: As `wrap`.
    """
    config = get_method(method)
    model, size = _teacher(teacher, num_classes, input_size)
    classes = model.num_classes
    found, _ = teacher_boundaries(model, size)
    chosen = {b.name for b in default_boundaries(found)}
    result: dict[str, Any] = {
        'teacher': {'name': teacher, 'parameters': _count(model), 'stages': [_stage(b, chosen) for b in found]},
        'num_classes': classes,
        'input_size': list(size),
        'students': [],
        'method': {'name': type(config).__name__, **options(config)},
        'plain_step': step_cost(model, size, lambda x: model(x).sum()),
    }
    built = []
    for name in students:
        student = create_model(name, 'student', classes, size, {'in_chans': size[0]} if size[0] != 3 else {})
        check_model(student, 'student')
        ends, _ = student_boundaries(student, size)
        used = {b.name for b in default_boundaries(ends)}
        result['students'].append(
            {'name': name, 'parameters': _count(student), 'stages': [_stage(b, used) for b in ends]})
        built.append(student)
    if not built and config.takes_students:
        return result
    task = StudentFriendlyTask(model, None, built, config, boundaries, size, verbose=False)
    used = {b.name for b in task.joint.boundaries}
    result['teacher']['stages'] = [_stage(b, used) for b in found]
    result['branches'] = task.branches.describe() if hasattr(task.branches, 'describe') else []
    result['pairs'] = _pairs(task)
    result['branch_parameters'] = _count(task.branches) if task.branches is not None else 0
    task.set_epoch(0, 1)
    result['step'] = joint_cost(task)
    return result


def _teacher(name: str, num_classes: int | None, input_size: Size | None) -> tuple[Any, Size]:
    for device in ('meta', 'cpu'):
        try:
            with torch.device(device):
                weights: dict[str, Any] = {'pretrained': False} if device == 'meta' else {}     # meta has none
                model = create_model(name, 'teacher', num_classes, input_size, weights)
            check_model(model, 'teacher')
            size = check_size(input_size or default_input_size(model))
            if device == 'meta':
                model.eval()(torch.empty(1, *size, device='meta'))
            return model.train(), size
        except SFTeacherError:
            raise
        except Exception as error:  # computes with values: one real pass
            if device == 'cpu':
                raise SFTeacherError(f'{name} does not run on input_size={input_size} ({error})') from error
            _logger.info('%s does not run on the meta device (%s)', name, error)
    raise AssertionError('unreachable')


def _stage(boundary: Any, used: set[str]) -> dict[str, Any]:
    return {
        'name': boundary.name,
        'index': boundary.index,
        'features': [str(layout) for layout in boundary.layouts],
        'depth': round(boundary.depth, 3),
        'used': boundary.name in used,
    }


def _pairs(task: StudentFriendlyTask) -> list[dict[str, Any]]:
    """Which teacher boundary feeds which of a student's, and why; empty for methods that make their own branches."""
    pairs = []
    for branch in getattr(task.branches, 'branches', []):
        if hasattr(branch, 'student'):
            t, s = branch.source, branch.student
            pairs.append({
                'teacher': t.name, 'student': s.name,
                'why': f'depth {t.depth:.2f} and {s.depth:.2f}, map {t.size[0]}x{t.size[1]} and '
                       f'{s.size[0]}x{s.size[1]}',
                'transform': str(branch.transform), 'parameters': _count(branch.transform),
            })
    return pairs


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def render(result: dict[str, Any]) -> str:
    """The description as text."""
    lines = [f'{result["num_classes"]} classes, input {"x".join(map(str, result["input_size"]))}']
    for role, models in (('teacher', [result['teacher']]), ('student', result['students'])):
        for m in models:
            lines += ['', f'{role} {m["name"]}: {m["parameters"] / 1e6:.2f} M parameters']
            rows = [('*' if s['used'] else '', str(s['index']), s['name'], ' & '.join(s['features']),
                     f'depth {s["depth"]:.2f}') for s in m['stages']]
            lines += columns(rows)
    if 'step' not in result:
        lines += ['', '* = used by default. Name a student to see the branches and their cost.']
        return '\n'.join([*lines, _step('plain training', result['plain_step'])])
    name, *rest = result['method'].items()
    lines += ['', f'{name[1]}: ' + ', '.join(f'{k}={v!r}' for k, v in rest), '* = a branch is attached here (teacher), '
              'or a default boundary (student)']
    lines += columns([('', p['teacher'], '->', p['student'], p['why']) for p in result['pairs']])
    lines += ['', *(f'  {line}' for line in result['branches']), '',
              f'branches: {result["branch_parameters"] / 1e6:.2f} M parameters while training, none in the export',
              _step('plain training', result['plain_step']), _step('with branches', result['step'])]
    ratio = {k: result['step'][k] / result['plain_step'][k] for k in result['step']}
    return '\n'.join([*lines, f'{"ratio":>15}: {ratio["gflops_per_image"]:10.2f} x      '
                              f'{ratio["activation_mb_per_image"]:10.2f} x'])


def _step(name: str, cost: dict[str, float]) -> str:
    return (f'{name:>15}: {cost["gflops_per_image"]:10.2f} GFLOP, {cost["activation_mb_per_image"]:10.2f} MiB of '
            f'activations per image and step')
