"""The task as timm expects one: checkpoints, EMA, compile, distributed, clipping, weight decay, copies, moves."""
import copy
import io
import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from timm.task import TrainingTask, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

import sf_teacher
from sf_teacher import SFTN, StudentFriendlyTask

from .helpers import assert_ranks_agree, on_two_ranks

SIZE = (3, 64, 64)


def make(teacher='test_resnet', student='test_resnet', **kwargs):
    torch.manual_seed(0)
    kwargs.setdefault('input_size', SIZE)
    return sf_teacher.wrap(teacher, student, num_classes=10, **kwargs)


def batch(n=4):
    return torch.randn(n, *SIZE), torch.arange(n) % 10


def train(task, steps=2):
    optimizer = create_optimizer_v2(task, 'sgd', lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        task(*batch())['loss'].backward()
        optimizer.step()
    return optimizer


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_is_a_timm_task_around_the_plain_teacher():
    teacher = timm.create_model('test_resnet', num_classes=10)
    task = sf_teacher.wrap(teacher, 'test_vit', input_size=(3, 160, 160))
    assert isinstance(task, TrainingTask) and task.teacher is teacher
    assert task.get_eval_model() is teacher and task.unwrap() is teacher
    assert set(teacher.state_dict()) == set(timm.create_model('test_resnet', num_classes=10).state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_a_checkpoint_of_timms_saver_is_a_plain_teacher(tmp_path):
    task = make()
    optimizer = train(task)
    task.setup_ema(decay=0.5)
    train(task)
    task.update_ema()
    saver = CheckpointSaver(
        task.get_eval_model(), optimizer, task=task, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.)
    path = tmp_path / 'last.pth.tar'
    state = torch.load(path, weights_only=False)
    assert set(state['state_dict']) == set(task.teacher.state_dict())
    assert set(state['task_state']['extra']) == set(task.branches.state_dict())

    plain = timm.create_model('test_resnet', num_classes=10, checkpoint_path=str(path)).eval()
    ema = task.get_eval_model(ema=True).eval()
    images, _ = batch()
    assert torch.equal(plain(images), ema(images))      # timm prefers the EMA weights of a checkpoint
    assert not torch.equal(plain(images), task.teacher.eval()(images))

    torch.manual_seed(5)
    fresh = sf_teacher.wrap('test_resnet', 'test_resnet', num_classes=10, input_size=SIZE)
    assert not same(fresh.branches, task.branches)
    resume_task_checkpoint(fresh, str(path), log_info=False)
    assert same(fresh.trainable_module, task.trainable_module)


def test_ema_follows_teacher_and_branches():
    task = make()
    task.setup_ema(decay=0.5)
    before = [p.detach().clone() for p in task.get_trainable_module(ema=True).module.parameters()]
    train(task, 1)
    task.update_ema()
    pairs = zip(before, task.get_trainable_module(ema=True).module.parameters(), task.trainable_module.parameters(),
                strict=True)
    for old, mean, new in pairs:
        torch.testing.assert_close(mean, (old + new) / 2)
    assert task.get_eval_model(ema=True) is task.get_trainable_module(ema=True).module.model
    assert set(task.get_checkpoint_state(ema=True)) == {'state_dict_ema', 'task_state_ema'}


@pytest.mark.parametrize('how', ['deepcopy', 'pickle'])
def test_copies_give_the_same_loss_and_are_independent(how):
    task = make(student='test_vit', input_size=(3, 160, 160))
    if how == 'deepcopy':
        twin = copy.deepcopy(task)
    else:
        file = io.BytesIO()
        torch.save(task, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    images, labels = torch.randn(2, 3, 160, 160), torch.tensor([1, 2])
    a, b = task(images, labels), twin(images, labels)
    assert torch.equal(a['loss'], b['loss'])
    b['loss'].backward()
    assert all(p.grad is None for p in task.parameters())


def test_moves_keep_device_and_dtype_in_step():
    task = make().to(torch.bfloat16)
    assert task.dtype == torch.bfloat16
    images, labels = batch()
    losses = task(images.bfloat16(), labels)
    losses['loss'].backward()
    assert losses['output'].dtype == torch.bfloat16
    task.to('meta')
    assert task.device.type == 'meta' and {p.device.type for p in task.parameters()} == {'meta'}


def test_autocast_and_channels_last():
    task = make(teacher='test_convnext').to(memory_format=torch.channels_last)
    images, labels = batch()
    with torch.autocast('cpu', torch.bfloat16):
        losses = task(images.to(memory_format=torch.channels_last), labels)
    losses['loss'].backward()
    assert losses['output'].dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


def test_weight_decay_spares_what_teacher_and_student_exclude():
    task = make('test_vit', 'test_vit', input_size=(3, 160, 160))
    groups = create_optimizer_v2(task, 'adamw', lr=1e-3, weight_decay=0.05).param_groups
    decayed = {id(p) for g in groups if g['weight_decay'] for p in g['params']}
    names = task.no_weight_decay()
    assert 'trainable_module.model.pos_embed' in names and 'trainable_module.model.cls_token' in names
    assert all(id(p) not in decayed for n, p in task.named_parameters() if n in names)
    assert id(task.teacher.blocks[0].attn.qkv.weight) in decayed
    inner = create_optimizer_v2(task.get_trainable_module(), 'adamw', lr=1e-3, weight_decay=0.05).param_groups
    assert {id(p) for g in inner if g['weight_decay'] for p in g['params']} == decayed


def test_clip_parameters_without_heads_leave_out_every_classifier():
    task = make(boundaries=[1, 2])
    everything = {id(p) for p in task.get_clip_parameters()}
    assert everything == {id(p) for p in task.trainable_module.parameters()}
    left_out = everything - {id(p) for p in task.get_clip_parameters(exclude_head=True)}
    heads = [task.teacher.fc, *(b.tail.model.fc for b in task.branches.branches)]
    assert left_out == {id(p) for h in heads for p in h.parameters()}


def test_no_sync_is_a_context():
    task = make()
    with task.no_sync():
        task(*batch())['loss'].backward()
    assert task.teacher.fc.weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize('teacher,student,size', [('test_resnet', 'test_vit', 160), ('test_vit', 'test_resnet', 160)])
def test_compiles_without_graph_breaks(teacher, student, size):
    task = make(teacher, student, input_size=(3, size, size)).eval()
    images, labels = torch.randn(2, 3, size, size), torch.tensor([1, 2])
    expected = task(images, labels)
    evaluated = task.compile(backend='eager', fullgraph=True)
    losses = task(images, labels)
    torch.testing.assert_close(losses['loss'], expected['loss'])
    torch.testing.assert_close(evaluated(images), expected['output'])
    losses['loss'].backward()
    assert set(task.get_checkpoint_state()['state_dict']) == set(task.teacher.state_dict())
    assert task.teacher.state_dict().keys() == timm.create_model(teacher, num_classes=10).state_dict().keys()


def test_repr_tells_teacher_student_transforms_and_cost():
    text = repr(make('test_resnet', 'resnet18', method=SFTN(kl_weight=0.5)))
    added = sum(p.numel() for p in make('test_resnet', 'resnet18').branches.parameters())
    assert '  method: SFTN(kl_weight=0.5)\n' in text and 'resnet18' in text
    assert f'{added / 1e6:.2f} M parameters' in text
    assert 'layer2-layer2: 48x8x8 -> Conv2d1x1 -> 128x8x8 NCHW' in text


def test_another_method_is_another_task():
    task = make('test_resnet', 'resnet18')
    with pytest.raises(AttributeError, match="property 'method' of 'StudentFriendlyTask' object has no setter"):
        task.method = SFTN(kl_weight=0.5)
    assert task.method == SFTN()


def test_a_criterion_and_soft_targets():
    teacher = timm.create_model('test_resnet', num_classes=10)
    student = timm.create_model('test_resnet', num_classes=10)
    task = StudentFriendlyTask(teacher, nn.CrossEntropyLoss(label_smoothing=0.1), student, input_size=SIZE)
    images, labels = batch()
    soft = torch.softmax(torch.randn(4, 10), 1)
    assert task(images, soft)['loss'].isfinite()
    hard = task.eval()(images, labels)
    expected = nn.functional.cross_entropy(teacher(images), labels, label_smoothing=0.1)
    assert torch.equal(hard['teacher_ce'], expected)


def test_another_image_size_where_both_admit_it():
    task = make('test_resnet', 'test_convnext')
    losses = task(torch.randn(2, 3, 96, 96), torch.tensor([1, 2]))
    losses['loss'].backward()
    assert losses['loss'].isfinite()


class OutOfMemory(nn.Conv2d):
    def forward(self, x):
        if x.shape[-1] > 64:
            raise torch.OutOfMemoryError('out of memory')
        return super().forward(x)


def test_an_error_that_is_not_of_the_size_stays_what_it_is_on_images_of_another_size():
    images, labels = torch.randn(2, 3, 96, 96), torch.tensor([1, 2])
    with pytest.raises(sf_teacher.SFTeacherError, match=r'^SFTN\(kl_ramp=0.5\) needs to know the epochs'):
        make(method=SFTN(kl_ramp=0.5))(images, labels)
    task = make()
    task.criterion = nn.BCEWithLogitsLoss()
    with pytest.raises(ValueError, match=r'^Target size'):
        task(images, labels)
    teacher = timm.create_model('test_resnet', num_classes=10)
    teacher.conv1 = nn.Sequential(OutOfMemory(3, teacher.conv1[0].out_channels, 3, 2, 1), *list(teacher.conv1)[1:])
    with pytest.raises(torch.OutOfMemoryError, match=r'^out of memory'):
        make(teacher)(images, labels)


def test_gradient_checkpointing_on_the_teacher():
    task, other = make('test_vit', input_size=(3, 160, 160)), make('test_vit', input_size=(3, 160, 160))
    other.teacher.set_grad_checkpointing(True)
    images, labels = torch.randn(2, 3, 160, 160), torch.tensor([1, 2])
    for t in (task, other):
        t(images, labels)['loss'].backward()
    for a, b in zip(task.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_dropout_and_drop_path_act_in_training_only():
    student = timm.create_model('test_convnext', num_classes=10, drop_path_rate=0.5, drop_rate=0.5)
    task = make('test_resnet', student)
    images, labels = batch()
    a, b = (task.train()(images, labels)['branch_output'] for _ in range(2))
    assert not torch.equal(a['layer2-stages.1'], b['layer2-stages.1'])
    a, b = (task.eval()(images, labels)['branch_output'] for _ in range(2))
    assert torch.equal(a['layer2-stages.1'], b['layer2-stages.1'])


def train_on_a_rank(options):
    task = sf_teacher.wrap('test_convnext', 'test_vit', num_classes=10, input_size=(3, 160, 160),
                           method=sf_teacher.SFTN(**options))
    task.prepare_distributed()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        task(torch.randn(2, 3, 160, 160), torch.tensor([1, 2]))['loss'].backward()
        optimizer.step()
    assert_ranks_agree(task)


@pytest.mark.slow
@pytest.mark.parametrize('options', [{}, {'ce_weight': 0., 'kl_weight': 0.}, {'shared': True},
                                     {'sample_branch': True}])
def test_two_ranks_stay_equal_without_find_unused_parameters(tmp_path, options):
    on_two_ranks(tmp_path, train_on_a_rank, options)


def test_sftn_defaults_and_the_reported_settings():
    assert SFTN() == SFTN(teacher_weight=1., ce_weight=1., kl_weight=1., temperature=1., detach_teacher_logits=True,
                          reduction='mean')
    assert SFTN.reported() == SFTN(kl_weight=3., temperature=1., detach_teacher_logits=False, reduction='mean')


def test_export_is_a_plain_teacher_with_a_card(tmp_path):
    task = make()
    train(task)
    folder = task.export(tmp_path / 'teacher', metadata={'data': 'noise'})
    plain = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images, _ = batch()
    assert torch.equal(plain(images), task.teacher.eval()(images))
    card = (folder / 'README.md').read_text()
    assert 'SFTN' in card and 'test_resnet' in card and 'noise' in card
    assert plain.pretrained_cfg['input_size'] == SIZE
    with pytest.raises(sf_teacher.SFTeacherError, match=r'export\(ema=True\) needs task.setup_ema'):
        task.export(tmp_path / 'ema', ema=True)


@pytest.mark.parametrize(('kwargs', 'match'), [
    (dict(folder='full'), 'exists and is not empty'),
    (dict(folder='new', mean=(0.5, 0.5)), 'mean'),
    (dict(folder='new', model_args={'f': print}), 'model_args'),
    (dict(folder='new', metadata={'f': print}), 'metadata'),
    (dict(folder='new', format='onnx'), "format is one of 'timm', 'torchvision', got 'onnx'"),
    (dict(folder='new', format='torchvision'), 'test_resnet cannot be exported in torchvision.s format'),
    (dict(folder='new', factory='not importable!'), "factory='not importable!' cannot be imported"),
    (dict(folder='new', factory=lambda: None), 'factory=.*lambda.*cannot be imported'),
    (dict(folder='another', layout='mdistiller', factory='torch.nn:Linear'), 'is not in the cifar_model_dict'),
])
def test_what_the_export_would_refuse_is_refused_before_the_training(tmp_path, kwargs, match):
    task = make()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').touch()
    kwargs['folder'] = tmp_path / kwargs['folder']
    with pytest.raises(sf_teacher.SFTeacherError, match=match) as early:
        task.check_export(**kwargs)
    with pytest.raises(sf_teacher.SFTeacherError) as late:
        task.export(**kwargs)
    assert str(early.value) == str(late.value)
    assert task.check_export(tmp_path / 'new') is None
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['full', 'mine.txt']


def test_a_teacher_that_timm_cannot_rebuild_is_refused_before_the_training(tmp_path):
    teacher = timm.create_model('test_resnet', num_classes=10)
    teacher.conv1 = nn.Conv2d(3, 32, 3, 2, 1)      # a stem of its own
    with pytest.raises(sf_teacher.SFTeacherError, match='factory='):
        make(teacher).check_export(tmp_path / 'new')


def test_a_branch_is_the_start_of_a_student(tmp_path):
    task = make('resnet10t', 'test_resnet')
    train(task)
    folder = task.export_branch(1, tmp_path / 'branch')
    state = load_file(folder / 'branch.safetensors')
    notes = json.loads((folder / 'branch.json').read_text())
    student = timm.create_model('test_resnet', num_classes=10)
    assert set(notes['trained']) == set(state) and notes['boundary'] == ['layer2']
    assert set(state) | set(notes['untrained']) == set(student.state_dict())
    missing, unexpected = student.load_state_dict(state, strict=False)
    assert set(missing) <= set(notes['untrained']) and not unexpected   # torch does not miss num_batches_tracked
    tail = task.branches.branches[1].tail.eval()
    features = []
    student.layer2.register_forward_hook(lambda m, args, out: features.append(out))
    logits = student.eval()(batch()[0])
    assert torch.equal(tail(features[0]), logits)
    with pytest.raises(sf_teacher.SFTeacherError, match='exists and is not empty'):
        task.export_branch(1, folder)
    with pytest.raises(sf_teacher.SFTeacherError, match=r'no branch 3 .* has 3 here'):
        task.export_branch(3, tmp_path / 'other')
