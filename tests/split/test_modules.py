"""Models that timm did not build, by module paths; and what is refused, with its message."""
import copy
import random
import threading
import types

import numpy
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

import sf_teacher
from sf_teacher import BoundaryError, SFTeacherError
from sf_teacher.split.clones import perturbed_weights
from sf_teacher.split.tapping import forward_with_maps
from sf_teacher.split.trace import dummy_image
from tests.split.family_checks import check_step, unchanged
from tests.split.own_models import SIZE, Plain, net, tails_of


class Sequence(nn.Module):
    """Convolutions, then a vector that an MLP reads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        return self.mlp(self.pool(self.conv(x)))


def cifar_net(name):
    from torchdistill.models.classification import densenet, resnet, wide_resnet
    return {
        'resnet20': lambda: resnet.resnet20(num_classes=10),
        'wide_resnet': lambda: wide_resnet.wide_resnet(10, 1, 0., 10, False, False),
        'densenet': lambda: densenet.densenet_bc_k12_depth100(num_classes=10),
    }[name]()


@pytest.mark.parametrize('build,pairs', [
    (lambda: Plain(), [('second', 'second')]),
    (lambda: Sequence(), [('conv.1', 'conv.1'), ('pool', 'pool'), ('mlp.1', 'mlp.1')]),
    (lambda: torchvision.models.resnet18(num_classes=10), [('layer1', 'layer1'), ('layer2', 'layer2')]),
    (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), [('features.3', 'features.3')]),
    (lambda: torchvision.models.vit_b_16(num_classes=10, image_size=32),
     [('encoder.layers.encoder_layer_2', 'encoder.layers.encoder_layer_5')]),
    (lambda: cifar_net('resnet20'), [('layer1', 'layer1'), ('layer2', 'layer2')]),
    (lambda: cifar_net('wide_resnet'), [('layer1', 'layer1'), ('layer2', 'layer2')]),
    (lambda: cifar_net('densenet'), [('features.denseblock1', 'features.transition1')]),
], ids=['plain', 'sequence', 'tv-resnet', 'tv-mobilenet', 'tv-vit', 'cifar-resnet', 'cifar-wrn', 'cifar-densenet'])
def test_any_module_by_paths(build, pairs):
    torch.manual_seed(0)
    teacher = build()
    teacher.load_state_dict(perturbed_weights(teacher, torch.float32))   # torchvision's ViT starts with a zero head
    names = {n for n, _ in teacher.named_modules()}
    assert {name for pair in pairs for name in pair} <= names
    tails_of(build(), [s for _, s in pairs])
    student = build()
    student.load_state_dict(teacher.state_dict())
    task = sf_teacher.wrap(teacher, student, boundaries=pairs, input_size=SIZE)
    images, labels = torch.randn(2, *SIZE), torch.tensor([1, 2])
    expected = copy.deepcopy(teacher).eval()(images)
    assert torch.equal(task.eval()(images, labels)['output'], expected)
    assert not any(m._forward_hooks for m in teacher.modules())
    check_step(task, SIZE)


def test_a_timm_teacher_with_a_module_student_and_the_other_way_round():
    task = sf_teacher.wrap('test_resnet', Plain(), num_classes=10, boundaries=[('layer2', 'second')], input_size=SIZE)
    check_step(task, SIZE)
    assert task.branches.names == ['layer2-second']
    task = sf_teacher.wrap(Plain(), timm.create_model('test_resnet', num_classes=10), input_size=SIZE,
                           boundaries=[('second', 2)])
    check_step(task, SIZE)


def test_a_timm_block_by_path():
    teacher = timm.create_model('resnet18', num_classes=10)
    task = sf_teacher.wrap(teacher, timm.create_model('resnet18', num_classes=10), input_size=SIZE,
                           boundaries=[('layer1.0', 'layer1.0'), ('layer3.1', 'layer3.0')])
    check_step(task, SIZE)
    assert not any(m._forward_hooks for m in teacher.modules())


def test_users_hooks_are_kept_and_fire_only_in_real_forwards():
    teacher, seen = timm.create_model('test_resnet', num_classes=10), []
    handle = teacher.layer2.register_forward_hook(lambda *args: seen.append(1))
    task = sf_teacher.wrap(teacher, 'test_resnet', input_size=SIZE)
    assert not seen and handle.id in teacher.layer2._forward_hooks
    task(torch.randn(2, *SIZE), torch.tensor([1, 2]))
    assert len(seen) == 1


class Stateful(Plain):
    """Counts its forwards, limits a weight's norm and draws numbers, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer('forwards', torch.tensor(0))

    def forward(self, x):
        self.forwards += 1
        self.head.weight.data.renorm_(2, 0, 0.1)
        torch.rand(1), numpy.random.rand(), random.random()
        return super().forward(x)


@pytest.mark.parametrize('build', [Stateful, lambda: net('repvgg_a0'), lambda: net('efficientnet_b0')],
                         ids=['stateful', 'repvgg', 'efficientnet'])
def test_wrap_changes_nothing_that_it_is_given(build):
    """The fresh RepVGG and EfficientNet hide the image, so that the check of their tails sets batch norm statistics."""
    first, second = build(), build().eval()
    next(first.children()).eval()
    next(second.parameters()).requires_grad_(False)
    boundaries = [('second', 'second')] if isinstance(first, Stateful) else None
    with unchanged(first, second):
        sf_teacher.wrap(first, second, boundaries=boundaries, input_size=SIZE)


def test_the_comparison_before_and_after_sees_what_changes():
    for change in (lambda m: m.second.bias.data.add_(1), lambda m: m.first[1].num_batches_tracked.add_(1),
                   lambda m: m.relu.eval(), lambda m: m.head.requires_grad_(False), lambda m: torch.rand(1),
                   lambda m: m.stem.register_forward_pre_hook(print), lambda m: setattr(m, 'cache', 1)):
        model = Plain()
        with pytest.raises(AssertionError), unchanged(model):
            change(model)


def named(task):
    return [(b.source.name, b.target) for b in task.branches.branches]


def test_named_boundaries_are_all_used():
    teacher = timm.create_model('resnet10t', num_classes=10)
    for count in (1, 3, 4, 5):
        task = sf_teacher.wrap(teacher, 'resnet10t', boundaries=list(range(count)), input_size=SIZE)
        assert [t for t, _ in named(task)] == [b.name for b in task.branches.boundaries]
        assert len(named(task)) == count
    students = timm.create_model('mobilenetv3_small_050', num_classes=10)
    with pytest.raises(sf_teacher.SFTeacherError, match=r'names 7 of the teacher .* can be split at 5 only'):
        sf_teacher.wrap('mobilenetv3_large_100', students, num_classes=10, input_size=SIZE,
                        boundaries=['blocks.0.0', 'blocks.1.0', 'blocks.1.1', 'blocks.2.0', 'blocks.2.1', 'blocks.3.0',
                                    'blocks.4.0'])


def test_a_path_without_a_partner_goes_with_its_resolution():
    teacher = timm.create_model('resnet10t', num_classes=10)
    for path, partner in (('layer1.0', 'layer1'), ('layer2.0', 'layer2'), ('layer3.0', 'layer3')):
        assert named(sf_teacher.wrap(teacher, 'resnet10t', boundaries=[path], input_size=SIZE)) == [(path, partner)]


def test_one_path_may_have_two_partners_and_indices_mix_with_paths():
    teacher = timm.create_model('resnet10t', num_classes=10)
    pairs = [('layer1.0', 'layer1'), ('layer1.0', 'layer2'), (2, 'layer2')]
    task = sf_teacher.wrap(teacher, 'resnet10t', boundaries=pairs, input_size=SIZE)
    assert named(task) == [('layer1.0', 'layer1'), ('layer1.0', 'layer2'), ('layer2', 'layer2')]
    check_step(task, SIZE)


def test_grey_images_build_models_for_them():
    task = sf_teacher.wrap('test_resnet', 'test_resnet', num_classes=10, input_size=(1, 32, 32))
    assert task(torch.randn(2, 1, 32, 32), torch.tensor([1, 2]))['loss'].isfinite()
    assert task.teacher.in_chans == 1


def test_a_folder_is_wrapped_with_its_weights(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=10)
    folder = sf_teacher.export(model, tmp_path / 'teacher', input_size=SIZE)
    task = sf_teacher.wrap(f'local-dir:{folder}', f'local-dir:{folder}', input_size=SIZE)
    assert torch.equal(task.teacher.layer2[0].conv1.weight, model.layer2[0].conv1.weight)
    assert torch.equal(task.branches.branches[0].tail.model.fc.weight, model.fc.weight)
    fresh = sf_teacher.wrap(f'local-dir:{folder}', 'test_resnet', pretrained=False, input_size=SIZE)
    assert not torch.equal(fresh.teacher.layer2[0].conv1.weight, model.layer2[0].conv1.weight)
    with pytest.raises(sf_teacher.SFTeacherError, match=r'this is a StudentFriendlyTask: call task.export\(folder\)'):
        sf_teacher.export(task, tmp_path / 'again')


@pytest.mark.parametrize('training', [True, False])
def test_branches_follow_the_teachers_mode(training):
    teacher = timm.create_model('test_resnet', num_classes=10).train(training)
    teacher.layer1.train(not training)      # a part that the user has set otherwise stays so
    student = timm.create_model('test_resnet', num_classes=10).train(not training)
    task = sf_teacher.wrap(teacher, student, input_size=SIZE)
    assert task.training == task.trainable_module.training == training and student.training != training
    assert {m.training for m in task.branches.modules()} == {training}
    assert teacher.training == training and teacher.layer1.training != training


def test_a_frozen_student_is_reported(caplog):
    student = timm.create_model('test_resnet', num_classes=10).requires_grad_(False)
    sf_teacher.wrap('test_resnet', student, num_classes=10, input_size=SIZE)
    assert 'Student ResNet is frozen' in caplog.text


def test_a_frozen_teacher_is_reported_and_a_partly_frozen_one_is_not(caplog):
    teacher = timm.create_model('test_resnet', num_classes=10)
    teacher.layer1.requires_grad_(False)
    sf_teacher.wrap(teacher, 'test_resnet', input_size=SIZE)
    assert 'frozen' not in caplog.text
    sf_teacher.wrap(teacher.requires_grad_(False), 'test_resnet', input_size=SIZE)
    assert 'Teacher ResNet is frozen (requires_grad is off): it will not be trained' in caplog.text


def test_a_default_device_does_not_matter():
    model = Plain()
    with torch.device('meta'):
        image, weights = dummy_image(model, SIZE), perturbed_weights(model, torch.float32)
    assert image.device.type == weights['head.weight'].device.type == 'cpu'


@pytest.mark.parametrize('student', ['resnet10t', 'test_efficientnet'])
def test_batch_norm_can_be_made_synchronous(student):
    torch.manual_seed(0)
    task = sf_teacher.wrap('test_resnet', student, num_classes=10, input_size=SIZE)
    batch = torch.randn(4, *SIZE), torch.arange(4)
    expected = copy.deepcopy(task)(*batch)
    converters = [timm.layers.convert_sync_batchnorm]
    if student == 'resnet10t':      # torch's own drops the activation of timm's BatchNormAct2d
        converters.append(nn.SyncBatchNorm.convert_sync_batchnorm)
    for convert in converters:
        other = copy.deepcopy(task)
        other.trainable_module = convert(other.trainable_module)
        kinds = [type(m).__name__ for m in other.modules()]
        assert not {'BatchNorm2d', 'BatchNormAct2d'} & set(kinds)
        assert torch.equal(other(*batch)['loss'], expected['loss'])


class Complex(Plain):
    """Turns its features by a table of complex numbers, as rotary embeddings do, and by a trained one."""

    def __init__(self):
        super().__init__()
        self.register_buffer('table', torch.polar(torch.ones(16), torch.linspace(0, 3, 16)))
        self.turn = nn.Parameter(self.table.clone())

    def forward(self, x):
        x = self.relu(self.second(self.relu(self.first(self.relu(self.stem(x)))))).mean((2, 3))
        return self.head((torch.complex(x, x.flip(1)) * self.table * self.turn).real)


def test_complex_numbers_of_a_student_stay_complex():
    torch.manual_seed(0)
    student = Complex().eval()
    task = sf_teacher.wrap(Plain(), student, boundaries=[('second', 'first')], input_size=SIZE).eval()
    tail, x = task.branches.branches[0].tail, torch.randn(2, *SIZE)
    assert tail.model.table.dtype == tail.model.turn.dtype == torch.complex64 and tail.model.turn.requires_grad
    assert torch.equal(tail(student.first(nn.functional.relu(student.stem(x)))), student(x))
    task(x, torch.tensor([1, 2]))['loss'].backward()
    assert tail.model.turn.grad.abs().max() > 0


class Front(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.patch_size = nn.Conv2d(3, 8, 2, stride=2), 2

    def forward(self, x):
        return self.patches(x)


class ReadsItsFront(nn.Module):
    """Reads what modules before the boundary hold from outside of them, as transformers' ViT does for its dtype."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.norm = nn.Sequential(), nn.BatchNorm2d(8)
        self.embeddings.add_module('front', Front())
        self.body, self.head = nn.Conv2d(8, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        front = self.embeddings.front
        x = self.embeddings(x.to(front.patches.weight.dtype))
        x = self.body(self.norm(x) / front.patch_size * self.norm.weight.shape[0])
        return self.head(x.mean((2, 3)))


def test_what_a_forward_reads_of_modules_before_the_boundary_stays_readable():
    tails_of(ReadsItsFront(), ['body'])
    task = sf_teacher.wrap(Plain(), ReadsItsFront(), boundaries=[('second', 'body')], input_size=SIZE)
    check_step(task, SIZE)
    task.trainable_module = nn.SyncBatchNorm.convert_sync_batchnorm(task.trainable_module)
    tail = copy.deepcopy(task).branches.branches[0].tail.model
    assert [name for name, _ in tail.named_parameters()] == ['head.weight', 'head.bias']
    assert not list(tail.buffers())


class WithExtraState(Plain):
    def get_extra_state(self):
        return {'a': 1}

    def set_extra_state(self, state):
        pass


def test_extra_state_of_a_student_is_kept(tmp_path):
    task = sf_teacher.wrap(Plain(), WithExtraState(), boundaries=[('second', 'second')], input_size=SIZE)
    check_step(task, SIZE)
    weights = load_file(task.export_branch(0, tmp_path / 'branch') / 'branch.safetensors')
    assert set(weights) == {'head.weight', 'head.bias'}


class Watch:
    """No copy can be made of it."""

    def __init__(self):
        self.seen, self.lock = [], threading.Lock()

    def look(self, module, args, output):
        self.seen.append(1)


def test_a_hook_that_only_looks_is_no_obstacle_on_a_student():
    student, watch = Plain(), Watch()
    student.head.register_forward_hook(watch.look)
    seen = watch.seen
    task = sf_teacher.wrap(Plain(), student, boundaries=[('second', 'second')], input_size=SIZE)
    called = len(seen)
    check_step(task, SIZE)
    assert len(seen) == called


def test_placement_is_that_of_the_first_weight_that_is_a_number_with_a_fraction():
    teacher = Plain()
    teacher.__dict__['_parameters'] = {'codes': nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)}
    task = sf_teacher.wrap(teacher.double(), Plain(), boundaries=[('second', 'second')], input_size=SIZE)
    assert {p.dtype for p in task.branches.parameters()} == {torch.float64} == {task.dtype}


# What is refused

def test_a_refusal_leaves_the_models_as_they_were():
    teacher, student = net('test_vit'), net('test_vit')
    teacher.blocks[0].eval()
    modes = [m.training for m in teacher.modules()]
    with pytest.raises(BoundaryError, match='inside a residual block'):
        sf_teacher.wrap(teacher, student, boundaries=[('blocks.1', 'blocks.1.attn')])
    for model in (teacher, student):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert [m.training for m in teacher.modules()] == modes


def test_images_of_another_size_where_a_model_is_fixed():
    task = sf_teacher.wrap(net('vit_tiny_patch16_224', img_size=96), net(), input_size=(3, 96, 96))
    with pytest.raises(SFTeacherError, match=r'size \(3, 64, 64\) do not fit.*input_size=\(3, 96, 96\)'):
        task(torch.zeros(2, 3, 64, 64), torch.tensor([0, 1]))


def test_one_image_of_one_pixel_maps():
    """Batch norm needs more than one value a channel: said so, by name."""
    task = sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=[(4, 4)])
    with pytest.raises(SFTeacherError, match=r'batch size 1 .* 1x1'):
        task.train()(torch.zeros(1, *SIZE), torch.tensor([0]))


def test_labels_are_checked_on_the_first_batch_only():
    task = sf_teacher.wrap(net(), net(), input_size=SIZE)
    task.eval()(torch.zeros(2, *SIZE), torch.tensor([0, 1]))
    with pytest.raises(IndexError):
        task(torch.zeros(2, *SIZE), torch.tensor([0, 99]))


def test_boundaries_are_paired_in_order_of_depth_however_they_are_given():
    images = torch.randn(4, 3, 160, 160)
    for method, students in (('sftn', ['test_vit']), ('gtn', ['test_vit']), ('teskd', [])):
        losses = []
        for given in ([1, 2, 3], [3, 1, 2], ['layer2', 'layer3', 'layer1']):
            torch.manual_seed(0)
            task = sf_teacher.wrap('test_resnet', students, method=method, boundaries=given, num_classes=10,
                                   input_size=(3, 160, 160))
            assert [b.name for b in task.branches.boundaries] == ['layer1', 'layer2', 'layer3']
            losses.append(task(images, torch.arange(4))['loss'])
        assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_modules_are_paired_in_the_order_in_which_they_run():
    for given in (['first', 'second'], ['second', 'first']):
        task = sf_teacher.wrap(Plain(), net(), boundaries=given, input_size=(3, 64, 64))
        assert [b.name for b in task.branches.boundaries] == ['first', 'second']


def test_a_feature_that_is_overwritten_later_is_tapped_as_it_was():
    """`first` ends in batch norm; then `y += x` and an in-place ReLU write on its output."""
    torch.manual_seed(0)
    teacher = Plain()
    task = sf_teacher.wrap(teacher, net(), boundaries=[('first', 'layer1')], input_size=SIZE)
    x = torch.randn(4, *SIZE)
    logits, maps = forward_with_maps(teacher, task.branches.boundaries, x)
    assert task.branches.boundaries[0].modified and maps[0].min() < 0
    expected = teacher.first(nn.functional.relu(teacher.stem(x)))
    assert torch.equal(maps[0], expected) and torch.equal(logits, teacher(x))
    check_step(task, SIZE)
    plain = sf_teacher.wrap(Sequence(), net(), boundaries=[('conv', 'layer1')], input_size=SIZE)
    assert not plain.branches.boundaries[0].modified


class Doubled(timm.models.resnet.ResNet):
    def forward(self, x):
        return super().forward(2 * x)


class DoubledFeatures(timm.models.resnet.ResNet):
    def forward_features(self, x):
        return super().forward_features(2 * x)


def own_forward(change):
    model = timm.create_model('test_resnet', num_classes=10)
    change(model)
    return model


@pytest.mark.parametrize('boundaries', [None, [1, 2], ['layer1', 2]])
@pytest.mark.parametrize('change', [
    lambda model: model.register_forward_pre_hook(lambda module, args: ((args[0] - 0.5) / 0.1,)),
    lambda model: model.register_forward_hook(lambda module, args, output: 10 * output),
    lambda model: setattr(model, '__class__', Doubled),
    lambda model: setattr(model, '__class__', DoubledFeatures),
    lambda model: setattr(model, 'forward', types.MethodType(
        lambda self, x: 3 * type(self).forward(self, x), model)),
], ids=['pre-hook', 'hook', 'forward', 'forward_features', 'bound'])
def test_a_timm_teacher_whose_own_forward_does_more(change, boundaries):
    """timm's forward_intermediates does not know of it, so it is tapped by hooks on its modules."""
    teacher, plain = own_forward(change), own_forward(lambda model: None)
    task = sf_teacher.wrap(teacher, 'test_efficientnet', boundaries=boundaries, input_size=SIZE).eval()
    like = sf_teacher.wrap(plain, 'test_efficientnet', boundaries=boundaries, input_size=SIZE)
    x = torch.randn(2, *SIZE)
    result = task(x, torch.tensor([1, 2]))
    assert torch.equal(result['output'], teacher(x))
    assert [b.name for b in task.branches.boundaries] == [b.name for b in like.branches.boundaries]
    captured = []
    with teacher.layer1.register_forward_hook(lambda module, args, output: captured.append(output)):
        _, maps = forward_with_maps(teacher, task.branches.boundaries, x)
    assert torch.equal(maps[0], captured[0])


def test_a_forward_that_belongs_to_another_model_is_refused():
    teacher = timm.create_model('test_resnet', num_classes=10).train()
    forward, state = teacher.forward, copy.deepcopy(teacher.state_dict())
    teacher.forward = lambda x: forward(x)
    with pytest.raises(SFTeacherError, match=r'forward of this ResNet was put in the place of its own.*MethodType'):
        sf_teacher.wrap(teacher, 'test_efficientnet', input_size=SIZE)
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('student', ['test_vit', 'test_efficientnet'])
def test_gradients_of_projections_are_those_of_finite_differences(student, batch):
    """PyTorch's batch norm on CPUs is wrong for one image whose gradient comes in the order of tokens."""
    torch.manual_seed(0)
    sized = {'img_size': 64} if 'vit' in student else {}
    task = sf_teacher.wrap(timm.create_model('test_resnet', num_classes=5).double(),
                           timm.create_model(student, num_classes=5, **sized).double(), input_size=(3, 64, 64)).train()
    images, labels = torch.randn(batch, 3, 64, 64, dtype=torch.float64), torch.arange(batch)
    weights = [branch.transform.parts[0].proj.weight for branch in task.branches.branches]
    found = torch.autograd.grad(task(images, labels)['loss'], weights)
    for weight, gradient in zip(weights, found, strict=True):
        direction, values = torch.randn_like(weight), []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight += step * direction
                values.append(task(images, labels)['loss'])
        with torch.no_grad():
            weight += 1e-5 * direction
        expected = (values[0] - values[1]).item() / 2e-5
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_tokens_in_an_order_of_their_own_are_refused_at_another_size():
    student = timm.create_model('hiera_tiny_224', num_classes=5, img_size=64)
    task = sf_teacher.wrap('test_resnet', student, num_classes=5, input_size=(3, 64, 64)).eval()
    with pytest.raises(SFTeacherError, match=r'images of size \(3, 128, 128\) do not fit: .*the order of tokens is'):
        task(torch.randn(2, 3, 128, 128), torch.arange(2))
