"""What people give `fit`: one table from a bad input to the message that names cause and remedy.

What they give on the command line is the table in tests/cli/test_refusals.py.
"""
import errno
import os
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy
from timm.task import ClassificationTask
from torch.utils.data import DataLoader, TensorDataset

from sf_teacher import SFTeacherError, files, training
from sf_teacher.training import TrainConfig
from sf_teacher.training.runs import distill, train_teacher
from sf_teacher.training.settings import StudentRun, TeacherRun

from . import training_runs as runs


def batches(count=16, images=None, target=None, batch_size=8, **kwargs):
    x = torch.randn(count, *runs.SIZE) if images is None else images
    y = torch.arange(count) % runs.CLASSES if target is None else target
    return DataLoader(TensorDataset(x, y), batch_size, **kwargs)


def plain(criterion=None, model='test_resnet'):
    net = timm.create_model(model, num_classes=runs.CLASSES)
    return ClassificationTask(net, criterion if criterion is not None else torch.nn.CrossEntropyLoss(), verbose=False)


def fit(train=None, evaluation=None, task=None, **settings):
    task = task or plain()
    return training.fit(task, batches() if train is None else train, evaluation, TrainConfig(epochs=1, **settings))


class Mapped:
    """Batches of another kind."""

    def __init__(self, change, loader=None):
        self.change, self.loader = change, loader or batches()

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return map(self.change, self.loader)



def as_dict(batch):
    return {'image': batch[0], 'label': batch[1]}


def as_three(batch):
    return (*batch, batch[1])


def multi(count=16):
    return (torch.rand(count, runs.CLASSES) > 0.5).float()


def stream():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(batches().dataset)
    return DataLoader(Stream(), 8)


def text(batch):
    return batch[0], ['cat'] * len(batch[1])


def path(run, **kwargs):
    """A run whose settings hold a path."""
    cls = TeacherRun if run is train_teacher else StudentRun
    given = {'teacher': 'test_resnet', 'method': 'none'} if run is train_teacher else {'student': 'test_resnet'}
    return run(cls(**{'data': 'digits', 'epochs': 1, 'device': 'cpu', 'input_size': (3, 16, 16), 'output': 'run',
                      'batch_size': 256, **given, **kwargs}))


LONG = 'x' * 300
IGNORE = torch.tensor([0, 1, -100, 2] * 4)
BAD = {
    # loaders
    'dicts': (lambda: fit(Mapped(as_dict)), r"training loader gives mappings with 'image', 'label': give \(images"),
    'dicts in validation': (lambda: fit(evaluation=Mapped(as_dict)), "validation loader gives mappings with 'image'"),
    'three values': (lambda: fit(Mapped(as_three)), 'training loader gives 3 values a batch: give'),
    'three values in validation': (lambda: fit(evaluation=Mapped(as_three)), 'validation loader gives 3 values'),
    'images alone': (lambda: fit(Mapped(lambda b: b[0])), 'training loader gives a Tensor a batch: give'),
    'texts as labels': (lambda: fit(Mapped(text)), 'gives a Tensor and a list, not tensors: give'),
    'no length': (lambda: fit(stream()), r'training loader has no length .*give it a __len__'),
    'a generator': (lambda: fit(b for b in batches()), 'loader is a generator, which cannot be gone through in every'),
    'no loader': (lambda: fit(7), 'training loader is a int, which cannot'),
    'empty': (lambda: fit([]), 'training loader has no batch: fewer images than one batch'),
    'empty validation': (lambda: fit(evaluation=[]), 'validation loader has no batch: give images, or None'),
    'counts differ': (lambda: fit(Mapped(lambda b: (b[0], b[1][:3]))), 'gives 8 images and 3 targets in a batch'),
    'last batch of one': (lambda: fit(batches(17)), r'last batch of an epoch holds one image.*drop_last=True'),
    'batches of one': (lambda: fit(batches(3, batch_size=1)), 'batch_size=1 does not go with batch norm'),
    # images
    'uint8 images': (lambda: fit(batches(images=torch.zeros(16, *runs.SIZE, dtype=torch.uint8))),
                     r'gives images uint8 \[8, 3, 16, 16\]: .*float.*/ 255 less mean'),
    'double images': (lambda: fit(batches(images=torch.randn(16, *runs.SIZE).double())), 'gives images float64'),
    'double images in validation': (lambda: fit(evaluation=batches(images=torch.randn(16, *runs.SIZE).double())),
                                    'validation loader gives images float64'),
    'half images': (lambda: fit(batches(images=torch.randn(16, *runs.SIZE).half())),
                    r'batch 1 of epoch 1 failed \(RuntimeError: .*images float16 \[8, 3, 16, 16\]'),
    'channels last': (lambda: fit(batches(images=torch.randn(16, 16, 16, 3))), r'images float32 \[8, 16, 16, 3\]'),
    'one image channel': (lambda: fit(batches(images=torch.randn(16, 1, 16, 16))), r'images float32 \[8, 1, 16, 16\]'),
    'no batch dimension': (lambda: fit([(torch.randn(3, 16, 16), torch.zeros(3).long())]), 'float32 .3, 16, 16.'),
    'nan images': (lambda: fit(batches(images=torch.full((16, *runs.SIZE), float('nan')))), 'images hold values that'),
    # labels
    'ignore_index': (lambda: fit(batches(target=IGNORE), task=plain(torch.nn.CrossEntropyLoss(ignore_index=-100))),
                     'training loader gives labels -100..2, which must lie in 0..3: an ignore_index is not supported'),
    'ignore_index in validation': (lambda: fit(evaluation=batches(target=IGNORE)), 'validation loader gives labels -1'),
    'labels from one': (lambda: fit(batches(target=torch.arange(16) % 4 + 1)), r'gives labels 1..4, which must lie'),
    'too many classes in validation': (lambda: fit(evaluation=batches(target=torch.arange(16))), 'labels 0..7, which'),
    'float labels': (lambda: fit(batches(target=torch.rand(16))), r'gives targets float32 \[8\]: give labels, whole'),
    'boolean labels': (lambda: fit(batches(target=torch.ones(16).bool())), r'gives targets bool \[8\]: give labels'),
    'labels in columns': (lambda: fit(batches(target=torch.zeros(16, 1).long())), r'targets int64 \[8, 1\]: give'),
    'multi-label': (lambda: fit(batches(target=multi()), task=plain(torch.nn.BCEWithLogitsLoss())),
                    r'whose rows do not sum to 1: data with several labels an image \(multi-label\) are not supported'),
    'multi-label in validation': (lambda: fit(batches(target=multi()), batches(target=multi()),
                                              plain(torch.nn.BCEWithLogitsLoss())), 'multi-label. are not supported'),
    'one-hot validation': (lambda: fit(evaluation=batches(target=torch.eye(4).repeat(4, 1))),
                           r'validation loader gives targets float32 \[8, 4\]: accuracy is that of one label an image'),
    'whole-number multi-label': (lambda: fit(batches(target=multi().long())), r'targets int64 \[8, 4\]: give labels'),
    # criteria
    'per-sample losses': (lambda: fit(task=plain(torch.nn.CrossEntropyLoss(reduction='none'))),
                          r"loss is of shape \[8\], not one number: give a criterion that averages .*reduction='mean'"),
    'a criterion for other targets': (lambda: fit(task=plain(torch.nn.BCEWithLogitsLoss())),
                                      r'batch 1 of epoch 1 failed \(ValueError.*int64 \[8\].*BCEWithLogitsLoss'),
    'soft targets for hard ones': (lambda: fit(batches(target=torch.eye(4).repeat(4, 1)),
                                               task=plain(LabelSmoothingCrossEntropy(0.1))),
                                   r'batch 1 of epoch 1 failed .*float32 \[8, 4\].*LabelSmoothingCrossEntropy'),
    'a function that gives a number': (lambda: fit(task=plain(lambda x, y: 1.)), 'loss is a float, not one number'),
    'another number of classes': (lambda: fit(task=ClassificationTask(torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(768, 2)), verbose=False)), r'batch 1 of epoch 1 failed \(IndexError'),
    # settings that only fail with the data
    'mixup of odd batches': (lambda: fit(batches(14, batch_size=7), mixup=0.2), 'batch 1 has 7: use an even'),
    # paths
    **{f'{name} in {key}': (partial(path, run, **{key: value}), message)
       for run in (train_teacher, distill) for name, value in (('NUL', 'a\0b'), ('over-long', LONG))
       for key, message in (('output', 'cannot write to output='), ('data', 'is no folder|cannot be read'),
                            ('class_map', 'class_map=|has no effect|is no file'))
       if key != 'class_map'},
    'the root as output': (lambda: path(train_teacher, output='/proc/x'), 'cannot write'),
    'a teacher with NUL': (lambda: path(distill, teacher='a\0b'), 'is no exported timm folder|cannot'),
    'an over-long teacher': (lambda: path(distill, teacher=LONG), 'is no exported timm folder|cannot'),
}


@pytest.mark.parametrize(('call', 'message'), BAD.values(), ids=BAD)
def test_a_bad_input_is_an_error_that_says_what_to_do(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SFTeacherError, match=message):
        call()
    assert not list(tmp_path.iterdir())


GOOD = {
    'int32 labels': lambda: fit(batches(target=(torch.arange(16) % 4).int()), batches(target=torch.zeros(16).int())),
    'uint8 labels': lambda: fit(batches(target=(torch.arange(16) % 4).byte())),
    'soft targets': lambda: fit(batches(target=torch.softmax(torch.randn(16, 4), -1)), batches()),
    'a plain function': lambda: fit(evaluation=batches(), task=plain(F.cross_entropy)),
    'lists of batches': lambda: fit(list(batches()), list(batches())),
    'a last batch of one without batch norm': lambda: fit(batches(17), batches(17), ClassificationTask(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)), verbose=False)),
}


@pytest.mark.parametrize('call', GOOD.values(), ids=GOOD)
def test_what_looks_odd_and_works(call):
    rows = call()
    assert len(rows) == 1 and rows[0]['train_loss'] > 0


def test_looking_at_the_validation_images_changes_no_random_number():
    class Drawing:
        def __len__(self):
            return 2

        def __iter__(self):
            for images, target in batches():
                yield images + torch.rand(1), target

    rows = []
    for pair in ((runs.loaders()[0], None), (runs.loaders()[0], Drawing())):
        torch.manual_seed(3)
        rows.append(training.fit(runs.task('plain'), *pair, runs.settings(epochs=1))[0]['train_loss'])
    assert rows[0] == rows[1]


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    def fail(error):
        def write(file):
            raise error
        return write

    with pytest.raises(SFTeacherError, match=r'cannot write .*: the disk is full \(.*No space left'):
        files.write_atomically(tmp_path / 'x', fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(SFTeacherError, match=r'cannot write .*: odd'):
        files.write_atomically(tmp_path / 'x', fail(RuntimeError('odd')))
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda path: type('', (), {'free': 0}))
    with pytest.raises(SFTeacherError, match=r'the disk is full \(PytorchStreamWriter failed'):
        files.write_atomically(tmp_path / 'x', fail(RuntimeError('PytorchStreamWriter failed writing file')))
    with pytest.raises(SFTeacherError, match=r'the disk is full \(PytorchStreamWriter failed'), \
            files.written_at_once(tmp_path / 'folder'):
        raise RuntimeError('PytorchStreamWriter failed writing file')


def test_memory_that_is_not_there_is_said():
    class Hungry(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return torch.empty(10 ** 15) * self.w

    with pytest.raises(SFTeacherError, match=r'batch 1 of epoch 1 needs more memory than there is for images float32 '
                                             r'\[8, 3, 16, 16\]: choose a smaller batch_size'):
        fit(task=ClassificationTask(Hungry(), verbose=False))
