"""Does the runs of a protocol: trains a model as a run says, compares it with its teacher, writes one JSON file."""
from __future__ import annotations

import hashlib
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import nets
import timm
import torch
from nets import MEAN, STD
from protocol import Protocol, Run, Spec
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from torch import nn

import sf_teacher
from sf_teacher.analysis.similarity import predict
from sf_teacher.exporting.reload import TEACHER, sha256
from sf_teacher.functional import calibration_error, kl_divergence, linear_cka
from sf_teacher.methods import METHODS
from sf_teacher.split.boundaries import Boundary
from sf_teacher.split.pairing import default_boundaries
from sf_teacher.split.teacher_taps import teacher_boundaries
from sf_teacher.training import TrainConfig, fit
from sf_teacher.training.data import load_data
from sf_teacher.training.in_memory import InMemoryLoader, load_images
from sf_teacher.training.run_folder import write_atomically
from sf_teacher.training.settings import DataConfig

Images = dict[str, tuple[torch.Tensor, torch.Tensor]]


def load(source: DataConfig, cache: Path, size: int) -> Images:
    """All images, decoded once: uint8 [N, 3, size, size] and labels [N] by split."""
    path = cache / f'images-{size}-{hashlib.sha256(repr(source).encode()).hexdigest()[:8]}.pt'
    if not path.exists():
        data = load_data(source)
        images = {split: load_images(part, (3, size, size))
                  for split, part in (('train', data.train), ('test', data.validation))}
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(images, file))
    return torch.load(path, mmap=True)


def build(spec: Spec, seed: int, num_classes: int) -> nn.Module:
    """A fresh model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    if 'cifar' in spec:
        return nets.build(spec['cifar'], num_classes)
    arguments = {k: v for k, v in spec.items() if k != 'name'}
    return timm.create_model(spec['name'], num_classes=num_classes, pretrained_cfg_overlay=dict(mean=MEAN, std=STD),
                             **arguments)


class Worker:
    """Does the runs of a protocol.

    Args:
        images: By split, see `load`.
        protocol: The protocol.
        work: Folder of checkpoints and teachers.
        results: Folder of the JSON files.
        device: Where to train.
        again: Runs to do although they have a result.
    """

    def __init__(self, images: Images, protocol: Protocol, work: Path, results: Path, device: str,
                 again: set[str]) -> None:
        self.protocol, self.work, self.device, self.again = protocol, work, torch.device(device), again
        self.results = results / protocol.results
        first, end = protocol.classes
        self.num_classes, self.size = end - first, (3, protocol.size, protocol.size)
        self.images: Images = {}
        for split, (pixels, labels) in images.items():
            keep = ((labels >= first) & (labels < end)).nonzero()[:, 0]
            if split == 'train' and protocol.per_class:
                keep = torch.cat([keep[labels[keep] == k][:protocol.per_class] for k in range(first, end)])
            self.images[split] = pixels[keep], labels[keep] - first

    def run(self, run: Run) -> None:
        """Train what `run` says, unless it is done, and write its JSON file."""
        path = self.results / f'{run.key}.json'
        if path.exists() and run.key not in self.again:
            return
        task = self.task(run)
        train: Any = self.loader('train', run.seed)
        test = self.loader('test')
        folder = self.folder(run)
        config = TrainConfig(**run.settings['train'], seed=run.seed, device=str(self.device), log_interval=10 ** 6,
                             output=str(folder), resume=(folder / 'config.yaml').exists())
        rows = fit(task, train, test, config)
        model = task.get_eval_model().eval()
        if run.kind == 'teacher':
            self.export(model, run)
        result = {
            'kind': run.kind, 'pair': run.pair, 'arm': run.arm, 'student': run.student, 'seed': run.seed,
            'settings': run.settings, 'top1': rows[-1]['eval_top1'],
            'curve': [round(row['eval_top1'], 2) for row in rows], **self.compared(model, task, test),
            'seconds': round(sum(row['seconds'] for row in rows), 1),
            'memory_mb': round(max(row['memory_mb'] for row in rows)), 'machine': machine(self.device)}
        if path.exists() and json.loads(path.read_text())['curve'] != result['curve']:
            self.forget(run.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1) + '\n'
        write_atomically(path, lambda file: file.write(text.encode()))
        print(f'{run.kind} {run.pair} [{run.arm}] {run.student} seed {run.seed}: {result["top1"]:.2f} % in '
              f'{result["seconds"]:.0f} s', flush=True)

    def folder(self, run: Run) -> Path:
        """Where its checkpoints are; those of a run that starts from a teacher go with that teacher's weights."""
        key = run.settings.get('teacher') or run.settings.get('after')
        return self.work / (f'{run.key}-{sha256(self.work / key / "teacher" / TEACHER)[:8]}' if key else run.key)

    def forget(self, key: str) -> None:
        """Remove the results of what came of a teacher, trained again with other weights on another machine."""
        for path in self.results.glob('*.json'):
            settings = json.loads(path.read_text())['settings']
            if key in (settings.get('teacher'), settings.get('after')):
                print(f'{path.stem} came of another {key}: to be done again', flush=True)
                path.unlink()
                if settings.get('after'):
                    self.forget(path.stem)

    def task(self, run: Run) -> TrainingTask:
        """The task of a run, with fresh models or with the weights that it starts from."""
        s, seed = run.settings, run.seed
        if run.kind == 'student':
            student = build(s['model'], 1000 + seed, self.num_classes).to(self.device)
            if 'teacher' not in s:
                return ClassificationTask(student, device=self.device, verbose=False)
            cls: Any = LogitDistillationTask
            if s.get('simplifier'):
                cls = partial(sf_teacher.StudentFriendlyKDTask, simplifier_lr=s['simplifier'])
            return cls(student, self.teacher(s['teacher']), device=self.device, verbose=False, **s['kd'])
        teacher = build(s['model'], seed, self.num_classes)
        if s['after']:
            teacher.load_state_dict(self.teacher(s['after']).state_dict())
        teacher.to(self.device)
        if 'method' not in s:
            return ClassificationTask(teacher, device=self.device, verbose=False)
        method = METHODS[s['method']](**s['options'], **({'kl_ramp': s['ramp']} if s['ramp'] else {}))
        branches = s['branch'] if isinstance(s['branch'], list) else [s['branch']]
        students = [build(b, 2000 + seed, self.num_classes) for b in branches] if method.takes_students else []
        boundaries = s['boundaries'] and [tuple(b) if isinstance(b, list) else b for b in s['boundaries']]
        return sf_teacher.wrap(teacher, students, method=method, boundaries=boundaries, input_size=self.size)

    def loader(self, split: str, seed: int = 0) -> InMemoryLoader:
        batch = self.protocol.batch_size if split == 'train' else 500
        return InMemoryLoader(*self.images[split], batch, MEAN, STD, split == 'train', seed=seed, device=self.device)

    def export(self, model: nn.Module, run: Run) -> None:
        """Export a teacher; its students learn from what the folder gives back."""
        spec = run.settings['model']
        own: dict[str, Any] = {} if 'name' in spec else dict(
            factory='nets:build', model_args={'name': spec['cifar'], 'num_classes': self.num_classes})
        sf_teacher.export(
            model, self.work / run.key / 'teacher', input_size=self.size, mean=MEAN, std=STD, overwrite=True,
            metadata={'data': 'CIFAR-100', 'seed': run.seed, 'settings': run.settings}, **own)

    def teacher(self, key: str) -> nn.Module:
        """An exported teacher, frozen and in eval mode."""
        folder = self.work / key / 'teacher'
        config = json.loads((folder / 'config.json').read_text())
        if config.get('factory'):
            model: nn.Module = nets.build(**config['model_args'])
            model.load_state_dict(torch.load(folder / 'teacher.pth', weights_only=True)['model'])
        else:
            model = timm.create_model(f'local-dir:{folder}', pretrained=True)
        return model.to(self.device).eval().requires_grad_(False)

    def compared(self, model: nn.Module, task: TrainingTask, test: InMemoryLoader) -> dict[str, float]:
        """Calibration; for a student also how it relates to its teacher, CKA at the last boundary of both."""
        if not isinstance(task, LogitDistillationTask):
            alone = predict(model, test)
            return {'ece': calibration_error(alone.logits, alone.labels)}
        teacher, student = (predict(m, test, [self.last_boundary(m)]) for m in (task.teacher.model, model))
        agree = teacher.logits.argmax(1) == student.logits.argmax(1)
        return {'ece': calibration_error(student.logits, student.labels),
                'kl': kl_divergence(teacher.logits, student.logits).item(),
                'cka': linear_cka(teacher.features[0], student.features[0]),
                'agreement': 100 * agree.float().mean().item()}

    def last_boundary(self, model: nn.Module) -> Boundary:
        """The last but one of timm's stages, or of a CIFAR net's."""
        named = list(nets.BOUNDARIES) if isinstance(model, nets.CifarNet) else None
        return default_boundaries(teacher_boundaries(model, self.size, named)[0])[-1]


def machine(device: torch.device) -> dict[str, Any]:
    """Where a run was made."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()
    if device.type == 'cpu' and Path('/proc/cpuinfo').exists():
        name = next((line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
                     if line.startswith('model name')), name)
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'timm': timm.__version__,
            'sf_teacher': sf_teacher.__version__}
