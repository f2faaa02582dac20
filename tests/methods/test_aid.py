"""AID: its loss equals a reference in plain tensors; the student stays as it was trained, and gets its own images."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F

import sf_teacher
from sf_teacher import SFTeacherError
from sf_teacher.exporting.exporter import export
from sf_teacher.methods.aid import AID
from sf_teacher.training.planning import plan_teacher
from sf_teacher.training.settings import TeacherRun

SIZE = (3, 32, 32)


def model(name, seed, num_classes=5, **cfg):
    torch.manual_seed(seed)
    made = timm.create_model(name, num_classes=num_classes, drop_rate=0.5 if seed else 0.).double()
    made.pretrained_cfg = {**made.pretrained_cfg, **cfg}
    with torch.no_grad():
        for buffer in made.buffers():
            if buffer.is_floating_point():
                buffer += 0.1 * torch.rand_like(buffer)
    return made


@pytest.mark.parametrize('options', [{}, dict(teacher_weight=0., kl_weight=2., temperature=1.)])
@pytest.mark.parametrize('stats', ['same', 'other'])
def test_values_and_gradients_equal_the_reference(options, stats):
    mean_t, std_t = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    mean_s, std_s = (mean_t, std_t) if stats == 'same' else ((0.1, 0.2, 0.3), (0.5, 0.25, 0.1))
    teacher, student = model('test_resnet', 0, mean=mean_t, std=std_t), model('test_efficientnet', 1, mean=mean_s,
                                                                              std=std_s)
    given = copy.deepcopy(student.state_dict())
    task = sf_teacher.wrap(teacher, student, method=AID(**options), input_size=SIZE).train()
    images, labels = torch.randn(6, *SIZE, dtype=torch.float64), torch.arange(6) % 5
    losses = task(images, labels)
    pixels = images * torch.tensor(std_t).double().view(3, 1, 1) + torch.tensor(mean_t).double().view(3, 1, 1)
    as_student = (pixels - torch.tensor(mean_s).double().view(3, 1, 1)) / torch.tensor(std_s).double().view(3, 1, 1)
    tau, ce, kl = options.get('temperature', 4.), options.get('teacher_weight', 1.), options.get('kl_weight', 1.)
    with torch.no_grad():
        p_s = (student.eval()(as_student) / tau).softmax(-1)
    z = teacher(images)
    divergence = (p_s * (p_s.log() - (z / tau).log_softmax(-1))).sum(-1).mean()
    expected = ce * F.cross_entropy(z, labels) + kl * tau ** 2 * divergence
    torch.testing.assert_close(losses['loss'], expected, rtol=1e-5, atol=1e-7)     # means are single precision in timm
    torch.testing.assert_close(torch.autograd.grad(losses['loss'], list(teacher.parameters())),
                               torch.autograd.grad(expected, list(teacher.parameters())), rtol=1e-4, atol=1e-7)
    held = task.branches.student
    assert not held.training and not any(p.requires_grad for p in held.parameters()) and held is not student
    assert all(torch.equal(v, given[k]) for m in (held, student) for k, v in m.state_dict().items())
    assert ('a mean and standard deviation of their own' in repr(task)) == (stats == 'other')


def test_ten_epochs_move_the_teacher_towards_the_student_and_leave_the_student_alone():
    teacher, student = model('test_resnet', 0), model('test_efficientnet', 1)
    task = sf_teacher.wrap(teacher, student, method=AID(teacher_weight=0.), input_size=SIZE)
    state = copy.deepcopy(task.branches.state_dict())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    images, labels = torch.randn(32, *SIZE, dtype=torch.float64), torch.arange(32) % 5
    found = []
    for _ in range(10):
        optimizer.zero_grad()
        losses = task.train()(images, labels)
        losses['loss'].backward()
        optimizer.step()
        found.append(losses['student_kl'].item())
    assert found[-1] < 0.5 * found[0]
    assert all(torch.equal(v, state[k]) for k, v in task.branches.state_dict().items())
    assert losses['branch_output'].keys() == {'student'}


def test_students_by_name_need_weights(tmp_path):
    teacher = timm.create_model('test_resnet', num_classes=5)
    message = (r"AID needs a trained student, and 'test_efficientnet' would have random weights: give "
               r'local-dir:FOLDER of a trained one, student_kwargs=dict\(pretrained=True\), or a model')
    for kwargs in ({}, dict(student_kwargs=dict(pretrained=False))):
        with pytest.raises(SFTeacherError, match=message):
            sf_teacher.wrap(teacher, 'test_efficientnet', method='aid', input_size=SIZE, **kwargs)
    student = timm.create_model('test_efficientnet', num_classes=5)
    folder = export(student, tmp_path / 'student', input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    task = sf_teacher.wrap(teacher, f'local-dir:{folder}', method='aid', input_size=SIZE)
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in task.branches.student.state_dict().items())
    assert task.branches.scale is None      # the test models' teacher has the same mean and standard deviation


def test_the_mean_and_deviation_given_for_a_run_are_those_the_student_is_served_from(tmp_path):
    folders = [export(timm.create_model(name, num_classes=10), tmp_path / name, input_size=SIZE, mean=(0.2,) * 3,
                      std=(0.25,) * 3) for name in ('test_resnet', 'test_efficientnet')]
    kwargs = dict(teacher=f'local-dir:{folders[0]}', student=(f'local-dir:{folders[1]}',), method='aid', data='digits',
                  input_size=SIZE, device='cpu')
    assert plan_teacher(TeacherRun(**kwargs)).task.branches.scale is None
    branches = plan_teacher(TeacherRun(**kwargs, mean=(0.4,) * 3, std=(0.5,) * 3)).task.branches
    torch.testing.assert_close(branches.scale.flatten(), torch.full((3,), 2.))
    torch.testing.assert_close(branches.shift.flatten(), torch.full((3,), 0.8))


def test_a_trained_student_of_other_classes_or_another_order_is_refused(tmp_path):
    def folder(name, classes):
        return export(timm.create_model(name, num_classes=len(classes)), tmp_path / f'{name}-{"".join(classes)}',
                      input_size=SIZE, class_names=classes)
    teacher = timm.create_model(f'local-dir:{folder("test_resnet", list("abcde"))}', pretrained=True)
    more, turned, same = (folder('test_efficientnet', list(names)) for names in ('abcdefg', 'edcba', 'abcde'))
    with pytest.raises(SFTeacherError, match=r'-abcdefg. \(given as student\) have 7 classes, and 5 are needed: its '
                                             r'classifier would be random. Train it on these classes first'):
        sf_teacher.wrap(teacher, f'local-dir:{more}', method='aid', input_size=SIZE)
    for student in (f'local-dir:{turned}', timm.create_model(f'local-dir:{turned}', pretrained=True)):
        with pytest.raises(SFTeacherError, match=r"not those of the teacher in its order: \['e', 'd', 'c', 'b', 'a'\] "
                                                 r"there, \['a', 'b', 'c', 'd', 'e'\] here"):
            sf_teacher.wrap(teacher, student, method='aid', input_size=SIZE)
    assert sf_teacher.wrap(teacher, f'local-dir:{same}', method='aid', input_size=SIZE).branches is not None
    plain = timm.create_model('test_resnet', num_classes=5)     # knows no names: the data do
    assert sf_teacher.wrap(plain, f'local-dir:{turned}', method='aid', input_size=SIZE).branches is not None


def test_grey_images_are_turned_into_the_students(tmp_path):
    teacher = timm.create_model('test_resnet', num_classes=5, in_chans=1)
    (mean_t, *_), (std_t, *_) = teacher.pretrained_cfg['mean'], teacher.pretrained_cfg['std']
    folder = export(timm.create_model('test_resnet', num_classes=5, in_chans=1), tmp_path / 'grey',
                    input_size=(1, 32, 32), mean=0.25, std=0.125)
    task = sf_teacher.wrap(teacher, f'local-dir:{folder}', method='aid', input_size=(1, 32, 32))
    assert task(torch.randn(4, 1, 32, 32), torch.arange(4))['loss'].isfinite()
    torch.testing.assert_close(task.branches.scale.flatten(), torch.tensor([std_t / 0.125]))
    torch.testing.assert_close(task.branches.shift.flatten(), torch.tensor([(mean_t - 0.25) / 0.125]))
