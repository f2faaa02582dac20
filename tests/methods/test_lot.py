"""LoT: teacher and students learn each from its own terms, which equal a reference in plain tensors."""
from collections import namedtuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import sf_teacher
from sf_teacher import SFTeacherError
from sf_teacher.methods.lot import LoT

SIZE = (3, 32, 32)
Fields = namedtuple('Fields', 'logits aux_logits')


def model(name, seed, num_classes=5):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=num_classes).double()


@pytest.mark.parametrize('names', [['test_efficientnet'], ['test_efficientnet', 'test_resnet']])
def test_values_and_gradients_equal_the_reference(names):
    teacher = model('test_resnet', 0)
    task = sf_teacher.wrap(teacher, [model(n, i + 1) for i, n in enumerate(names)], method='lot', input_size=SIZE)
    images, labels = torch.randn(6, *SIZE, dtype=torch.float64), torch.arange(6) % 5
    losses = task.train()(images, labels)
    losses['loss'].backward()
    z_t, z_s = teacher(images), [s(images) for s in task.branches.students]

    def imitation(p, q):
        p, q = (p / 1.5).softmax(-1).detach(), (q / 1.5).softmax(-1)
        return 1.5 ** 2 * (p * (p / q).log()).sum(-1).mean()

    of_teacher = F.cross_entropy(z_t, labels) + 0.5 * sum(imitation(z, z_t) for z in z_s) / len(z_s)
    of_students = [F.cross_entropy(z, labels) + 0.5 * imitation(z_t, z) for z in z_s]
    torch.testing.assert_close(losses['loss'], of_teacher + sum(of_students))
    for loss, net in zip([of_teacher, *of_students], [teacher, *task.branches.students], strict=True):
        torch.testing.assert_close(list(torch.autograd.grad(loss, list(net.parameters()))),
                                   [p.grad for p in net.parameters()])


def test_the_given_students_are_copied_and_start_where_they_were():
    student = model('test_efficientnet', 1).eval()
    student.conv_stem.requires_grad_(False)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    task = sf_teacher.wrap(model('test_resnet', 0), student, method=LoT(kl_weight=1.), input_size=SIZE)
    held = task.branches.students[0]
    assert all(torch.equal(v, before[k]) for k, v in held.state_dict().items())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        losses = task.train()(torch.randn(8, *SIZE, dtype=torch.float64), torch.arange(8) % 5)
        losses['loss'].backward()
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert [k for k, p in held.named_parameters() if p.ndim > 1 and torch.equal(p, before[k])] == ['conv_stem.weight']
    assert losses['branch_output'].keys() == {'student0'} and 'student0: EfficientNet, whole' in repr(task)


class Odd(nn.Module):
    """Returns logits and features, as mdistiller's nets do, or fields of which one is called logits."""

    def __init__(self, fields):
        super().__init__()
        self.net, self.fields = model('test_resnet', 1), fields

    def forward(self, x):
        logits = self.net(x)
        return Fields(logits, logits) if self.fields else (logits, {'feats': []})


@pytest.mark.parametrize('method', ['lot', 'aid'])
@pytest.mark.parametrize('fields', [False, True])
def test_a_student_may_return_more_than_its_logits(method, fields):
    student = Odd(fields)
    task = sf_teacher.wrap(model('test_resnet', 0), student, method=method, input_size=SIZE).eval()
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    logits, = task(images, torch.tensor([1, 2]))['branch_output'].values()
    assert torch.equal(logits, student.net.eval()(images))


@pytest.mark.parametrize('method', ['lot', 'aid'])
def test_the_copy_has_no_hooks_and_its_norms_in_eval_mode_stay_there(method):
    student, calls = model('test_resnet', 1).train(), []
    student.layer1[0].bn1.eval()
    student.register_forward_hook(lambda *args: calls.append(1))
    task = sf_teacher.wrap(model('test_resnet', 0), student, method=method, input_size=SIZE)
    built = len(calls)
    before = task.branches.state_dict()['students.0.layer1.0.bn1.running_mean'].clone() if method == 'lot' else None
    task.train()(torch.randn(4, *SIZE, dtype=torch.float64), torch.arange(4))
    assert len(calls) == built and student.training
    if method == 'lot':
        assert not task.branches.students[0].layer1[0].bn1.training and task.branches.students[0].layer1[0].bn2.training
        assert torch.equal(task.branches.students[0].layer1[0].bn1.running_mean, before)


def test_something_has_to_train_the_teacher():
    with pytest.raises(SFTeacherError, match='teacher_weight must be above 0 where kl_weight is 0, as nothing else'):
        LoT(teacher_weight=0., kl_weight=0.)
