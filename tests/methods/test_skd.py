"""Student-friendly KD: an identity at the start, trained by the loss alone; timm's task, torchdistill, distill."""
import copy
import logging
import math

import pytest
import timm
import torch
from sf_teacher.adapters import torchdistill as adapter
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.task import LogitDistillationTask
from torch import nn
from torchdistill.core.distillation import get_distillation_box

from sf_teacher import SFTeacherError
from sf_teacher.exporting.exporter import export
from sf_teacher.kd_task import StudentFriendlyKDTask
from sf_teacher.methods._simplifier import CollapseWatch, Simplifier
from sf_teacher.training.components import create_optimizer
from sf_teacher.training.distillation import distillation_task
from sf_teacher.training.settings import SIMPLIFIER_LR, StudentRun

from .. import helpers
from ..adapters.torchdistill_runs import SIZE as SMALL
from ..adapters.torchdistill_runs import batches, box_losses, kd, loader_config, weighted
from ..training import training_runs as runs

SIZE = (3, 64, 64)
CPU = torch.device('cpu')


def model(name='test_resnet', seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=10, **kwargs)


def make(**kwargs):
    kwargs = {'task_loss_weight': 0.1, 'distill_loss_weight': 0.9, 'verbose': False, **kwargs}
    return StudentFriendlyKDTask(model(drop_rate=0.1), model(seed=1), **kwargs)


def batch(n=8):
    return torch.randn(n, *SIZE), torch.arange(n) % 10


def awake(simplifier, scale=0.3):
    """A simplifier that is no identity any more."""
    torch.manual_seed(5)
    for p in simplifier.proj.parameters():
        nn.init.normal_(p, std=scale)
    return simplifier


# The simplifier

def test_it_starts_as_the_identity():
    logits = 10 * torch.randn(6, 10)
    assert torch.equal(Simplifier(10)(logits), logits)
    assert not torch.equal(awake(Simplifier(10))(logits), logits)


def test_its_arithmetic_equals_a_reference():
    simplifier, z = awake(Simplifier(7, temperature=3., dim=5)).double(), torch.randn(4, 7, dtype=torch.float64)
    x, expected = z / 3., torch.empty_like(z)
    weight, bias = simplifier.qkv.weight, simplifier.qkv.bias
    q, k, v = (x @ weight[5 * i:5 * i + 5].T + bias[5 * i:5 * i + 5] for i in range(3))
    for i in range(4):
        score = torch.stack([(q[i] * k[j]).sum() / math.sqrt(5) for j in range(4)]).exp()
        mixed = sum(score[j] / score.sum() * v[j] for j in range(4))
        expected[i] = z[i] + 3. * (simplifier.proj.weight @ mixed + simplifier.proj.bias)
    torch.testing.assert_close(simplifier(z), expected, rtol=1e-12, atol=1e-12)


def test_permuting_the_batch_permutes_the_targets_and_nothing_else():
    simplifier, z = awake(Simplifier(10)).double(), torch.randn(8, 10, dtype=torch.float64)
    order = torch.randperm(8)
    torch.testing.assert_close(simplifier(z[order]), simplifier(z)[order], rtol=1e-12, atol=1e-12)
    task = make().double().eval()
    awake(task.simplifier)
    images, labels = batch()
    a, b = task(images.double(), labels), task(images[order].double(), labels[order])
    torch.testing.assert_close(a.pop('output')[order], b.pop('output'))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name].to(a[name].dtype), msg=name)


# The task

def train(task, steps, groups=None):
    return helpers.train(task, groups or task.parameter_groups(0.05, 5e-4), batch, steps, seed=2)


def test_without_the_projection_it_is_plain_kd_exactly():
    task = make()
    plain = LogitDistillationTask(model(drop_rate=0.1), model(seed=1), nn.CrossEntropyLoss(), task_loss_weight=0.1,
                                  distill_loss_weight=0.9, temperature=4., verbose=False)
    groups = task.parameter_groups(0.05, 5e-4)
    expected = train(plain, 4, groups=_student_groups(plain))
    task.simplifier.proj.requires_grad_(False)      # it stays zero
    for ours, theirs in zip(train(task, 4, groups), expected, strict=True):
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name
    for (name, a), b in zip(task.student.state_dict().items(), plain.trainable_module.state_dict().values(),
                            strict=True):
        assert torch.equal(a, b), name


def _student_groups(plain):
    made = StudentFriendlyKDTask(plain.trainable_module, plain.teacher, verbose=False, distill_loss_weight=1.)
    return made.parameter_groups(0.05, 5e-4)[:2]


def test_the_teacher_gets_no_gradient_and_the_simplifier_does():
    task = make()
    teacher = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    task.train()(*batch())['loss'].backward()
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert not any(m.training for m in task.teacher.modules()) and task.student.training
    assert all(p.grad is not None for p in task.trainable_module.parameters())
    assert task.simplifier.proj.weight.grad.abs().sum() > 0
    train(task, 2)
    task.zero_grad()
    task(*batch())['loss'].backward()
    assert all(p.grad.abs().sum() > 0 for n, p in task.simplifier.named_parameters() if 'bias' not in n)
    assert all(torch.equal(v, teacher[k]) for k, v in task.teacher.state_dict().items())


def test_the_task_loss_does_not_reach_the_simplifier():
    task = make()
    awake(task.simplifier)
    task(*batch())['task_loss'].backward()
    assert all(p.grad is None or not p.grad.any() for p in task.simplifier.parameters())


def test_building_it_leaves_the_random_numbers_alone():
    student, teacher = model(), model(seed=1)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    StudentFriendlyKDTask(student, teacher, verbose=False)
    assert torch.equal(torch.rand(2), expected)


def test_the_simplifier_has_a_learning_rate_of_its_own_which_schedules_keep():
    task = make()
    config = StudentRun(lr=0.1, weight_decay=0.01, warmup_epochs=2, warmup_lr=0.05, min_lr=0.01, epochs=10)
    optimizer = create_optimizer(task, config)
    scheduler = timm.scheduler.create_scheduler_v2(optimizer, **scheduler_kwargs(config))[0]
    own = {id(p) for p in task.simplifier.parameters()}
    for group in optimizer.param_groups:
        inside = {id(p) in own for p in group['params']}
        assert len(inside) == 1 and group['lr'] == pytest.approx(0.05 * (SIMPLIFIER_LR if inside == {True} else 1.))
        assert group['weight_decay'] == (0.01 if group['params'][0].ndim > 1 else 0.)
    assert sum(len(g['params']) for g in optimizer.param_groups) == len(list(task.trainable_module.parameters()))
    for epoch in range(1, 10):      # warm-up and the lowest rate are scaled too
        scheduler.step(epoch)
        rates = {g['lr'] for g in optimizer.param_groups}
        assert len(rates) == 2 and min(rates) == pytest.approx(SIMPLIFIER_LR * max(rates)) and 0.01 <= max(rates) <= 0.1
    plain = create_optimizer(task, StudentRun(lr=0.1, sched='none'))
    assert sorted({g['lr'] for g in plain.param_groups}) == pytest.approx([0.1 * SIMPLIFIER_LR, 0.1])


def test_target_accuracy_and_entropy_are_those_of_the_softened_targets():
    task = make().eval()
    awake(task.simplifier)
    images, labels = batch()
    losses = task(images, labels)
    targets = task.simplifier(task.teacher(images))
    p = torch.softmax(targets / 4., 1)
    torch.testing.assert_close(losses['target_entropy'], -(p * p.log()).sum(1).mean())
    torch.testing.assert_close(losses['target_top1'], (targets.argmax(1) == labels).float().mean() * 100)
    soft = torch.eye(10)[labels]
    assert torch.equal(task(images, soft)['target_top1'], losses['target_top1'])


@pytest.mark.parametrize('targets', ['uniform', 'wrong', 'nan'])
def test_a_warning_once_on_collapse(targets, caplog):
    labels = torch.arange(8) % 4
    teacher = 10. * torch.eye(4)[labels] + torch.randn(8, 4)
    made = {'uniform': 0.01 * teacher, 'wrong': -teacher, 'nan': teacher * math.nan}[targets]
    watch = CollapseWatch(interval=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            watch.update(teacher, made, labels, 4., training=True)
            watch.update(teacher, made, labels, 4., training=False)
        assert not caplog.records
        for _ in range(9):
            watch.update(teacher, made, labels, 4., training=True)
    assert len(caplog.records) == 1
    assert 'The simplifier has collapsed: over 3 steps its targets had' in caplog.text
    assert 'smaller learning rate' in caplog.text


def test_no_warning_in_ordinary_training(caplog):
    with caplog.at_level(logging.WARNING):
        train(make(watch=CollapseWatch(2)), 4)
    assert not caplog.records


def test_checkpoint_ema_and_copies():
    task = make()
    awake(task.simplifier)
    task.setup_ema(decay=0.5)
    assert task.get_eval_model() is task.student
    assert task.get_eval_model(ema=True) is task.trainable_module_ema.module.model
    state = task.get_checkpoint_state()
    assert set(state['state_dict']) == set(model().state_dict())        # the plain student
    other = make()
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    images, labels = batch()
    assert torch.equal(other.eval()(images, labels)['loss'], copy.deepcopy(task).eval()(images, labels)['loss'])
    assert len(task.get_clip_parameters(exclude_head=True)) == len(task.get_clip_parameters()) - 2


def test_compiles_without_graph_breaks():
    task = make().eval()
    images, labels = batch(2)
    expected = task(images, labels)
    student = task.student
    evaluated = task.compile(backend='eager', fullgraph=True)
    torch.testing.assert_close(task(images, labels)['loss'], expected['loss'])
    torch.testing.assert_close(evaluated(images), expected['output'])
    assert task.student is student


def test_it_composes_with_any_teacher_and_another_normalisation():
    teacher = model('test_vit', img_size=64)
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, 'mean': (0.1, 0.2, 0.3), 'std': (1., 2., 3.)}
    task = StudentFriendlyKDTask(model(), teacher, verbose=False)
    assert task(*batch())['loss'].isfinite()


def train_on_a_rank():
    task = make()
    awake(task.simplifier)
    torch.manual_seed(torch.distributed.get_rank())
    task.prepare_distributed(broadcast_buffers=False)
    optimizer = torch.optim.SGD(task.parameter_groups(0.05), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        task(*batch(4))['loss'].backward()
        optimizer.step()
    helpers.assert_ranks_agree(task)


def test_two_ranks_stay_equal_without_find_unused_parameters(tmp_path):
    helpers.on_two_ranks(tmp_path, train_on_a_rank)


# distill

def test_distill_trains_and_resumes_with_it(tmp_path):
    def task():
        student = timm.create_model('test_resnet', num_classes=runs.CLASSES)
        teacher = timm.create_model('test_resnet', num_classes=runs.CLASSES)
        return distillation_task(student, teacher, nn.CrossEntropyLoss(), StudentRun(kd='student_friendly'), CPU)

    def run(folder, epochs, **kwargs):
        torch.manual_seed(0)
        config = runs.settings(tmp_path / folder, epochs=epochs, mixup=0., sched='constant', warmup_epochs=0, **kwargs)
        return runs.training.fit(task(), *runs.loaders(), config)

    rows = run('straight', 2)
    assert {'train_target_top1', 'train_target_entropy', 'train_kd_loss'} <= rows[-1].keys()
    state = runs.final_state(tmp_path / 'straight')
    assert set(state['task_state']['extra']) == set(Simplifier(4).state_dict())
    assert state['task_state']['extra']['proj.weight'].abs().sum() > 0


# torchdistill

def box(requires_grad=True, criterion=None, teacher=None, **kwargs):
    stage = {
        'num_epochs': 1, 'train_data_loader': loader_config('train'),
        'teacher': {'forward_proc': 'forward_batch_only', 'requires_grad': requires_grad},
        'student': {'forward_proc': 'forward_batch_only', 'requires_grad': True},
        'optimizer': {'key': 'SGD', 'kwargs': {'lr': 0.05}, 'module_wise_configs': [
            *({'module': name} for name in ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4', 'fc')),
            {'module': 'simplifier', 'is_teacher': True, 'kwargs': {'lr': 0.001}}]},
        'criterion': criterion or kd(),
    }
    if kwargs.pop('plain', False):
        stage['teacher']['requires_grad'] = False
        del stage['optimizer']['module_wise_configs']
    else:
        stage['teacher']['auxiliary_model_wrapper'] = {'key': 'Teacher4StudentFriendlyKD', 'kwargs': kwargs}
    teacher = teacher or model(seed=1).eval()
    return get_distillation_box(teacher, model(), {'train': batches()}, stage, CPU, None, False, 1)


def test_in_torchdistill_the_simplifier_is_trained_and_the_teacher_is_not(caplog, tmp_path):
    made = box(ckpt_file_path=str(tmp_path / 'simplifier.pt'))
    wrapper, before = made.teacher_model, {k: v.clone() for k, v in made.teacher_model.state_dict().items()}
    assert isinstance(wrapper, adapter.Teacher4StudentFriendlyKD)
    with caplog.at_level(logging.INFO):
        losses = box_losses(made)
    changed = {k.partition('.')[0] for k, v in wrapper.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'simplifier'} and not any(m.training for m in wrapper.teacher.modules())
    assert {g['lr'] for g in made.optimizer.param_groups} == {0.05, 0.001}
    assert 'Simplified targets: entropy' in caplog.text
    assert losses[0] == box_losses(box(plain=True))[0]      # plain KD, exactly, while the projection is zero
    assert losses[1:] != box_losses(box(plain=True))[1:]
    again = box(ckpt_file_path=str(tmp_path / 'simplifier.pt')).teacher_model
    assert torch.equal(again.simplifier.proj.weight, wrapper.simplifier.proj.weight)
    with torch.no_grad():
        assert wrapper(torch.randn(1, *SMALL)).shape == (1, 10)      # outside of training


def test_in_torchdistill_a_write_that_fails_leaves_the_simplifier_of_the_epoch_before(tmp_path, monkeypatch):
    def half(state, file):
        file.write(b'half')
        raise OSError('No space left on device')

    path = tmp_path / 'simplifier.pt'
    wrapper = adapter.Teacher4StudentFriendlyKD(model(), CPU, ckpt_file_path=str(path))
    wrapper.post_epoch_process()
    before = path.read_bytes()
    monkeypatch.setattr(torch, 'save', half)
    with pytest.raises(SFTeacherError, match='No space left on device'):
        wrapper.post_epoch_process()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_in_torchdistill_a_projection_that_stays_zero_is_plain_kd_over_the_epoch():
    made = box()
    made.optimizer.param_groups[-1]['lr'] = 0.
    assert box_losses(made) == box_losses(box(plain=True))



def test_a_single_image_is_fine_in_evaluation():
    assert make().eval()(*batch(1))['loss'].isfinite()


def test_other_losses_on_logits_take_it_too():
    losses = box_losses(box(criterion=weighted(
        'DISTLoss', student_module_path='.', student_module_io='output', teacher_module_path='.',
        teacher_module_io='output', beta=1., gamma=1., tau=4.)))
    assert all(math.isfinite(value) for value in losses)


def test_a_teacher_by_name_is_checked_as_every_other_one(tmp_path):
    teacher = model(seed=1).eval()
    folder = export(teacher, tmp_path / 'teacher', input_size=SIZE)
    task = StudentFriendlyKDTask(model(), f'local-dir:{folder}', verbose=False)
    assert torch.equal(task.teacher.model.get_classifier().weight, teacher.get_classifier().weight)
    with pytest.raises(SFTeacherError, match='the teacher has 10 classes and the student 5: build both with'):
        StudentFriendlyKDTask(timm.create_model('test_resnet', num_classes=5), f'local-dir:{folder}', verbose=False)
    with (folder / 'model.safetensors').open('r+b') as file:
        file.seek(-4, 2)
        file.write(b'\0\0\xc0\x7f')
    with pytest.raises(SFTeacherError, match=r'model\.safetensors is truncated or changed'):
        StudentFriendlyKDTask(model(), f'local-dir:{folder}', verbose=False)
