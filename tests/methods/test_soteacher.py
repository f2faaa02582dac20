"""SoTeacher: its terms equal a reference in plain tensors; it is trained for real, through every kind of loader."""
import pytest
import timm
import torch
import torch.nn.functional as F

import sf_teacher
from sf_teacher import SFTeacherError, training
from sf_teacher.cli import main
from sf_teacher.data.datasets import load_data
from sf_teacher.data.loaders import create_loaders
from sf_teacher.data.settings import DataConfig
from sf_teacher.methods.soteacher import RunningMeans, SoTeacher
from sf_teacher.training.run_folder import read_checkpoint

from ..helpers import on_two_ranks
from ..training import training_runs as runs

SIZE = (3, 32, 32)


def make(teacher='test_resnet', **options):
    torch.manual_seed(0)
    model = timm.create_model(teacher, num_classes=5, **({'img_size': 32} if 'vit' in teacher else {})).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.        # the statistics stay, so that the reference may run the model again
            module.running_var.uniform_(0.5, 2.)
    return sf_teacher.wrap(model, method=SoTeacher(**options), input_size=SIZE)


def reference_lip(model):
    """Over the names and shapes of the state, not over the modules."""
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    total = 0.
    for name, value in state.items():
        if value.ndim == 4 and name.endswith('weight'):
            total = total + value.abs().sum()
        elif value.ndim == 2 and name.endswith('weight'):
            total = total + max(value[:, j].abs().sum() for j in range(value.shape[1]))
        elif name.endswith('running_var'):
            gamma = state[name.replace('running_var', 'weight')]
            total = total + max((g / (v + 1e-5) ** 0.5).abs() for g, v in zip(gamma, value, strict=True))
    return total


@pytest.mark.parametrize('teacher', ['test_resnet', 'test_vit', 'test_efficientnet'])
def test_values_and_gradients_equal_the_reference_over_three_epochs(teacher):
    task = make(teacher, lip_weight=1e-3, consistency_weight=2.).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(9, *SIZE, generator=generator, dtype=torch.float64)
    labels = torch.arange(9) % 5
    seen = {i: [] for i in range(9)}        # probabilities so far
    for epoch in range(3):
        task.set_epoch(epoch, 3)
        order = torch.randperm(9, generator=generator)[:8]      # one is left out, as the last batch of a loader is
        for index in order.split(4):
            losses = task(images[index], labels[index], index)
            z = task.teacher(images[index])
            p = z.softmax(-1)
            cons = sum(((p[row] - torch.stack(seen[i]).mean(0)) ** 2).sum()
                       for row, i in enumerate(index.tolist()) if seen[i]) / 4
            for row, i in enumerate(index.tolist()):
                seen[i].append(p[row].detach())
            eps = {m.eps for m in task.teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)}
            lip = reference_lip(task.teacher) if eps <= {1e-5} else losses['lip']
            expected = F.cross_entropy(z, labels[index]) + 1e-3 * lip + 2. * (epoch + 1) / 3 * cons
            torch.testing.assert_close(losses['loss'], expected, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(losses['consistency'], torch.as_tensor(cons).to(z), rtol=1e-6, atol=1e-7)
            parameters = list(task.teacher.parameters())
            if eps <= {1e-5}:
                torch.testing.assert_close(torch.autograd.grad(losses['loss'], parameters),
                                           torch.autograd.grad(expected, parameters), rtol=1e-5, atol=1e-7)
            with torch.no_grad():       # the next batch sees another model
                for parameter in parameters:
                    parameter += 0.01 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    assert epoch == 2 and losses['consistency'] > 1e-6


def test_it_takes_students_boundaries_and_mixed_images_no_more_than_a_batch_without_index():
    task = make()
    images, labels, index = torch.randn(4, *SIZE, dtype=torch.float64), torch.arange(4), torch.arange(4)
    with pytest.raises(SFTeacherError, match=r'SoTeacher\(ramp=True\) needs to know the epochs: call task.set_epoch'):
        task.train()(images, labels, index)
    task.set_epoch(0, 2)
    with pytest.raises(SFTeacherError, match=r'SoTeacher needs to know which images of the data set a batch holds'):
        task.train()(images, labels)
    with pytest.raises(SFTeacherError, match=r'a mixed image has none \(its targets are soft\): leave out mixup'):
        task(images, F.one_hot(labels, 5).double(), index)
    with pytest.raises(SFTeacherError, match=r'SoTeacher takes no students, got ResNet'):
        sf_teacher.wrap('test_resnet', 'test_resnet', method='soteacher', num_classes=5, input_size=SIZE)
    with pytest.raises(SFTeacherError, match=r'SoTeacher\(lip_weight=-1\): lip_weight must be a finite number >= 0'):
        SoTeacher(lip_weight=-1)
    before = task.branches.memory['counts'].clone()
    losses = task.eval()(images, labels, index)
    assert torch.equal(task.branches.memory['counts'], before) and 'consistency' in losses
    assert 'consistency' not in task(images, labels)        # an evaluation needs no index


def test_a_model_without_any_layer_that_counts_is_refused():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x.mean((2, 3)) * self.weight

    with pytest.raises(SFTeacherError, match=r'Scale has no convolution, batch norm or linear layer to penalise'):
        sf_teacher.wrap(Scale(), method='soteacher', num_classes=3, input_size=SIZE)
    task = sf_teacher.wrap(Scale(), method=SoTeacher(lip_weight=0., ramp=False), num_classes=3, input_size=SIZE)
    losses = task.train()(torch.randn(2, *SIZE), torch.arange(2), torch.arange(2))
    assert 'lip' not in losses and losses['consistency'] == 0.


def test_the_means_grow_with_the_data_set_count_repeated_images_and_survive_a_checkpoint():
    means, p = RunningMeans(), torch.eye(3)[[0, 1, 0]]
    means.update(torch.tensor([2, 7, 2]), p)
    means.update(torch.tensor([2, 100, 0]), torch.eye(3)[[2, 2, 1]])
    assert means.memory['counts'][[0, 1, 2, 7, 100]].tolist() == [1, 0, 3, 1, 1]
    found, known = means.lookup(torch.tensor([2, 1, 100, 5000]), p)
    torch.testing.assert_close(found[:3], torch.tensor([[2 / 3, 0, 1 / 3], [0, 0, 0], [0, 0, 1]]))
    assert known.tolist() == [1, 0, 1, 0] and len(means.memory['counts']) < 120
    task = make()
    task.set_epoch(0, 2)
    task.train()(torch.randn(2, *SIZE, dtype=torch.float64), torch.arange(2), torch.tensor([1, 40]))
    state = task.get_checkpoint_state()
    other = make()
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    assert all(torch.equal(v, task.branches.memory[k]) for k, v in other.branches.memory.items())
    assert other.branches.memory['counts'].nonzero().flatten().tolist() == [1, 40]
    other.setup_ema()
    assert 'memory' not in other.get_checkpoint_state(ema=True)['task_state_ema']


def test_every_image_is_counted_once_an_epoch_through_memory_and_timms_loaders(tmp_path):
    for name, data in (('memory', ''), ('files', str(runs.folder(tmp_path / 'data')))):
        process = runs.run(runs.train, tmp_path / name, 'soteacher', data=data, epochs=2)
        process.join(120)
        assert process.exitcode == 0
        memory = read_checkpoint(tmp_path / name / 'checkpoint-00002.pt')['task_state']['memory']
        count = 48 if name == 'memory' else 24
        assert memory['counts'][:count].tolist() == [2.] * count and not memory['counts'][count:].any()
        torch.testing.assert_close(memory['sums'].sum(1), memory['counts'])
        rows = runs.summary(tmp_path / name)
        column = rows[0].index('train_consistency')
        assert float(rows[1][column]) == 0. < float(rows[2][column])


def test_timms_loader_tells_the_numbers_of_its_images(tmp_path):
    config = DataConfig(data=str(runs.folder(tmp_path)), batch_size=8, workers=0)
    data = load_data(config)
    loader, _ = create_loaders(data, config, runs.settings(), runs.DATA_CONFIG, torch.device('cpu'), with_index=True)
    found = [(int(label), int(number)) for _, labels, numbers in loader
             for label, number in zip(labels, numbers, strict=True)]
    assert sorted(number for _, number in found) == list(range(24))
    assert all(data.train.reader.samples[number][1] == label for label, number in found)


def test_mixup_is_refused_before_the_first_step():
    task = runs.task('soteacher')
    with pytest.raises(SFTeacherError, match=r'SoTeacher needs to know which image of the data set each one is'):
        training.fit(task, *runs.loaders(with_index=True), runs.settings(mixup=0.2))
    assert task.progress.step == 0 and not task.branches.memory


def test_the_command_line_trains_and_exports_it(tmp_path):
    torch.set_num_threads(1)
    main(['train', 'test_resnet', '--method', 'soteacher', '--method-kwargs', 'lip_weight=1e-4', '--data', 'digits',
          '--input-size', '3', '32', '32', '--batch-size', '256', '--epochs', '2', '--device', 'cpu', '--output',
          str(tmp_path / 'run')])
    folder = tmp_path / 'run' / 'teacher'
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert model.num_classes == 10 and 'SoTeacher' in (folder / 'README.md').read_text()
    assert {'train_lip', 'train_consistency'} <= set(runs.summary(tmp_path / 'run')[0])


def remember_on_a_rank():
    means = RunningMeans()
    index = [torch.tensor([3, 0, 9]), torch.tensor([5])][torch.distributed.get_rank()]
    means.update(index, torch.eye(4)[index % 4])
    assert means.memory['counts'].nonzero().flatten().tolist() == [0, 3, 5, 9]
    assert torch.equal(means.memory['sums'][[0, 3, 5, 9]], torch.eye(4)[[0, 3, 1, 1]])


def test_batches_of_different_size_on_two_ranks(tmp_path):
    on_two_ranks(tmp_path, remember_on_a_rank)
