"""TESKD: its loss and its modules equal an independent reference; any teacher with two stages or more trains."""

import pytest
import timm
import torch
from torch import nn

import sf_teacher
from sf_teacher import TESKD
from sf_teacher.methods._pyramid import pyramid_boundaries
from sf_teacher.split.teacher_taps import teacher_boundaries
from tests.helpers import joint_loss
from tests.split.families import FAMILIES, build_small
from tests.split.family_checks import check_own_logits, check_step
from tests.split.test_families import SHARE

SIZE = (3, 64, 64)


def make(teacher='test_resnet', **kwargs):
    return sf_teacher.wrap(teacher, method=kwargs.pop('method', TESKD(width=16)), num_classes=10,
                           **{'input_size': SIZE, **kwargs})


def batch(n=4, size=SIZE):
    return torch.randn(n, *size), torch.arange(n) % 10


# References

def norm_act(x, weights, name, training):
    """Convolution, batch norm, ReLU by their formulas; kernel = stride, so a convolution is a product of patches."""
    weight, bias = weights[f'{name}.0.weight'], weights.get(f'{name}.0.bias')
    k = weight.shape[-1]
    x = x[:, :, :x.shape[2] // k * k, :x.shape[3] // k * k].unfold(2, k, k).unfold(3, k, k)
    x = torch.einsum('bchwij,ocij->bohw', x, weight)
    x = x if bias is None else x + bias[:, None, None]
    mean = x.mean((0, 2, 3)) if training else weights[f'{name}.1.running_mean']
    var = x.var((0, 2, 3), unbiased=False) if training else weights[f'{name}.1.running_var']
    x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return (x * weights[f'{name}.1.weight'][:, None, None] + weights[f'{name}.1.bias'][:, None, None]).clamp(min=0)


def enlarged(x, size):
    """Bilinear with align_corners=True: corners map to corners, rows and columns one after the other."""
    for dim, n in ((2, size[0]), (3, size[1])):
        at = torch.linspace(0, x.shape[dim] - 1, n, dtype=x.dtype) if n > 1 else torch.zeros(1, dtype=x.dtype)
        low = at.floor().long().clamp(max=x.shape[dim] - 1)
        high = (low + 1).clamp(max=x.shape[dim] - 1)
        t = (at - low).reshape([-1 if d == dim else 1 for d in range(4)])
        x = x.index_select(dim, low) * (1 - t) + x.index_select(dim, high) * t
    return x


def reference_students(maps, weights, training):
    """Logits and features of the students, written out from the method's description."""
    n = len(maps) - 1
    p, found = norm_act(maps[n], weights, f'laterals.{n}', training), {}
    for i in reversed(range(n)):
        lateral = norm_act(maps[i], weights, f'laterals.{i}', training)
        p = p if p.shape[2:] == lateral.shape[2:] else enlarged(p, lateral.shape[2:])
        u = norm_act(p, weights, f'ups.{i}', training)
        p = norm_act(torch.cat([u + lateral, u], 1), weights, f'merges.{i}', training)
        f = norm_act(norm_act(p, weights, f'students.{i}.down', training), weights, f'students.{i}.proj', training)
        f = f.mean((2, 3))
        found[i] = (f @ weights[f'students.{i}.fc.weight'].T + weights[f'students.{i}.fc.bias'], f)
    return [found[i] for i in range(n)]


def reference_loss(z_t, students, f_t, y, temperature=4.):
    rows = torch.arange(len(y))
    total = 0.2 * -torch.log_softmax(z_t, 1)[rows, y].mean()
    log_p = torch.log_softmax(z_t / temperature, 1)
    for z, f in students:
        total = total + 0.2 * -torch.log_softmax(z, 1)[rows, y].mean()
        log_q = torch.log_softmax(z / temperature, 1)
        total = total + 0.8 * temperature ** 2 * (log_p.exp() * (log_p - log_q)).sum() / len(y)
        total = total + 1e-7 * ((f - f_t.detach()) ** 2).sum()
    return total


def test_the_loss_equals_the_reference():
    z = [torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    f = [torch.randn(5, 6, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    y = torch.tensor([0, 3, 6, 2, 2])
    term = 1e-7 * sum((a - f[0].detach()).square().sum() for a in f[1:])
    ours = joint_loss(z[0], dict(zip('abc', z[1:], strict=True)), {'feature_distance': term}, y, TESKD())
    expected = reference_loss(z[0], list(zip(z[1:], f[1:], strict=True)), f[0], y)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, z), torch.autograd.grad(expected, z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('teacher,width', [('test_resnet', 5), ('test_resnet', None), ('test_vit', 6)])
def test_modules_and_loss_equal_the_reference_on_fixed_tensors(teacher, width, training):
    size = (3, 160, 160) if teacher == 'test_vit' else SIZE
    task = make(teacher, method=TESKD(width=width), input_size=size).double().train(training)
    branches = task.branches
    generator = torch.Generator().manual_seed(1)
    for p in branches.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    weights = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in branches.state_dict().items()}
    maps = [torch.randn(4, b.layouts[0].channels, *b.size, generator=generator, dtype=torch.float64)
            for b in branches.boundaries]
    z_t, y = torch.randn(4, 10, generator=generator, dtype=torch.float64), torch.tensor([1, 2, 3, 4])
    inputs, copies = [[t.clone().requires_grad_() for t in (z_t, *maps)] for _ in range(2)]

    output = branches(inputs[1:], inputs[0])
    ours = joint_loss(inputs[0], output.logits, output.terms, y, task.method)
    students = reference_students(copies[1:], weights, training)
    expected = reference_loss(copies[0], students, copies[-1].mean((2, 3)), y)
    for z, (reference, _) in zip(output.logits.values(), students, strict=True):
        torch.testing.assert_close(z, reference, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    names = [n for n, _ in branches.named_parameters()]
    a = torch.autograd.grad(ours, [*inputs, *branches.parameters()])
    b = torch.autograd.grad(expected, [*copies, *(weights[n] for n in names)])
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


def test_the_feature_distance_is_a_sum_over_everything_and_its_target_is_detached():
    task = make(method=TESKD(width=16, feature_weight=1., teacher_weight=0.)).eval()
    maps = [torch.randn(3, b.layouts[0].channels, *b.size, requires_grad=True) for b in task.branches.boundaries]
    for student in task.branches.students:
        for p in student.proj.parameters():
            p.data.zero_()      # f_i = 0
    term = task.branches(maps, torch.randn(3, 10)).terms['feature_distance']
    torch.testing.assert_close(term, 3 * maps[-1].mean((2, 3)).square().sum())
    reached = torch.autograd.grad(term, maps, allow_unused=True)
    assert not reached[-1].any()


def test_the_pyramid_keeps_no_concatenation_for_the_backward_and_enlarges_after_the_convolution():
    task, kept, convolved = make(method=TESKD(width=20)), [], []
    for up in task.branches.ups:
        up[0].register_forward_hook(lambda module, args, output: convolved.append(tuple(output.shape[2:])))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        task(*batch(4))['loss'].backward()
    assert kept and not [shape for shape in kept if shape[:2] == (4, 40)]
    assert convolved == [b.size for b in reversed(task.branches.boundaries[1:])]


def test_the_divergence_reaches_the_teachers_classifier():
    task = make(method=TESKD(width=16, teacher_weight=0., ce_weight=0.))
    task(*batch())['loss'].backward()
    assert task.teacher.fc.weight.grad.abs().sum() > 0


# The settings

def test_defaults_and_official_settings():
    assert TESKD() == TESKD(teacher_weight=0.2, ce_weight=0.2, kl_weight=0.8, temperature=4., reduction='sum',
                            kl_direction='teacher||branch', detach_teacher_logits=False, feature_weight=1e-7, width=128)
    assert TESKD.official() == TESKD(width=None)
    official = make('resnet18', method=TESKD.official()).branches
    assert official.width == official.channels == 512


def test_wrap_by_name_needs_no_student():
    task = sf_teacher.wrap('resnet18', method='teskd', num_classes=10, input_size=SIZE)
    assert [b.name for b in task.branches.boundaries] == ['layer1', 'layer2', 'layer3', 'layer4']
    assert list(task(*batch())['branch_output']) == ['layer1', 'layer2', 'layer3']
    text = repr(task)
    assert 'TESKD(' in text and 'students: none' in text and 'layer1: level of the pyramid -> Conv2d8x8/8' in text


def test_weights_zero_do_not_execute_the_students():
    task = make(method=TESKD(ce_weight=0., kl_weight=0., feature_weight=0.))
    assert not task.method.active and task(*batch())['branch_output'] == {}
    assert 'feature_distance' not in make(method=TESKD(width=16, feature_weight=0.))(*batch())


# The teacher's stages

@pytest.mark.parametrize('name,size,expected', [
    ('resnet50', 64, ['layer1', 'layer2', 'layer3', 'layer4']),
    ('convnext_atto', 64, ['stages.0', 'stages.1', 'stages.2', 'stages.3']),
    ('vit_tiny_patch16_224', 64, ['blocks.2', 'blocks.5', 'blocks.8', 'blocks.11']),
    ('test_vit', 160, ['blocks.1', 'blocks.2', 'blocks.4', 'blocks.5']),
])
def test_default_boundaries(name, size, expected):
    kwargs = {'img_size': size} if 'vit' in name else {}
    model = timm.create_model(name, num_classes=10, **kwargs)
    assert [b.name for b in pyramid_boundaries(teacher_boundaries(model, (3, size, size))[0])] == expected


@pytest.mark.parametrize('boundaries', [[2, 4], [1, 2, 4], ['layer2', 'layer4'], ['layer3.0', 'layer4.0']])
def test_two_or_three_stages(boundaries):
    task = make(boundaries=boundaries)
    assert len(task(*batch())['branch_output']) == len(boundaries) - 1
    check_step(task, SIZE)


def test_a_teacher_that_timm_did_not_build():
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.Linear(12, 10))
    task = sf_teacher.wrap(teacher, method=TESKD(width=4), boundaries=['0', '1'], input_size=(3, 16, 16))
    check_step(task, (3, 16, 16))


@pytest.mark.parametrize('size', [(3, 72, 72), (3, 64, 96), (3, 33, 47)])
def test_sizes_that_are_no_multiples(size):
    task = make('resnet10t', input_size=size)
    check_step(task, size)
    assert task(*batch(2, (3, 80, 96)))['loss'].isfinite()     # and another at run time


@pytest.mark.parametrize('teacher', ['test_resnet', 'test_vit', 'swin_tiny_patch4_window7_224'])
def test_gradients_of_every_student_reach_all_stages(teacher):
    size = (3, 160, 160) if teacher == 'test_vit' else SIZE
    kwargs = {'img_size': 64} if 'swin' in teacher else {}
    task = make(teacher, method=TESKD(width=16, teacher_weight=0.), input_size=size, teacher_kwargs=kwargs)
    stages = getattr(task.teacher, 'blocks', None) or getattr(task.teacher, 'layers', None) or \
        [getattr(task.teacher, f'layer{i}') for i in (1, 2, 3, 4)]
    logits = task(*batch(2, size))['branch_output']
    assert len(logits) == 3
    for z in logits.values():
        for stage in stages:
            reached = torch.autograd.grad(z.square().sum(), list(stage.parameters()), retain_graph=True,
                                          allow_unused=True)
            assert any(g is not None and g.abs().sum() > 0 for g in reached)


def check_family(module):
    """The teacher's logits stay its own, and a step reaches every parameter of the students."""
    teacher, size = build_small(FAMILIES[module])
    task = sf_teacher.wrap(teacher, method=TESKD(width=8), input_size=size)
    check_own_logits(task, size)
    check_step(task, size)


@pytest.mark.parametrize('module', sorted({*SHARE, 'coat', 'crossvit'}))     # these two have several streams
def test_share(module):
    check_family(module)


@pytest.mark.sweep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('module', sorted(FAMILIES))
def test_sweep(module):
    check_family(module)
