"""What looks odd and works, and what only the machine refuses; bad inputs are the table in tests/bad_inputs."""
import errno
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from timm.task import ClassificationTask
from torch.utils.data import ConcatDataset, DataLoader, SubsetRandomSampler

import sf_teacher
from sf_teacher import SFTeacherError, files, training
from sf_teacher.data.known_labels import recorded
from tests.bad_inputs.loaders import ImageFolderLike, batches, fit, labelled, plain, streamed

from . import training_runs as runs

GOOD = {
    'int32 labels': lambda: fit(batches(target=(torch.arange(16) % 4).int()), batches(target=torch.zeros(16).int())),
    'uint8 labels': lambda: fit(batches(target=(torch.arange(16) % 4).byte())),
    'soft targets': lambda: fit(batches(target=torch.softmax(torch.randn(16, 4), -1)), batches()),
    'a plain function': lambda: fit(evaluation=batches(), task=plain(F.cross_entropy)),
    'labels that the dataset changes': lambda: fit(
        evaluation=DataLoader(ImageFolderLike(labelled(13, 9), lambda label: label % 4), 8)),
    'labels that the sampler leaves out': lambda: fit(
        evaluation=DataLoader(ImageFolderLike(labelled(13, 9)), 8, sampler=SubsetRandomSampler(range(13)))),
    'lists of batches': lambda: fit(list(batches()), list(batches())),
    'a last batch of one without batch norm': lambda: fit(batches(17), batches(17), ClassificationTask(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)), verbose=False)),
}


@pytest.mark.parametrize('call', GOOD.values(), ids=GOOD)
def test_what_looks_odd_and_works(call):
    rows = call()
    assert len(rows) == 1 and rows[0]['train_loss'] > 0


def test_labels_are_known_of_nested_datasets():
    parts = ConcatDataset([ImageFolderLike([0, 1]), batches(target=labelled(0, 9)).dataset])
    assert recorded(parts).tolist() == [0, 1, *labelled(0, 9).tolist()]
    assert recorded(streamed(labelled(0, 9))) is None and recorded(ConcatDataset([parts, [(0, 0)]])) is None


def test_an_epoch_whose_validation_fails_is_kept_and_evaluated_when_the_run_goes_on(tmp_path):
    def run(evaluation, **kwargs):
        torch.manual_seed(0)
        return fit(evaluation=evaluation, output=str(tmp_path / 'run'), **kwargs)

    with pytest.raises(SFTeacherError, match=r'labels 0..9 in batch 2, .*; epoch 1 is kept in .*run as trained: '
                                             r'correct the data and continue with resume'):
        run(streamed(labelled(12, 9)))
    kept = runs.final_state(tmp_path / 'run')
    assert kept['epoch'] == 1 and kept['rows'][0]['train_loss'] > 0 and 'eval_top1' not in kept['rows'][0]
    row, = run(streamed(labelled(12, 0)), resume=True)
    state = runs.final_state(tmp_path / 'run')
    assert row['eval_loss'] > 0 and state['rows'][0]['eval_top1'] == state['best']['eval_top1'] == row['eval_top1']
    assert all(torch.equal(value, kept['state_dict'][name]) for name, value in state['state_dict'].items())


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
    with pytest.raises(SFTeacherError, match=r'cannot write .*: the disk is full \(Error while'):
        files.write_atomically(tmp_path / 'x', fail(SafetensorError(
            'Error while serializing: I/O error: No space left on device (os error 28)')))

    def wrapped(file):
        try:
            raise OSError(errno.EDQUOT, 'quota')
        except OSError:
            raise RuntimeError('unexpected position') from None
    with pytest.raises(SFTeacherError, match=r'cannot write .*: the disk is full \(unexpected position'):
        files.write_atomically(tmp_path / 'x', wrapped)
    def usage(path):        # what was written so far fills the disk, and is gone afterwards
        return type('', (), {'free': 0 if any(path.iterdir()) else 9e9})
    monkeypatch.setattr(files.shutil, 'disk_usage', usage)
    for error in (RuntimeError('odd'), FileNotFoundError(errno.ENOENT, 'no such file')):
        with pytest.raises(SFTeacherError, match=r'cannot write .*x: (odd|\[Errno 2\] no such file)'):
            files.write_atomically(tmp_path / 'x', fail(error))
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


def test_logits_beside_features_are_evaluated_as_they_are_trained():
    class WithFeatures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.fc = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Linear(8, runs.CLASSES)

        def forward(self, x):
            maps = self.features(x)
            return self.fc(maps.mean((2, 3))), {'feats': [maps]}

    task = sf_teacher.wrap(WithFeatures(), method='mcmi', input_size=runs.SIZE)
    [found] = training.fit(task, *runs.loaders(), training.TrainConfig(epochs=1, device='cpu'))
    assert 0 <= found['eval_top1'] <= 100


class Masked(torch.nn.Module):
    """Holds what is not finite from the start, and state that is no tensor."""
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(768, 4)
        self.register_buffer('mask', torch.tensor([0., -torch.inf]))
        self.register_buffer('seen', torch.zeros(()))
        self.spoilt = False

    def get_extra_state(self):
        return {'version': 2}

    def set_extra_state(self, state):
        assert state == {'version': 2}

    def forward(self, x):
        if self.spoilt:
            self.seen.fill_(torch.nan)
        return self.head(x.flatten(1))


def test_buffers_may_be_what_they_were_and_not_become_it():
    model = Masked()
    assert fit(batches(), task=ClassificationTask(model, verbose=False))[0]['train_loss'] > 0
    compiled = fit(batches(), task=ClassificationTask(model, verbose=False), torchcompile='eager')
    assert compiled[0]['train_loss'] > 0
    model.spoilt = True
    with pytest.raises(SFTeacherError, match='seen is not finite after epoch 1'):
        fit(batches(), task=ClassificationTask(model, verbose=False))


class Promises(list):
    """Batches that say another number of themselves."""
    length = 0

    def __len__(self):
        return self.length


@pytest.mark.parametrize(('says', 'gives'), [(3, '2'), (1, 'more')])
def test_a_loader_gives_as_many_batches_as_it_says(says, gives):
    loader = Promises(batches())
    loader.length = says
    with pytest.raises(SFTeacherError, match=f'has a length of {says} batches and gave {gives} in this epoch: give it'):
        fit(loader)


def test_validation_that_can_be_gone_through_once_is_refused():
    class Once:
        def __init__(self):
            self.left = iter(list(batches(8)))

        def __iter__(self):
            return self.left
    with pytest.raises(SFTeacherError, match='the validation loader gave no batch: give one that can be gone through'):
        fit(batches(), evaluation=Once())


def test_float16_is_refused_on_the_cpu():
    with pytest.raises(SFTeacherError, match=r"amp_dtype='float16' is slow on the CPU.*give amp_dtype='bfloat16'"):
        training.fit(runs.task('plain'), *runs.loaders(), runs.settings(epochs=1, amp=True))
