"""Tiny runs for the training tests, importable by the processes they start."""
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.task import ClassificationTask, LogitDistillationTask

import sf_teacher
from sf_teacher import training
from sf_teacher.data.datasets import load_data
from sf_teacher.data.in_memory import InMemoryLoader
from sf_teacher.data.loaders import create_loaders
from sf_teacher.data.settings import DataConfig
from sf_teacher.methods import METHODS
from sf_teacher.training import run_folder as checkpoint
from sf_teacher.training.checkpoint import read_checkpoint
from sf_teacher.training.settings import TrainConfig

from ..helpers import processes, stand_in

SIZE, CLASSES = (3, 16, 16), 4
TIMINGS = {'seconds', 'images_per_second', 'memory_mb'}
DATA_CONFIG = dict(input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bilinear', crop_pct=1.,
                   crop_mode='center')

TEACHER_METHODS = METHODS.of_phase('teacher')


def pixels(count: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(64, (count, *SIZE), generator=generator) + labels[:, None, None, None] * 48
    return images.to(torch.uint8), labels


def folder(root: Path, count: int = 6, classes: int = CLASSES, size: int = 16) -> Path:
    """An image folder with train and validation in it."""
    images, _ = pixels(2 * count * classes)
    for i in range(2 * count * classes):
        path = root / ('train' if i < count * classes else 'validation') / f'class{i % classes}' / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(images[i].permute(1, 2, 0))).resize((size, size)).save(path)
    return root


def loaders(batch_size: int = 16, **kwargs: Any) -> tuple[InMemoryLoader, InMemoryLoader]:
    common = dict(mean=(0.5,) * 3, std=(0.5,) * 3, **kwargs)
    return (InMemoryLoader(*pixels(), batch_size, is_training=True, **common),
            InMemoryLoader(*pixels(24, seed=1), batch_size, **common))


def needs_index(kind: str) -> bool:
    return kind in TEACHER_METHODS and METHODS[kind].needs_index


def fixed_size_teacher(path: Path) -> Path:
    """A folder as export writes it for timm, of a model whose size is fixed."""
    model = timm.create_model('test_vit3', num_classes=CLASSES, img_size=16, patch_size=4)
    timm.models.save_for_hf(model, str(path), model_args=dict(num_classes=4, img_size=16, patch_size=4),
                            safe_serialization=True, data_config=dict(input_size=(3, 16, 16)))
    return path


def task(kind: str = 'teacher', model: str = 'test_resnet', **kwargs: Any) -> Any:
    """A task of each kind the loop serves: 'teacher' or a method's name, 'plain', 'distill'."""
    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=CLASSES, drop_rate=0.1, **kwargs)
    if kind == 'teacher' or kind in TEACHER_METHODS:
        method = 'sftn' if kind == 'teacher' else kind
        with torch.random.fork_rng():
            student = timm.create_model(model, num_classes=CLASSES, **kwargs)
        students = student if METHODS[method].takes_students else None
        return sf_teacher.wrap(net, students, method=method, input_size=SIZE)
    if kind == 'plain':
        return ClassificationTask(net, verbose=False)
    teacher = timm.create_model(model, num_classes=CLASSES, **kwargs).eval().requires_grad_(False)
    return LogitDistillationTask(net, teacher, torch.nn.CrossEntropyLoss(), temperature=4., verbose=False)


def settings(output: Path | str = '', **kwargs: Any) -> TrainConfig:
    ema = {'model_ema': True, 'model_ema_decay': 0.9} if kwargs.get('model_ema', True) else {}
    return TrainConfig(**{'output': str(output), 'epochs': 4, 'lr': 0.02, 'mixup': 0.2,
                          'warmup_epochs': int(kwargs.get('epochs', 4) > 1), **ema, **kwargs})


def train(output: Path | str, kind: str = 'teacher', data: str = '', die_after: int = 0, wait_after: int = 0,
          **kwargs: Any) -> list[dict[str, Any]]:
    """A complete run, as a process of its own or in this one; dies of SIGKILL, or waits, after so many epochs."""
    torch.set_num_threads(1)
    config = settings(output, **({'mixup': 0.} if needs_index(kind) else {}), **kwargs)
    if data:
        multiprocessing.set_start_method('fork', force=True)      # loading processes without importing torch again
        data_config = DataConfig(data=data, batch_size=8, workers=2)
        pair = create_loaders(load_data(data_config), data_config, config, DATA_CONFIG, torch.device('cpu'),
                              with_index=needs_index(kind))
    else:
        pair = loaders(with_index=needs_index(kind))

    def die(row: dict[str, Any]) -> None:
        if row['epoch'] + 1 == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if row['epoch'] + 1 == wait_after:
            time.sleep(600)
    return training.fit(task(kind), *pair, config, die)


def train_and_die(event: int, output: Path, **kwargs: Any) -> None:
    """Kill this process with SIGKILL before the n-th operation on files, or in the middle of writing checkpoint -n."""
    left = [event]

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    def half(state: Any, file: Any, save: Any = torch.save) -> None:
        left[0] += 1
        if left[0]:
            return save(state, file)
        save(state, file)
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    if event > 0:
        os.replace, os.fsync, Path.unlink = counted(os.replace), counted(os.fsync), counted(Path.unlink)
    else:
        checkpoint.torch.save = half
    train(output, **kwargs)


def run(target: Any, *args: Any, **kwargs: Any) -> Any:
    process = processes.Process(target=_with_stand_ins, args=(target, *args), kwargs=kwargs)
    process.start()
    return process


def _with_stand_ins(target: Any, *args: Any, **kwargs: Any) -> None:
    """As in the process of the tests; but where a kill may come as curves are drawn, they are."""
    stand_in(but='curves' if target is train_and_die else None)
    target(*args, **kwargs)


def final_state(output: Path) -> dict[str, Any]:
    """The newest checkpoint, without wall-clock columns."""
    state = read_checkpoint(sorted(Path(output).glob('checkpoint-*.pt'))[-1])
    state['rows'] = [{k: v for k, v in row.items() if k not in TIMINGS} for row in state['rows']]
    return state


def summary(output: Path) -> list[list[str]]:
    """summary.csv without wall-clock columns."""
    rows = [line.split(',') for line in (Path(output) / 'summary.csv').read_text().splitlines()]
    return [[cell for name, cell in zip(rows[0], row, strict=True) if name not in TIMINGS] for row in rows]


def differences(a: Any, b: Any, path: str = '') -> list[str]:
    """Where two nested states differ in any bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [f'{path}.{k} is on one side only' for k in a.keys() ^ b.keys()]
        return keys + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f'{path}.{k}')]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f'{path}[{i}]')]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [f'{path}: largest difference {(a.double() - b.double()).abs().max()}']
    return [] if a == b else [f'{path}: {a!r} and {b!r}']
