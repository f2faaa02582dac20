"""Does the runs of a protocol: trains a model as a run says, compares it with its teacher, writes one JSON file."""
from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import nets
import torch
from beside import HALFWAY, Clock, machine, resolved
from gains import RIGHT, packed
from images import Counted, Images, Remembered, Split, teacher_logits
from nets import MEAN, STD
from protocol import Run
from runs import ORIGINS, needed
from tasks import Models
from timm.task import LogitDistillationTask, TrainingTask
from torch import nn

import sf_teacher
from sf_teacher.analysis.predictions import predict
from sf_teacher.data.in_memory import InMemoryLoader
from sf_teacher.files import write_atomically
from sf_teacher.functional import calibration_error, kl_divergence, linear_cka
from sf_teacher.split.boundaries import Boundary
from sf_teacher.split.pairing import default_boundaries
from sf_teacher.split.teacher_taps import teacher_boundaries
from sf_teacher.training import TrainConfig, fit


class Worker:
    """Does runs.

    Args:
        images: Gives all images of a size, by split.
        work: Folder of checkpoints and teachers.
        results: Folder of the JSON files, one folder in it for each protocol's `results`.
        device: Where to train.
    """

    def __init__(self, images: Callable[[int], Images], work: Path, results: Path, device: str) -> None:
        self.images, self.work, self.all_results, self.device = images, work, results, torch.device(device)
        self.models = Models(work, device)
        self.boundaries: dict[str, Boundary] = {}       # the last one of each architecture

    def run(self, run: Run, results: str, again: bool = False, remember: bool = False) -> None:
        """Train what `run` says, unless it is done, and write its JSON file.

        Args:
            run: The run.
            results: Folder of its JSON file.
            again: Whether to do it although it has a result.
            remember: Whether to keep what its teacher says in a file, for other students that see the same batches.
        """
        self.results = self.all_results / results
        path = self.results / f'{run.key}.json'
        if path.exists() and not again:
            return
        settings = run.settings
        self.split = Split(self.images(settings['size']), settings, run.seed, self.device)
        self.num_classes, self.size = self.split.num_classes, (3, settings['size'], settings['size'])
        task = self.models.task(run, self.num_classes)
        with_index = getattr(getattr(task, 'method', None), 'needs_index', False)
        train = Counted(self.split.training(run.seed, with_index))
        test = self.split.evaluation('test')
        validation = self.split.evaluation('validation') if settings.get('validation') else None
        if remember and 'teacher' in settings:
            self.remember(task, train, run)
        folder = self.folder(run)
        config = TrainConfig(**settings['train'], seed=run.seed, device=str(self.device), log_interval=10 ** 6,
                             output=str(folder), resume=self.resumable(folder, run))
        rows = fit(task, train, None if validation else test, config, Clock(folder, task, run))
        model = task.get_eval_model(ema=config.model_ema).eval()
        if run.kind == 'teacher':
            self.export(model, run)
        result = {
            'kind': run.kind, 'pair': run.pair, 'arm': run.arm, 'student': run.student, 'seed': run.seed,
            'settings': settings, **(self.chosen_by(model, rows, test, validation) if validation else {
                'top1': rows[-1]['eval_top1'], 'curve': [round(row['eval_top1'], 2) for row in rows]}),
            **self.compared(model, task, test), 'seconds': round(sum(row['seconds'] for row in rows), 1),
            **({'cpu_seconds': Clock.total(folder)} if validation and self.device.type == 'cpu' else {}),
            'memory_mb': round(max(row['memory_mb'] for row in rows)), 'machine': machine(self.device),
            'resolved': resolved(config, run)}
        if path.exists():
            if _trace(json.loads(path.read_text())) == _trace(result):      # the same again: the record stays
                return
            self.forget(run.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1) + '\n'
        write_atomically(path, lambda file: file.write(text.encode()))
        print(f'{time.strftime("%H:%M:%S")} {run.kind} {run.pair} [{run.arm}] {run.student} seed {run.seed} '
              f'T {settings.get("kd", {}).get("temperature", "-")}: {result["top1"]:.2f} % in '
              f'{result["seconds"]:.0f} s', flush=True)

    @staticmethod
    def chosen_by(
            model: nn.Module,
            rows: list[dict[str, Any]],
            test: InMemoryLoader,
            validation: InMemoryLoader,
    ) -> dict[str, Any]:
        """Accuracy of the last epoch on the images that choose and on those that are reported, and what is right."""
        found: dict[str, Any] = {}
        for name, loader in (('top1', test), ('validation_top1', validation)):
            alone = predict(model, loader)
            found[name], found[RIGHT[name]] = 100 * alone.right.float().mean().item(), packed(alone.right)
        return {**found, 'train_loss': [round(row['train_loss'], 4) for row in rows]}

    def resumable(self, folder: Path, run: Run) -> bool:
        """Whether a run that was begun can go on; one that was killed before it kept its half-way state starts anew."""
        if not (folder / 'config.yaml').exists():
            return False
        epochs = max((int(path.stem.split('-')[1]) for path in folder.glob('checkpoint-*.pt')), default=0)
        half = run.settings['train']['epochs'] // 2
        if run.kind == 'teacher' and 0 < half <= epochs and not (folder / HALFWAY).exists():
            shutil.rmtree(folder)
            return False
        return True

    def folder(self, run: Run) -> Path:
        """Where its checkpoints are; those of a run that starts from a teacher go with that teacher's weights."""
        return self.work / '-'.join([run.key, *map(self.models.weights, needed(run))])

    def forget(self, key: str) -> None:
        """Put aside, in `superseded` of the work folder, what came of a teacher that came out otherwise elsewhere."""
        for path in self.results.glob('*.json'):
            settings = json.loads(path.read_text())['settings']
            if key in (settings.get(name) for name in ORIGINS):
                print(f'{path.stem} came of another {key}: to be done again', flush=True)
                aside = self.work / 'superseded' / self.results.name / path.name
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, aside)
                if 'teacher' not in settings:
                    self.forget(path.stem)

    def remember(self, task: Any, train: Counted, run: Run) -> None:
        """Let a task look up what its teacher says of the training images."""
        s, teacher = run.settings, task.teacher.model
        config = TrainConfig(**s['train'])
        autocast = partial(torch.autocast, self.device.type, getattr(torch, config.amp_dtype)) if config.amp \
            else nullcontext
        if config.mixes:        # other images every time
            return
        if config.channels_last:
            teacher.to(memory_format=torch.channels_last)
        path = self.work / s['teacher'] / f'logits-{self.models.weights(s["teacher"])}-{said_to(run)}.pt'
        said = teacher_logits(teacher, train.loader, config.epochs, path, autocast, config.channels_last)
        task.teacher.model = Remembered(teacher, train, said)

    def export(self, model: nn.Module, run: Run) -> None:
        """Export a teacher; its students learn from what the folder gives back."""
        spec = run.settings['model']
        own: dict[str, Any] = {} if 'name' in spec else dict(
            factory='nets:build', model_args={'name': spec['cifar'], 'num_classes': self.num_classes})
        sf_teacher.export(
            model, self.work / run.key / 'teacher', input_size=self.size, mean=MEAN, std=STD, overwrite=True,
            metadata={'data': 'CIFAR-100', 'seed': run.seed, 'settings': run.settings}, **own)

    def compared(self, model: nn.Module, task: TrainingTask, test: InMemoryLoader) -> dict[str, float]:
        """Calibration; for a student also how it relates to its teacher, CKA at the last boundary of both."""
        if not isinstance(task, LogitDistillationTask):
            alone = predict(model, test)
            return {'ece': calibration_error(alone.logits, alone.labels)}
        known = task.teacher.model
        known = known.known if isinstance(known, Remembered) else known
        teacher, student = (predict(m, test, [self.last_boundary(m)]) for m in (known, model))
        agree = teacher.logits.argmax(1) == student.logits.argmax(1)
        return {'ece': calibration_error(student.logits, student.labels),
                'kl': kl_divergence(teacher.logits, student.logits).item(),
                'cka': linear_cka(teacher.features[0], student.features[0]),
                'agreement': 100 * agree.float().mean().item()}

    def last_boundary(self, model: nn.Module) -> Boundary:
        """The last but one of timm's stages, or of a CIFAR net's; measured once for each architecture."""
        key = f'{self.size} {model}'
        if key not in self.boundaries:
            named = list(nets.BOUNDARIES) if isinstance(model, nets.CifarNet) else None
            self.boundaries[key] = default_boundaries(teacher_boundaries(model, self.size, named)[0])[-1]
        return self.boundaries[key]


def said_to(run: Run) -> str:
    """A name for what a student's teacher says: the same for students that see the same batches of the same teacher."""
    same = ('teacher', 'halfway', 'classes', 'per_class', 'validation', 'drawn', 'size', 'batch_size', 'train')
    text = json.dumps([run.seed, [run.settings.get(name) for name in same]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _trace(result: dict[str, Any]) -> Any:
    return result.get('curve') or result['train_loss']
