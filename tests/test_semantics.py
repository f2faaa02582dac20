"""Compilation, as teacher and as student; and the public names."""
import copy

import pytest
import timm
import torch

import sf_teacher

FAMILIES = ['test_resnet', 'deit_tiny_patch16_224', 'test_convnext', 'mobilenetv3_small_050',
            'swin_tiny_patch4_window7_224']


SHALLOW = {'deit_tiny_patch16_224': {'depth': 4}, 'swin_tiny_patch4_window7_224': {'depths': (1, 1, 2, 1)}}


def build(name, size):
    kwargs = {'img_size': size, **SHALLOW[name]} if 'patch' in name else {}     # what is traced is the same, only less
    return timm.create_model(name, num_classes=10, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize('role', ['teacher', 'student'])
@pytest.mark.parametrize('name', FAMILIES)
def test_no_graph_breaks(name, role):
    """In what Dynamo traces; what is behind it, forward and backward, is traced for one family."""
    models = [build(name, 64), build('test_resnet', 64)]
    teacher, student = models if role == 'teacher' else models[::-1]
    task = sf_teacher.wrap(teacher, student, input_size=(3, 64, 64)).eval()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
    expected = task(images, labels)['loss']
    torch._dynamo.reset()
    task.compile(backend='aot_eager' if 'swin' in name else 'eager', fullgraph=True)
    losses = task(images, labels)
    torch.testing.assert_close(losses['loss'], expected)
    losses['loss'].backward()
    assert all(p.grad is not None for p in task.branches.parameters())


def test_inductor_gives_the_same_loss_and_gradients():
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(1)
        task = sf_teacher.wrap('test_resnet', 'test_resnet', num_classes=10, input_size=(3, 64, 64),
                               boundaries=[(3, 3)])
        if compiled:
            torch._dynamo.reset()
            task.compile(backend='inductor', fullgraph=True)
        task(images, labels)['loss'].backward()
        gradients.append([p.grad for p in task.teacher.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def inductor_differences(name, role):
    """How far inductor is from eager: the loss, relative; the worst gradient, relative to the largest value in it.

    Gradients that vanish (a bias before batch norm) are noise: below 1e-3 of the largest, they count relative to that.
    """
    torch.manual_seed(0)
    models = [timm.create_model(name, num_classes=10, **SMALL[name]), timm.create_model('test_resnet', num_classes=10)]
    teacher, student = models if role == 'teacher' else models[::-1]
    task = sf_teacher.wrap(teacher, student, input_size=(3, 64, 64))
    parameters = [*task.teacher.parameters(), *task.branches.parameters()]
    images, labels, state = torch.randn(4, 3, 64, 64), torch.arange(4), copy.deepcopy(task.state_dict())
    results = []
    for compiled in (False, True):
        task.zero_grad()
        task.load_state_dict(state)     # a step changes the statistics of batch norm
        if compiled:
            torch._dynamo.reset()
            task.compile(backend='inductor', fullgraph=True)
        loss = task(images, labels)['loss']
        loss.backward()
        results.append((loss.item(), [p.grad for p in parameters]))
    (loss, gradients), (compiled_loss, compiled_gradients) = results
    floor = 1e-3 * max(g.abs().max() for g in gradients)
    error = max((a - b).abs().max() / a.abs().max().clamp(floor)
                for a, b in zip(gradients, compiled_gradients, strict=True))
    return abs(loss - compiled_loss) / abs(loss), error.item()


# small members without random numbers, which inductor draws in its own way
SMALL = {'test_resnet': {}, 'test_vit': {'img_size': 64}, 'test_convnext': {}, 'mobilenetv3_small_050': {},
         'swin_tiny_patch4_window7_224': {'img_size': 64, 'embed_dim': 24, 'depths': (1, 1, 2, 1),
                                          'num_heads': (1, 2, 2, 4), 'drop_path_rate': 0.}}


@pytest.mark.sweep
@pytest.mark.parametrize('role', ['teacher', 'student'])
@pytest.mark.parametrize('name', SMALL)
def test_inductor(name, role):
    loss, gradients = inductor_differences(name, role)
    assert loss < 1e-5 and gradients < 1e-3


def test_public_names():
    assert {'wrap', 'export', 'verify', 'SFTN', 'Method', 'register_method', 'StudentFriendlyTask', 'SFTeacherError',
            'BoundaryError'} <= set(sf_teacher.__all__)
    assert len(sf_teacher.__all__) <= 16
    for name in sf_teacher.__all__:
        assert name == '__version__' or getattr(sf_teacher, name).__doc__
