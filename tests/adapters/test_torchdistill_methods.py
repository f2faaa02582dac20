"""Methods without branches, and cheaper steps, in torchdistill: both boxes give the losses of `wrap`, or refuse."""
import pytest
import timm
import torch
from sf_teacher.adapters import torchdistill as adapter
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box

import sf_teacher
from sf_teacher import SFTeacherError
from sf_teacher.methods import METHODS

from .torchdistill_runs import SIZE, batches, box_losses, export_teacher, teacher_stage

CPU = torch.device('cpu')
OPTIONS = {'mcmi': {'cmi_weight': 0.2}, 'aid': {'temperature': 2.}, 'lot': {'kl_weight': 1.},
           'sftn': {'sample_branch': True, 'branch_share': 0.5}}


@pytest.fixture(scope='module')
def student(tmp_path_factory):
    return f"local-dir:{export_teacher('test_efficientnet', tmp_path_factory.mktemp('exported') / 'student')}"


def teacher():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=10)


def plain_losses(method, students, epochs):
    model = teacher()
    torch.manual_seed(1)        # of the branches' transforms
    task = sf_teacher.wrap(model, students, input_size=SIZE, method=method)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for epoch in range(epochs):
        task.set_epoch(epoch, epochs)
        for images, targets in torch.utils.data.DataLoader(batches(), batch_size=16):
            loss = task.train()(images, targets)['loss']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, task.teacher.state_dict()


def boxes(key, students, tmp_path):
    """Way (A), a stage of a DistillationBox, and way (B), a TrainingBox, each with its teacher."""
    shared = {'method': OPTIONS.get(key, {})}
    made, first = dict(name=METHODS[key].__name__, students=students, num_epochs=2), teacher()
    stage = teacher_stage(loss=shared, **shared, **made)
    unused = timm.create_model('test_resnet', num_classes=10)
    torch.manual_seed(1)
    yield get_distillation_box(first, unused, {'train': batches()}, stage, CPU, None, False, 1), first
    model = teacher()
    stage = teacher_stage(loss={'is_from_teacher': False, **shared}, ckpt_file_path=str(tmp_path / 'kept.pt'), **shared,
                          **made)
    stage['model'] = stage.pop('teacher')
    stage.pop('student')
    torch.manual_seed(1)
    yield get_training_box(model, {'train': batches()}, stage, CPU, None, False, 1), model


@pytest.mark.parametrize('key', OPTIONS)
def test_both_ways_give_the_losses_of_wrap_over_two_epochs(key, student, tmp_path):
    students = student if METHODS[key].takes_students else None
    expected, state = plain_losses(METHODS[key](**OPTIONS[key]), students, 2)
    assert len(set(expected)) == 8
    for box, model in boxes(key, students, tmp_path):
        found = box_losses(box) + box_losses(box)
        assert found == pytest.approx(expected, rel=1e-5)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-5)


def test_the_centroids_are_kept_beside_torchdistills_checkpoints(tmp_path):
    _, (box, model) = boxes('mcmi', None, tmp_path)
    box_losses(box)
    memory = torch.load(tmp_path / 'kept.pt', weights_only=True)['memory']
    assert memory['counts'].sum() == 64     # of the epoch that has ended, before they become centroids
    kwargs = dict(student_model=model, input_size=list(SIZE), num_epochs=2, ckpt_file_path=str(tmp_path / 'kept.pt'))
    resumed = adapter.Teacher4MCMI(CPU, **kwargs)
    assert all(torch.equal(v, box.model.branches.memory[k]) for k, v in resumed.branches.memory.items())
    assert resumed.branches.memory['centroids'].sum() > 1


def test_soteacher_says_why_it_cannot_be_trained_here():
    with pytest.raises(SFTeacherError, match=r'Teacher4SoTeacher: SoTeacher needs to know which images of the data set '
                                             r"a batch holds, and torchdistill's loaders do not tell: train this "
                                             r'teacher with `sf-teacher train`'):
        adapter.Teacher4SoTeacher(CPU, student_model=teacher(), input_size=list(SIZE))


def test_aids_student_needs_weights_here_too():
    with pytest.raises(SFTeacherError, match=r"AID needs a trained student, and 'test_efficientnet' would have random"):
        adapter.Teacher4AID(CPU, student_model=teacher(), students='test_efficientnet', input_size=list(SIZE))


def test_aids_student_gets_its_images_as_the_config_says_that_the_teachers_are(student, tmp_path):
    known = timm.create_model(student).pretrained_cfg
    images = {'folder': str(tmp_path / 'out'), 'mean': list(known['mean']), 'std': list(known['std'])}
    model = teacher()
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': (0.1,) * 3}      # the architecture's, and not the config's
    kwargs = dict(student_model=model, students=student, input_size=list(SIZE))
    assert adapter.Teacher4AID(CPU, **kwargs).branches.scale is not None
    assert adapter.Teacher4AID(CPU, **kwargs, export=images).branches.scale is None
    made = adapter.Teacher4AID(CPU, **kwargs, export={**images, 'mean': 0.3, 'std': 0.7}).branches
    x = torch.randn(2, *SIZE)
    mean, std = (torch.tensor(known[n]).view(1, -1, 1, 1) for n in ('mean', 'std'))
    assert torch.allclose(x * made.scale + made.shift, (x * 0.7 + 0.3 - mean) / std, atol=1e-5)
