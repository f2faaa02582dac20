"""Whole runs from their settings: dry ones, stopped ones, students, grey images."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from PIL import Image

import sf_teacher
from sf_teacher import SFTeacherError, cli
from sf_teacher.training import fit
from sf_teacher.training.interruption import World
from sf_teacher.training.planning import plan_student, plan_teacher
from sf_teacher.training.runs import distill, train_teacher
from sf_teacher.training.settings import StudentRun, TeacherRun, TrainConfig

from . import training_runs as runs


def started(*args, cwd):
    return subprocess.Popen([sys.executable, '-m', 'sf_teacher', *args], cwd=cwd, stderr=subprocess.PIPE, text=True,
                            stdout=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS': '1'})


@pytest.mark.slow
@pytest.mark.fresh_check
def test_sigterm_prints_a_command_that_continues_to_the_export_of_a_verified_teacher(tmp_path, monkeypatch, capsys):
    args = ['train', 'test_resnet', '--student', 'test_resnet', '--data', 'digits', '--input-size', '3', '16', '16',
            '--batch-size', '256', '--epochs', '12', '--device', 'cpu', '--output', 'run']
    process = started(*args, cwd=tmp_path)
    while not (tmp_path / 'run/checkpoint-00001.pt').exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert re.search(r'stopped by SIGTERM in epoch \d+; \d+ complete epochs are saved', err)
    assert 'Traceback' not in err
    command = re.search(r'Continue with\n  sf-teacher (.*)', err)[1]
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 0
    assert 'exported and verified' in capsys.readouterr().out
    assert len((tmp_path / 'run/summary.csv').read_text().splitlines()) == 13
    model = timm.create_model(f'local-dir:{tmp_path}/run/teacher', pretrained=True)
    state = runs.final_state(tmp_path / 'run')['state_dict']
    assert runs.differences(dict(model.state_dict()), dict(state)) == []
    settings = yaml.safe_load((tmp_path / 'run/config.yaml').read_text())
    assert settings['num_classes'] == 10 and settings['mean'] == [0.5] * 3 and settings['hflip'] == 0.
    card = (tmp_path / 'run/teacher/README.md').read_text()
    assert 'test_resnet' in card and 'digits' in card and 'eval_top1' in card and 'SFTN' in card


@pytest.mark.parametrize('more', ['--student test_resnet', '--student test_resnet --method-kwargs kl_ramp=0.5',
                                  '--method soteacher',
                                  '--student test_resnet --amp --amp-dtype bfloat16 --channels-last --model-ema '
                                  '--mixup 0.2 --grad-accum-steps 2 --torchcompile eager'])
def test_dry_run_prints_plan_and_cost_and_writes_nothing(more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ['train', 'test_resnet', '--data', 'digits', '--batch-size', '16', '--epochs', '3',
            '--device', 'cpu', '--output', 'run', '--dry-run', *more.split()]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    for text in ('StudentFriendlyTask(', 'branches: ', '3 epochs of 89 steps of 16 images', 'hours for all',
                 'images 3x32x32, mean 0.5 0.5 0.5, std', 'sgd lr 0.05, cosine'):
        assert text in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('file', 'message'), [
    ('config.yaml', 'run holds a run already: continue it with --resume, or choose another --output'),
    ('teacher/mine.txt', 'the teacher could not be exported after training: .*move it away, or choose another output'),
])
def test_a_dry_run_refuses_what_the_run_would(file, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run' / file).parent.mkdir(parents=True)
    (tmp_path / 'run' / file).write_text('mine')
    args = ['train', 'test_resnet', '--method', 'none', '--data', 'digits', '--epochs', '1', '--device', 'cpu',
            '--output', 'run', '--dry-run']
    assert cli.main(args) != 0
    assert re.search(message, capsys.readouterr().err)
    assert [p for p in (tmp_path / 'run').rglob('*') if p.is_file()] == [tmp_path / 'run' / file]


def test_a_dry_run_refuses_a_tracker_that_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sf_teacher.training.trackers.find_spec', lambda name: None)
    args = ['train', 'test_resnet', '--method', 'none', '--data', 'digits', '--epochs', '1', '--device', 'cpu',
            '--log-with', 'wandb', '--dry-run']
    assert cli.main([*args, '--output', 'run']) != 0
    assert '--log-with wandb needs wandb: pip install wandb accelerate' in capsys.readouterr().err
    assert cli.main(args) != 0 and 'has no effect without --output' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def grey(tmp_path):
    """Images with one channel, in folders."""
    for path in runs.folder(tmp_path / 'grey').rglob('*.png'):
        Image.open(path).convert('L').save(path)
    return tmp_path / 'grey'


@pytest.mark.slow
@pytest.mark.parametrize('more', [
    '--student test_resnet --input-size 1 16 16', '--student test_resnet --input-size 1 16 16 --in-memory',
    '--method none --model-kwargs in_chans=1'])
def test_grey_images_are_trained_on_and_the_teacher_exported(more, grey, tmp_path):
    args = ['train', 'test_resnet', '--data', str(grey), '--batch-size', '8', '--epochs', '1', '--device', 'cpu',
            '--workers', '0', '--output', str(tmp_path / 'run'), *more.split()]
    assert cli.main(args) == 0
    config = json.loads((tmp_path / 'run/teacher/config.json').read_text())['pretrained_cfg']
    assert config['input_size'][0] == 1 and len(config['mean']) == len(config['std']) == 1
    if 'none' not in more:      # the teacher is found in its run's folder, and under timm's name for it
        student = ['--student', 'test_resnet', '--data', str(grey), '--batch-size', '8', '--epochs', '1', '--device',
                   'cpu', '--workers', '0', '--model-kwargs', 'in_chans=1', '--output', str(tmp_path / 'student')]
        assert cli.main(['distill', '--teacher', str(tmp_path / 'run'), *student]) == 0
        assert cli.main(['distill', '--teacher', f'local-dir:{tmp_path}/run/teacher', '--dry-run', *student[:-2]]) == 0


def test_a_student_alone_learns_from_grey_images(grey, tmp_path):
    plan = plan_student(StudentRun(student='test_resnet', data=str(grey), model_kwargs={'in_chans': 1}, workers=0,
                                   batch_size=8, device='cpu'))
    assert next(iter(plan.train_loader))[0].shape[1] == 1 == len(plan.config.mean)


def test_boundaries_of_a_run_are_those_of_wrap():
    config = dict(teacher='test_resnet', student=('test_vit',), data='digits', input_size=(3, 160, 160), device='cpu')
    task = plan_teacher(TeacherRun(**config, boundaries=[3, 2])).task       # as YAML gives them
    assert [b.name for b in task.branches.boundaries] == ['layer2', 'layer3']
    task = plan_teacher(TeacherRun(**config, boundaries=('layer1:blocks.1', '2:3'))).task
    assert task.branches.names == ['layer1-blocks.1', 'layer2-blocks.3']


def test_distill_trains_a_student_in_the_teachers_preprocessing(tmp_path):
    model = timm.create_model('test_resnet', num_classes=10)
    timm.models.save_for_hf(model, str(tmp_path / 't'), model_args=dict(num_classes=10), safe_serialization=True,
                            data_config=dict(input_size=(3, 16, 16), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    plan = plan_student(StudentRun(teacher=str(tmp_path / 't'), student='test_resnet', data='digits', device='cpu'))
    assert plan.config.mean == (0.1, 0.2, 0.3) and plan.config.input_size == (3, 16, 16)
    images, target = next(iter(plan.eval_loader))
    images = images.clone()
    teacher = plan.task.teacher
    assert torch.equal(teacher.normalize_input(images, plan.task.student_mean, plan.task.student_std), images)
    result = plan.task(images, target)
    result['loss'].backward()
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.model.training
    assert all(p.grad is not None for p in plan.task.get_trainable_module().parameters())


def test_teachers_are_trained_by_the_same_loop_from_python():
    task = sf_teacher.wrap('test_resnet', 'test_resnet', num_classes=runs.CLASSES, input_size=runs.SIZE)
    rows = fit(task, *runs.loaders(), TrainConfig(epochs=1))
    assert rows[0]['epoch'] == 0


def test_images_in_memory_are_seen_whole_by_whoever_loads_the_export(tmp_path):
    """The run validates on whole images, also of an architecture whose own configuration crops them."""
    data = runs.folder(tmp_path / 'data')
    common = dict(data=str(data), in_memory=True, input_size=runs.SIZE, batch_size=8, epochs=1, device='cpu')
    train_teacher(TeacherRun(teacher='resnet10t', method='none', output=str(tmp_path / 'teacher'), **common))
    distill(StudentRun(teacher=str(tmp_path / 'teacher'), student='resnet10t', output=str(tmp_path / 'student'),
                       **common))
    own = timm.create_model('resnet10t').pretrained_cfg
    assert own['crop_pct'] < own['test_crop_pct'] < 1
    for name in ('teacher', 'student'):
        model = timm.create_model(f'local-dir:{tmp_path}/{name}/{name}', pretrained=True)
        for as_validate_does in (False, True):
            config = timm.data.resolve_data_config(model=model, use_test_size=as_validate_does)
            assert config['crop_pct'] == 1 and config['input_size'] == runs.SIZE


def test_a_run_is_not_resumed_with_other_images(tmp_path):
    data = runs.folder(tmp_path / 'data')
    config = TeacherRun(teacher='test_resnet', method='none', data=str(data), in_memory=True, batch_size=8, epochs=1,
                        device='cpu', output=str(tmp_path / 'run'))
    train_teacher(config)
    noted = (tmp_path / 'run/images.txt').read_text()
    assert noted.startswith('train: 24 images of 4 classes (class0 6, class1 6, class2 6, class3 6)\nvalidation: 24 ')
    resumed = replace(config, resume=True)
    image = next((data / 'validation').glob('class1/*'))
    moved = image.rename(tmp_path / image.name)
    with pytest.raises(SFTeacherError, match=r"images \('validation: 24 .*' then, 'validation: 23 .*' now\): put"):
        train_teacher(resumed)
    moved.rename(image.with_name('other.png'))
    with pytest.raises(SFTeacherError, match=r"other images \('fingerprint: \w+' then, 'fingerprint: \w+' now\): put"):
        train_teacher(resumed)
    image.with_name('other.png').rename(image)
    rows, _ = train_teacher(resumed)
    assert len(rows) == 1 and (tmp_path / 'run/images.txt').read_text() == noted


def test_the_images_are_noted_before_the_first_step(tmp_path):
    """A validation image that cannot be decoded ends the first epoch; what is repaired goes on, other images do not."""
    data = runs.folder(tmp_path / 'data')
    config = TeacherRun(teacher='test_resnet', method='none', data=str(data), input_size=runs.SIZE, batch_size=8,
                        epochs=1, workers=0, device='cpu', output=str(tmp_path / 'run'))
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/images.txt').write_text('of another run')
    broken = sorted((data / 'validation').glob('class3/*'))[-1]
    content = broken.read_bytes()
    broken.write_bytes(b'')
    with pytest.raises(SFTeacherError, match=r'cannot be decoded .*: repair it, or put another .* under the same'):
        train_teacher(config)
    image = next((data / 'train').glob('class1/*'))
    image.rename(image.with_name('other.png'))
    with pytest.raises(SFTeacherError, match=r"was begun with other images \('fingerprint"):
        train_teacher(replace(config, resume=True))
    image.with_name('other.png').rename(image)
    broken.write_bytes(content)
    assert len(train_teacher(replace(config, resume=True))[0]) == 1


def test_processes_that_read_other_images_do_not_train_together(tmp_path, monkeypatch):
    data = runs.folder(tmp_path / 'data')
    monkeypatch.setattr(World, 'gathered', lambda self, value: [value, value.replace('class2 6', 'class2 5')])
    with pytest.raises(SFTeacherError, match=r"process 1 has other images than this one \('train: .*class2 5.*' there"):
        train_teacher(TeacherRun(teacher='test_resnet', method='none', data=str(data), input_size=runs.SIZE,
                                 in_memory=True, batch_size=8, device='cpu', output=str(tmp_path / 'run')))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('command', ['distill', 'train'])
def test_a_run_is_not_resumed_with_another_frozen_model_under_the_same_name(command, tmp_path, caplog):
    """Which is the teacher of a distillation, and the trained student of AID."""
    models = [runs.fixed_size_teacher(tmp_path / name) for name in ('frozen', 'start')]
    common = dict(data=str(runs.folder(tmp_path / 'data')), in_memory=True, batch_size=8, epochs=1, device='cpu',
                  output=str(tmp_path / 'run'))
    if command == 'distill':
        config, run = StudentRun(teacher=str(models[0]), student='test_resnet', **common), distill
    else:
        teacher, guide = (f'local-dir:{folder}' for folder in reversed(models))
        config, run = TeacherRun(teacher=teacher, student=(guide,), method='aid', **common), train_teacher
    run(config)
    noted = tmp_path / 'run/frozen.txt'
    resumed, text = replace(config, resume=True), noted.read_text()
    weights = models[0] / 'model.safetensors'
    kept = weights.rename(tmp_path / 'kept')
    runs.fixed_size_teacher(models[0])
    with pytest.raises(SFTeacherError, match=r"other weights of (teacher|student)=.* \('fingerprint: \w+' then, 'finger"
                                             r"print: \w+' now\): put back .*, or start anew in another output"):
        run(resumed)
    assert noted.read_text() == text
    kept.rename(weights)
    assert len(run(resumed)[0]) == 1 and 'is missing' not in caplog.text
    noted.unlink()      # as in a run of an earlier version
    assert len(run(resumed)[0]) == 1 and noted.read_text() == text
    assert 'frozen.txt is missing: whether the run was begun with these weights of' in caplog.text
