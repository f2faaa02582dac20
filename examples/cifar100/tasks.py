"""What a run trains: fresh models, or trained ones of other runs, in the task of its arm."""
from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import nets
import timm
import torch
from beside import HALFWAY
from nets import MEAN, STD
from protocol import Run, Spec
from rivals import RivalTask
from runs import BRANCH_SEED
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from torch import nn

import sf_teacher
from sf_teacher.exporting.reload import TEACHER, sha256
from sf_teacher.methods import METHODS


def build(spec: Spec, seed: int, num_classes: int) -> nn.Module:
    """A fresh model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    if 'cifar' in spec:
        return nets.build(spec['cifar'], num_classes)
    arguments = {k: v for k, v in spec.items() if k != 'name'}
    return timm.create_model(spec['name'], num_classes=num_classes, pretrained_cfg_overlay=dict(mean=MEAN, std=STD),
                             **arguments)


class Models:
    """Gives runs their models.

    Args:
        work: Folder of exported teachers.
        device: Where the models go.
    """

    def __init__(self, work: Path, device: str) -> None:
        self.work, self.device = work, torch.device(device)

    def task(self, run: Run, num_classes: int) -> TrainingTask:
        """The task of a run, with fresh models or with the weights that it starts from."""
        s, seed = run.settings, run.seed
        if run.kind == 'student':
            student = build(s['model'], 1000 + seed, num_classes).to(self.device)
            if 'teacher' not in s:
                return ClassificationTask(student, device=self.device, verbose=False)
            cls: Any = LogitDistillationTask
            if s.get('loss'):
                cls = partial(RivalTask, loss=s['loss'], unlabelled=s.get('unlabelled', False))
            if s.get('simplifier'):
                cls = partial(sf_teacher.StudentFriendlyKDTask, simplifier_lr=s['simplifier'])
            teacher = self.teacher(s['teacher'], s.get('halfway', False))
            return cls(student, teacher, device=self.device, verbose=False, **s['kd'])
        teacher = build(s['model'], seed, num_classes)
        if s['after']:
            teacher.load_state_dict(self.teacher(s['after']).state_dict())
        teacher.to(self.device)
        if 'method' not in s:
            return ClassificationTask(teacher, device=self.device, verbose=False)
        method = METHODS[s['method']](**s['options'], **({'kl_ramp': s['ramp']} if s.get('ramp') else {}))
        branches = s['branch'] if isinstance(s['branch'], list) else [s['branch']]
        students = [build(b, BRANCH_SEED + seed, num_classes) for b in branches] if method.takes_students else []
        if s.get('guide'):
            students[0].load_state_dict(self.teacher(s['guide']).state_dict())
        boundaries = s['boundaries'] and [tuple(b) if isinstance(b, list) else b for b in s['boundaries']]
        return sf_teacher.wrap(teacher, students, method=method, boundaries=boundaries,
                               input_size=(3, s['size'], s['size']))

    def teacher(self, key: str, halfway: bool = False) -> nn.Module:
        """An exported teacher, or what it was after half of its epochs, frozen and in eval mode."""
        folder = self.work / key / 'teacher'
        config = json.loads((folder / 'config.json').read_text())
        if config.get('factory'):
            model: nn.Module = nets.build(**config['model_args'])
            model.load_state_dict(torch.load(folder / 'teacher.pth', weights_only=True)['model'])
        else:
            model = timm.create_model(f'local-dir:{folder}', pretrained=True)
        if halfway:
            model.load_state_dict(torch.load(self.work / key / HALFWAY, weights_only=True))
        return model.to(self.device).eval().requires_grad_(False)

    def weights(self, key: str) -> str:
        """What tells an exported teacher's weights from other ones."""
        return sha256(self.work / key / 'teacher' / TEACHER)[:8]
