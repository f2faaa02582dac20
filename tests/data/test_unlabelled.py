"""A student learns from images without labels too, by what the teacher says of them."""
import csv
import shutil
import tarfile

import pytest
import timm
import torch

from sf_teacher import SFTeacherError, cli
from sf_teacher.data.unlabelled import LabelledOnly, WithUnlabelled
from sf_teacher.methods._simplifier import CollapseWatch
from sf_teacher.training.planning import plan_student
from sf_teacher.training.runs import distill
from sf_teacher.training.settings import StudentRun

from ..training import training_runs as runs


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Folders: data (24 labelled images to train on, 24 to validate), flat (24 more), and a teacher."""
    path = tmp_path_factory.mktemp('unlabelled')
    runs.folder(path / 'data')
    images = runs.folder(path / 'more')
    (path / 'flat').mkdir()
    for i, image in enumerate(sorted((images / 'train').rglob('*.png'))):
        shutil.copy(image, path / 'flat' / f'u{i}.png')
    with tarfile.open(path / 'flat.tar', 'w') as tar:
        tar.add(path / 'flat', arcname='.')
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model('test_resnet', num_classes=4), str(path / 'teacher'),
                            model_args=dict(num_classes=4), safe_serialization=True,
                            data_config=dict(input_size=runs.SIZE))
    return path


def plan_config(root, **kwargs):
    return StudentRun(**{
        'teacher': str(root / 'teacher'), 'student': 'test_resnet', 'data': str(root / 'data'), 'device': 'cpu',
        'batch_size': 8, 'unlabelled': str(root / 'flat'), 'workers': 0, 'no_aug': True, **kwargs})


def plan(root, **kwargs):
    return plan_student(plan_config(root, **kwargs))


def labels(found):
    return torch.cat([target for _, target in found.train_loader])


@pytest.mark.parametrize('kwargs', [{}, {'in_memory': True}], ids=['files', 'memory'])
@pytest.mark.parametrize('place', ['flat', 'flat.tar'])
def test_batches_mix_both_in_one_random_order(place, kwargs, root):
    found = plan(root, unlabelled=str(root / place), **kwargs)
    assert found.data.contents[-1] == 'unlabelled: 24 images' and len(found.train_loader) == 6
    seen = labels(found)
    assert sorted(seen.tolist()) == [-1] * 24 + [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    assert sum(0 < int((batch < 0).sum()) < 8 for batch in seen.split(8)) >= 4
    assert min(target.min() for _, target in found.eval_loader) == 0


def test_without_labelled_images(root, tmp_path):
    found = plan(root, train_split='none')
    assert labels(found).tolist() == [-1] * 24 and found.data.num_classes == 4
    with pytest.raises(SFTeacherError, match=r'train_split=.none. leaves out the labelled images: give .* unlabelled'):
        plan(root, train_split='none', unlabelled='')


def test_the_loss_is_cross_entropy_of_the_labelled_and_distillation_of_all(root):
    task = plan(root).task
    images = torch.randn(8, *runs.SIZE)
    for target in (torch.tensor([0, -1, 2, -1, -1, 3, -1, -1]), torch.full((8,), -1)):
        state = {k: v.clone() for k, v in task.student.state_dict().items()} if hasattr(task, 'student') else None
        result = task.train()(images, target)
        known = target >= 0
        logits, teacher = result['output'], task.teacher(images, return_features=False)
        ce = torch.nn.functional.cross_entropy(logits[known], target[known]) if known.any() else torch.tensor(0.)
        t = task.temperature
        kd = (teacher.div(t).softmax(-1) * (teacher.div(t).log_softmax(-1) - logits.div(t).log_softmax(-1))).sum() / 8
        torch.testing.assert_close(result['loss'], 0.1 * ce + 0.9 * t ** 2 * kd, rtol=1e-4, atol=1e-5)
        result['loss'].backward()
        assert state is None or all(p.grad is not None for p in task.get_trainable_module().parameters())


def test_the_simplifier_needs_no_label_either(root, tmp_path):
    """Its loss is the distillation loss alone, and its targets are watched by the teacher's own classes."""
    task = plan(root, kd='student_friendly').task.train()
    with torch.no_grad():
        torch.nn.init.normal_(task.simplifier.proj.weight)
    images, target = torch.randn(8, *runs.SIZE), torch.tensor([0, -1, 2, -1, -1, 3, -1, -1])
    state = {k: v.clone() for k, v in task.state_dict().items()}
    results = []
    for labels in (target, target.clamp(min=0), torch.full((8,), -1)):
        task.load_state_dict(state)
        results.append(task(images, labels))
    assert len({result['kd_loss'].item() for result in results}) == 1
    known = target >= 0
    expected = torch.nn.functional.cross_entropy(results[0]['output'][known], target[known])
    torch.testing.assert_close(results[0]['task_loss'], expected)
    assert results[2]['task_loss'] == 0. and 0 <= results[2]['target_top1'] <= 100
    results[2]['loss'].backward()
    assert task.simplifier.qkv.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in task.student.parameters())
    rows, folder = distill(plan_config(root, kd='student_friendly', output=str(tmp_path / 'run'), epochs=1))
    assert rows[0]['train_kd_loss'] > 0 and 'train_target_entropy' in rows[0] and folder.exists()


def test_without_the_projection_the_targets_agree_with_the_teacher_where_there_is_no_label():
    watch, teacher = CollapseWatch(), torch.randn(6, 4)
    labels = torch.tensor([0, -1, -1, 1, -1, 2])
    found = watch.update(teacher, teacher, labels, 4., True)['target_top1']
    right = (teacher.argmax(-1) == labels) | (labels < 0)
    assert found == pytest.approx(100 * right.float().mean().item())


def test_labels_of_all_images_change_nothing():
    logits, target = torch.randn(8, 4), torch.arange(8) % 4
    for criterion in (torch.nn.CrossEntropyLoss(), timm.loss.LabelSmoothingCrossEntropy(0.1)):
        assert torch.equal(LabelledOnly(criterion)(logits, target), criterion(logits, target))
    criterion, shares = torch.nn.CrossEntropyLoss(), torch.rand(8, 4).softmax(-1)      # of mixup
    assert torch.equal(LabelledOnly(criterion)(logits, shares), criterion(logits, shares))


@pytest.mark.slow
def test_the_command_trains_resumes_and_exports(root, tmp_path, capsys):
    args = ['distill', '--teacher', str(root / 'teacher'), '--student', 'test_resnet', '--data', str(root / 'data'),
            '--unlabelled', str(root / 'flat'), '--batch-size', '8', '--epochs', '2', '--device', 'cpu', '--in-memory',
            '--lr', '0.01', '--output', str(tmp_path / 'run')]
    assert cli.main(args) == 0
    assert cli.main(['distill', '--config', str(tmp_path / 'run/config.yaml'), '--resume']) == 0
    rows = list(csv.DictReader((tmp_path / 'run/summary.csv').open()))
    assert len(rows) == 2 and 'train_top1' not in rows[0] and float(rows[1]['eval_top1']) >= 0
    assert 'flat' in (tmp_path / 'run/student/config.json').read_text()


def test_an_unreadable_image_is_named(root):
    broken = WithUnlabelled(None, plan(root).data.train.parts[1])
    assert broken.filename(3) == 'u3.png' and len(broken) == 24
