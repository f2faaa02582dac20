"""What users get wrong: each is an error that names cause and remedy, with an exit code, and loses no file."""
import re
import sys

import pytest
import timm
import torch
from timm.task import ClassificationTask

from sf_teacher import SFTeacherError, training
from sf_teacher.data.datasets import load_data
from sf_teacher.data.settings import DataConfig
from sf_teacher.exporting.exporter import export
from sf_teacher.training.interruption import Guard, World
from sf_teacher.training.planning import plan_student, plan_teacher
from sf_teacher.training.run_folder import RunFolder
from sf_teacher.training.settings import StudentRun, TeacherRun, TrainConfig
from sf_teacher.training.signals import Stop

from . import training_runs as runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return runs.folder(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    return runs.fixed_size_teacher(tmp_path_factory.mktemp('teacher'))


def test_two_runs_into_one_folder(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    before = (tmp_path / 'run/checkpoint-00001.pt').read_bytes()
    with pytest.raises(SFTeacherError, match='holds a run already: continue it with resume, or choose another output'):
        runs.train(tmp_path / 'run', 'plain', epochs=1)
    assert (tmp_path / 'run/checkpoint-00001.pt').read_bytes() == before


def test_a_refused_run_leaves_the_folder_free(tmp_path):
    with pytest.raises(SFTeacherError, match="timm has no optimizer 'sdg'"):
        runs.train(tmp_path / 'run', 'plain', epochs=1, opt='sdg')
    assert not (tmp_path / 'run/config.yaml').exists()
    assert len(runs.train(tmp_path / 'run', 'plain', epochs=1)) == 1
    with pytest.raises(SFTeacherError, match='holds a run already') as kept:     # as an interactive session keeps it
        runs.train(tmp_path / 'run', 'plain', epochs=1)
    assert kept.tb is not None and len(runs.train(tmp_path / 'run', 'plain', epochs=1, resume=True)) == 1


def test_two_processes_into_one_folder_at_once(tmp_path):
    config = TrainConfig(output=str(tmp_path / 'run'))
    first = RunFolder(config.output, config, resume=False)
    with pytest.raises(SFTeacherError, match=r'another process is training into .*: choose another output'):
        RunFolder(config.output, config, resume=True)
    first.close()
    RunFolder(config.output, config, resume=True).close()


def test_resume_with_other_settings(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    with pytest.raises(SFTeacherError, match=r'started with other settings .lr: 0.02 then, 0.5 now.: resume it with'):
        runs.train(tmp_path / 'run', 'plain', epochs=1, resume=True, lr=0.5)


def test_checkpoint_of_another_model(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    task = ClassificationTask(timm.create_model('test_byobnet', num_classes=4), verbose=False)
    with pytest.raises(SFTeacherError, match=r'is that of another model or optimizer: .*ByobNet'):
        training.fit(task, *runs.loaders(), runs.settings(tmp_path / 'run', epochs=1, resume=True))


def test_resume_with_another_number_of_processes(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    path = tmp_path / 'run/checkpoint-00001.pt'
    state = torch.load(path, weights_only=True)
    torch.save(state | {'rng': state['rng'] * 2}, path)
    with pytest.raises(SFTeacherError, match='trained by 2 processes and this is 1: resume it with as many'):
        runs.train(tmp_path / 'run', 'plain', epochs=1, resume=True)


def test_nan_in_the_images_is_told_from_nan_in_the_loss(tmp_path):
    train, evaluation = runs.loaders()
    train.std[:] = 0.
    train.mean[:] = train.images[0, 0, 5, 5].float()
    with pytest.raises(SFTeacherError, match='epoch 1, batch 1: the images hold values that are not finite'):
        training.fit(runs.task('plain'), train, evaluation, runs.settings(tmp_path / 'run', mixup=0.))
    assert runs.final_state(tmp_path / 'run')['epoch'] == 0


def test_a_term_that_is_not_finite_is_named_with_its_branch(tmp_path):
    task = runs.task('teacher')
    name = task.branches.names[1]
    with torch.no_grad():
        next(task.branches.branches[1].tail.parameters()).fill_(float('inf'))
    before = {k: v.clone() for k, v in task.teacher.named_parameters()}
    with pytest.raises(SFTeacherError, match=rf'branch_ce/{name} is nan.*logits of branch {name} has values.*'
                                             r'The checkpoint after 0 epochs is kept in .*lower lr, with clip_grad=1$'):
        training.fit(task, *runs.loaders(), runs.settings(tmp_path / 'run'))
    assert all(torch.equal(before[k], v) for k, v in task.teacher.named_parameters())


def test_divergence_keeps_the_last_good_checkpoint(tmp_path):
    output = tmp_path / 'run'
    with pytest.raises(SFTeacherError, match=r'not finite.*is kept in'):
        runs.train(output, 'plain', epochs=30, lr=100., clip_grad=None, sched='constant', opt='sgd', warmup_epochs=0)
    state = runs.final_state(output)
    assert all(v.isfinite().all() for v in state['state_dict'].values())


def test_another_size_than_the_teachers_is_said(data, tmp_path, caplog):
    path = tmp_path / 'teacher'
    timm.models.save_for_hf(timm.create_model('test_resnet', num_classes=4), str(path), safe_serialization=True,
                            model_args=dict(num_classes=4), data_config=dict(input_size=(3, 16, 16)))
    plan_student(StudentRun(teacher=str(path), student='test_resnet', data=str(data), input_size=(3, 32, 32),
                            in_memory=True, batch_size=8, device='cpu'))
    assert re.search(r'was exported for images of \(3, 16, 16\) and gets \(3, 32, 32\)', caplog.text)


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    for module in ('tensorboard', 'tensorboardX'):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SFTeacherError, match='needs tensorboard: pip install tensorboard accelerate, or leave it out'):
        runs.train(tmp_path / 'run', 'plain', epochs=1, tensorboard=True)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(SFTeacherError, match='comes with scikit-learn, which is not installed'):
        load_data(DataConfig(data='digits'))


def test_a_device_that_the_task_is_not_on():
    with pytest.raises(SFTeacherError, match=r"device='cuda:1', and the task is on cpu: move it there \(task.to\("):
        training.fit(runs.task('plain'), *runs.loaders(), runs.settings(device='cuda:1'))


def test_smoothing_that_nothing_would_do():
    task, config = runs.task('plain'), runs.settings(epochs=1, smoothing=0.1, mixup=0.)
    with pytest.raises(SFTeacherError, match=r'smoothing=0.1 has no effect.*CrossEntropyLoss.*criterion\(config\)'):
        training.fit(task, *runs.loaders(), config)
    task.criterion = training.criterion(config)
    assert len(training.fit(task, *runs.loaders(), config)) == 1


@pytest.mark.parametrize('compiled', [False, True])
def test_what_was_not_finite_in_half_precision_is_advised_another_type(compiled):
    task = runs.task('plain')
    with torch.no_grad():
        name, weight = next(iter(task.trainable_module.named_parameters()))
        weight.fill_(float('nan'))
    guard = Guard(World(), Stop(), '', task.trainable_module, 'bfloat16')
    module = torch.compile(task.trainable_module, backend='eager') if compiled else task.trainable_module
    with pytest.raises(SFTeacherError, match=rf'^{re.escape(name)} is not finite after epoch 3\. .*, or without amp$'):
        guard.check_weights(2, module)


def test_a_grey_teachers_folder_says_how_images_are_read(data, tmp_path):
    folder = export(timm.create_model('test_resnet', num_classes=4, in_chans=1), tmp_path / 'grey',
                    input_size=(1, 16, 16), mean=0.5, std=0.5)
    plan = plan_teacher(TeacherRun(teacher=f'local-dir:{folder}', student=('test_efficientnet',), data=str(data),
                                   batch_size=8, device='cpu', workers=0))
    images, labels = next(iter(plan.train_loader))
    assert images.shape[1:] == (1, 16, 16) and plan.task(images, labels)['loss'].isfinite()


def test_images_kept_in_memory_are_cut_in_the_middle_and_the_model_says_so(data):
    plan = plan_teacher(TeacherRun(teacher='test_resnet', method='none', data=str(data), input_size=(3, 16, 16),
                                   model_kwargs={'pretrained_cfg_overlay': {'crop_mode': 'squash'}}, in_memory=True,
                                   batch_size=8, device='cpu'))
    assert plan.data_config['crop_mode'] == plan.task.get_eval_model().pretrained_cfg['crop_mode'] == 'center'
