"""The teacher is left exact; tails are exact; the loss equals an independent reference; pairs of all kinds train."""
import itertools

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask

import sf_teacher
from sf_teacher import SFTN, BoundaryError
from sf_teacher.functional import entropy, kl_divergence
from sf_teacher.split import tail_check
from sf_teacher.split.split_points import student_boundaries
from sf_teacher.split.tail_check import check_tails
from sf_teacher.split.tails import Tail
from sf_teacher.split.trace import Trace, tensors
from tests.helpers import joint_loss
from tests.split.families import build_small
from tests.split.family_checks import check_step, check_tail, check_teacher

SIZE = (3, 64, 64)


def model(name, **kwargs):
    kwargs = {'img_size': 64, **kwargs} if 'vit' in name or 'swin' in name or 'mixer' in name else kwargs
    return timm.create_model(name, num_classes=10, **kwargs)


def batch(n=4, size=SIZE):
    return torch.randn(n, *size), torch.arange(n) % 10


# The teacher

@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_convnext', 'test_efficientnet'])
def test_teacher_logits_are_its_own(name):
    check_teacher(*build_small(name))


@pytest.mark.parametrize('name', ['test_resnet', 'vit_tiny_patch16_224'])
def test_weights_zero_is_plain_training_over_20_steps(name):
    kwargs = {'drop_path_rate': 0.1, 'drop_rate': 0.1}
    torch.manual_seed(0)
    plain = model(name, **kwargs)
    torch.manual_seed(0)
    task = sf_teacher.wrap(model(name, **kwargs), 'test_resnet', method=SFTN(ce_weight=0., kl_weight=0.),
                           input_size=SIZE)
    timm_task = ClassificationTask(plain, torch.nn.CrossEntropyLoss())
    for t in (timm_task, task):
        optimizer = create_optimizer_v2(t.get_trainable_module(), 'sgd', lr=0.05, momentum=0.9, weight_decay=5e-4)
        torch.manual_seed(1)
        t.train()
        for _ in range(20):
            loss = t(*batch())['loss']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for (k, a), b in zip(plain.state_dict().items(), task.teacher.state_dict().values(), strict=True):
        assert torch.equal(a, b), k
    assert not any(p.requires_grad for p in task.branches.parameters())


def test_wrapping_leaves_the_random_numbers_alone():
    teacher = model('test_resnet')
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    sf_teacher.wrap(teacher, 'test_resnet', input_size=SIZE)
    assert torch.equal(torch.rand(4), expected)


# The tail

@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_mambaout', 'test_nfnet'])
def test_tails_are_exact_at_every_boundary(name):
    student, input_size = build_small(name)
    boundaries, trace = student_boundaries(student, input_size)
    assert len(boundaries) >= 2
    for boundary in boundaries:
        check_tail(student, boundary, trace, input_size)


# convolutions; token positions that are constants of the tail; positions that depend on how many blanks there are
@pytest.mark.parametrize('name,kwargs', [
    ('test_resnet', {}), ('gemma4_vit_167m', {'depth': 4, 'embed_dim': 128, 'num_heads': 2, 'intermediate_size': 64}),
    ('deepseek_vit_412m', {'depth': 4, 'embed_dim': 64, 'num_heads': 2})])
def test_tails_for_large_images_are_checked_on_small_ones(name, kwargs, monkeypatch):
    size = (3, 252, 252) if 'deepseek' in name else (3, 384, 384)
    student = timm.create_model(name, num_classes=10, **kwargs)
    boundaries, trace = student_boundaries(student, size)
    tail = Tail(student, boundaries[0].split, trace)
    constants = {n: b.clone() for n, b in tail.named_buffers()}
    compare, sizes = tail_check._compare, []
    monkeypatch.setattr(tail_check, '_compare', lambda at, *args, **kwargs: (
        sizes.append(at.input_size), compare(at, *args, **kwargs)))
    check_tails(trace, [tail])
    assert sizes == [(3, size[1] // 3, size[2] // 3) if 'deepseek' in name else (3, 96, 96)]
    assert tail.input_size == size and all(torch.equal(b, constants[n]) for n, b in tail.named_buffers())
    check_tail(student, boundaries[0], trace, size)

    original = Tail.forward
    monkeypatch.setattr(Tail, 'forward', lambda self, *features: original(self, *features) * (1 + 1e-6))
    with pytest.raises(BoundaryError, match='does not reproduce the logits'):
        check_tails(trace, [tail])


def test_a_recorded_forward_keeps_no_activations():
    student, kept = model('test_resnet'), []
    trace = Trace(student, SIZE, ['layer1'])
    for name, calls in trace.calls.items():
        kept += [name for call in calls for t in tensors(call.output) if not t.is_meta]
    assert kept == ['layer1']


def test_a_tail_never_runs_the_prefix():
    student = model('resnet18')
    boundaries, trace = student_boundaries(student, SIZE)
    boundary = next(b for b in boundaries if b.name == 'layer2')
    tail = Tail(student, boundary.split, trace)
    calls = []
    for name, module in tail.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: calls.append((name, type(m).__name__)))
    tail(torch.randn(2, 128, 8, 8))
    ran = {name for name, _ in calls if name.startswith('model.layer')}
    assert {n.split('.')[1] for n in ran if n.count('.') > 1} == {'layer3', 'layer4'}
    convolved = [name for name, kind in calls if kind == 'Conv2d' and name.startswith('model.layer')]
    assert len(convolved) == 10     # two blocks a stage: 4 and a shortcut each
    prefix = ('conv1', 'bn1', 'layer1', 'layer2')
    assert not [n for n in tail.model.state_dict() if n.startswith(prefix)]


def test_the_student_is_copied_and_left_as_it_is():
    student = model('test_resnet').train()
    student.layer1.eval()
    student.conv1[0].weight.requires_grad_(False)
    seen = []
    student.layer1.register_forward_hook(lambda *args: seen.append(1))
    modes = {n: m.training for n, m in student.named_modules()}
    state = {k: v.clone() for k, v in student.state_dict().items()}
    task = sf_teacher.wrap(model('test_resnet'), student, input_size=SIZE)
    assert seen == [1]      # tried once, on a copy: a hook that changed the logits would be refused
    task(*batch())['loss'].backward()
    assert seen == [1] and len(student.layer1._forward_hooks) == 1
    assert {n: m.training for n, m in student.named_modules()} == modes
    assert not student.conv1[0].weight.requires_grad and student.layer2[0].conv1.weight.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


def test_pretrained_weights_flow_into_the_tails():
    student = model('test_resnet')
    task = sf_teacher.wrap(model('test_resnet'), student, input_size=SIZE)
    for branch in task.branches.branches:
        for name, value in branch.tail.model.state_dict().items():
            assert torch.equal(value, student.state_dict()[name]), name


# The loss

def reference_loss(z_t, branches, y, m):
    """SFTN's loss written out with probabilities, branch by branch."""
    total = m.teacher_weight * -torch.log_softmax(z_t, 1)[torch.arange(len(y)), y].mean()
    n = len(branches) if m.reduction == 'mean' else 1
    for z in branches:
        p = torch.softmax((z_t.detach() if m.detach_teacher_logits else z_t) / m.temperature, 1)
        q = torch.softmax(z / m.temperature, 1)
        a, b = (p, q) if m.kl_direction == 'teacher||branch' else (q, p)
        kl = (a * (a.log() - b.log())).sum(1).mean()
        ce = -torch.log_softmax(z, 1)[torch.arange(len(y)), y].mean()
        total = total + (m.ce_weight * ce + m.kl_weight * m.temperature ** 2 * kl) / n
    return total


@pytest.mark.parametrize('direction,detach,reduction,tau', list(itertools.product(
    ('teacher||branch', 'branch||teacher'), (False, True), ('mean', 'sum'), (1., 4.))))
def test_the_loss_equals_the_reference(direction, detach, reduction, tau):
    m = SFTN(teacher_weight=0.7, ce_weight=0.4, kl_weight=3., temperature=tau, kl_direction=direction,
             detach_teacher_logits=detach, reduction=reduction)
    z = [torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    y = torch.tensor([0, 3, 6, 2, 2])
    ours = joint_loss(z[0], {'a': z[1], 'b': z[2], 'c': z[3]}, {}, y, m)
    expected = reference_loss(z[0], z[1:], y, m)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, z), torch.autograd.grad(expected, z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_divergence_of_logits_in_half_precision_is_that_of_their_values(dtype):
    z = torch.randn(8, 100).to(dtype)
    others = (z + 0.1 * torch.randn(8, 100)).to(dtype)
    expected = kl_divergence(z.double(), others.double(), 4.)
    torch.testing.assert_close(kl_divergence(z, others, 4.).double(), expected, rtol=1e-3, atol=0.)
    torch.testing.assert_close(entropy(z).double(), entropy(z.double()), rtol=1e-6, atol=0.)
    assert torch.equal(kl_divergence(z.float(), others.float(), 4.), kl_divergence(z, others, 4.))


def test_every_term_is_returned_by_name():
    losses = sf_teacher.wrap(model('test_resnet'), 'test_resnet', method=SFTN(kl_weight=3.), input_size=SIZE,
                             boundaries=[1, 2])(*batch())
    names = ['layer1-layer1', 'layer2-layer2']
    assert set(losses) == {'loss', 'output', 'branch_output', 'teacher_ce', 'branch_ce', 'branch_kl',
                           *(f'branch_ce/{n}' for n in names), *(f'branch_kl/{n}' for n in names)}
    torch.testing.assert_close(losses['loss'], losses['teacher_ce'] + losses['branch_ce'] + 3 * losses['branch_kl'])


def classifier_gradient(**options):
    torch.manual_seed(0)
    task = sf_teacher.wrap(model('test_resnet'), 'test_resnet', method=SFTN(**options), input_size=SIZE)
    task(*batch())['branch_kl'].backward()
    return task


def test_the_divergence_reaches_the_teachers_classifier_unless_detached():
    task = classifier_gradient(detach_teacher_logits=False)
    assert task.teacher.fc.weight.grad.abs().sum() > 0
    task = classifier_gradient(detach_teacher_logits=True)
    assert task.teacher.fc.weight.grad is None
    assert task.teacher.conv1[0].weight.grad.abs().sum() > 0     # through the features
    task = classifier_gradient(detach_teacher_logits=True, detach_features=True)
    assert task.teacher.conv1[0].weight.grad is None


def test_shared_branches_hold_one_copy_of_what_they_have_in_common():
    torch.manual_seed(0)
    separate = sf_teacher.wrap(model('test_resnet'), 'test_resnet', input_size=SIZE)
    shared = sf_teacher.wrap(model('test_resnet'), 'test_resnet', method=SFTN(shared=True), input_size=SIZE)
    first, second = (b.tail.model for b in shared.branches.branches[:2])
    assert first.fc.weight is second.fc.weight and first.bn1 is not second.bn1
    assert first.layer4[0].bn1.running_mean is not second.layer4[0].bn1.running_mean
    count = [sum(p.numel() for p in t.branches.parameters()) for t in (shared, separate)]
    assert count[0] < count[1]
    check_step(shared, SIZE)


# Pairs

@pytest.mark.parametrize('teacher,student', [
    ('resnet10t', 'test_resnet'), ('resnet10t', 'vit_tiny_patch16_224'), ('vit_tiny_patch16_224', 'test_resnet'),
    ('vit_tiny_patch16_224', 'test_vit'), ('swin_tiny_patch4_window7_224', 'resnet18'),
    ('convnext_atto', 'mobilenetv3_small_100'), ('efficientnet_b0', 'vit_tiny_patch16_224'),
    ('mixer_s32_224', 'resnet18'),
])
def test_pairs_train_a_step(teacher, student):
    task = sf_teacher.wrap(model(teacher), model(student), input_size=SIZE)
    before = {k: v.clone() for k, v in task.named_parameters()}
    optimizer = create_optimizer_v2(task, 'sgd', lr=0.1)
    check_step(task, SIZE)
    optimizer.step()
    changed = {k for k, v in task.named_parameters() if not torch.equal(v, before[k])}
    assert any('trainable_module.model.' in k for k in changed) and any('.transform.' in k for k in changed)
    assert any('.tail.' in k for k in changed)


def test_several_students_share_the_teachers_maps():
    task = sf_teacher.wrap(model('resnet10t'), [model('test_resnet'), model('test_vit')], input_size=SIZE)
    assert len(task.branches.boundaries) == 3
    assert {n.split('.')[0] for n in task.branches.names} == {'0', '1'}
    check_step(task, SIZE)
