"""What the torchdistill tests share: the example driver in this process, its configs as text, and small data."""
import importlib.util
import os
import sys
from pathlib import Path

import timm
import torch
from torch.utils.data import TensorDataset
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box

from sf_teacher.exporting.exporter import export

from ..helpers import jitter

EXAMPLES = Path(__file__).parents[2] / 'examples' / 'torchdistill'
CPU = torch.device('cpu')
SIZE, HALF = (3, 32, 32), (0.5, 0.5, 0.5)


def load_script(name):
    spec = importlib.util.spec_from_file_location(f'torchdistill_{name}', EXAMPLES / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(monkeypatch, name, *args):
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
    load_script(name).main()


def export_teacher(arch, folder, num_classes=10, **kwargs):
    torch.manual_seed(0)
    model = jitter(timm.create_model(arch, num_classes=num_classes, **kwargs))
    return export(model, folder, input_size=SIZE, mean=HALF, std=HALF)


def batches(count=4, size=16, num_classes=10):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count * size, *SIZE, generator=generator)
    targets = torch.randint(num_classes, (count * size,), generator=generator)
    return TensorDataset(images, targets)


def loader_config(dataset_id, batch_size=16):
    return {
        'dataset_id': dataset_id,
        'sampler': {'class_or_func': torch.utils.data.SequentialSampler, 'kwargs': None},
        'kwargs': {'batch_size': batch_size, 'num_workers': 0},
    }


def sgd():
    return {'key': 'SGD', 'kwargs': {'lr': 0.05, 'momentum': 0.9}}


def weighted(key, **kwargs):
    return {'key': 'WeightedSumLoss',
            'kwargs': {'sub_terms': {'term': {'criterion': {'key': key, 'kwargs': kwargs}, 'weight': 1.0}}}}


def kd():
    return weighted('KDLoss', student_module_path='.', student_module_io='output', teacher_module_path='.',
                    teacher_module_io='output', temperature=4.0, alpha=0.5, reduction='batchmean')


def box_losses(box, steps=None):
    """Train one epoch of a box by hand; the losses."""
    box.pre_epoch_process(epoch=0)
    losses = []
    for images, targets, extra in box.train_data_loader:
        loss = box.forward_process(images, targets, extra)
        box.post_forward_process(loss=loss)
        losses.append(loss.item())
    box.post_epoch_process()
    return losses


def teacher_stage(num_epochs=1, hooks=('branch_output',), loss=None, name='SFTN', **wrapper):
    """Way (A)'s first stage as a dict."""
    return {
        'num_epochs': num_epochs,
        'train_data_loader': loader_config('train'),
        'teacher': {
            'forward_proc': 'forward_batch_only',
            'auxiliary_model_wrapper': {
                'key': f'Teacher4{name}',
                'kwargs': {'students': 'test_efficientnet', 'input_size': list(SIZE), **wrapper},
            },
            'forward_hook': {'input': [], 'output': list(hooks)},
            'requires_grad': True,
        },
        'student': {'forward_proc': 'sf_teacher.skip_forward', 'requires_grad': False},
        'optimizer': sgd(),
        'criterion': weighted(f'{name}Loss', **(loss or {})),
    }


def environment():
    """For subprocesses."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}


def models(teacher='test_resnet', student='test_efficientnet'):
    torch.manual_seed(0)
    return (timm.create_model(teacher, num_classes=10), timm.create_model(student, num_classes=10))


def distillation_box(train, teacher=None, student=None, distributed=False, data=None):
    made = models()
    data = {'train': data or batches()}
    if distributed:
        train['train_data_loader']['sampler']['kwargs'] = {'shuffle': False}
    return get_distillation_box(teacher or made[0], student or made[1], data, train, CPU, None, distributed, 1)


def kd_stage(**teacher):
    return {
        'num_epochs': 1,
        'train_data_loader': loader_config('train'),
        'teacher': {'forward_proc': 'forward_batch_only', 'requires_grad': False, **teacher},
        'student': {'forward_proc': 'forward_batch_only', 'requires_grad': True},
        'optimizer': sgd(),
        'criterion': kd(),
    }


def training_box(model, distributed=False, **wrapper):
    """Way (B)."""
    stage = teacher_stage(loss={'is_from_teacher': False, **wrapper.pop('loss', {})}, **wrapper)
    stage['model'] = stage.pop('teacher')
    stage.pop('student')
    if distributed:
        stage['train_data_loader']['sampler']['kwargs'] = {'shuffle': False}
    return get_training_box(model, {'train': batches()}, stage, CPU, None, distributed, 1)
