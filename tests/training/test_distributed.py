"""Two processes with gloo on the CPU. Batch norm is frozen: there it is synchronised on GPUs only."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import freeze_batch_norm_2d
from timm.task import TrainingTask

from sf_teacher import SFTeacherError, training

from . import training_runs as runs

TOLERANCE = 2e-6    # of weights and metrics; sums are made in another order


def frozen_norm_task(kind: str, dropout: float = 0.) -> TrainingTask:
    task = runs.task(kind, 'test_vit', img_size=16, patch_size=4)
    task.trainable_module = freeze_batch_norm_2d(task.trainable_module)
    for module in task.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return task


def work(rank, world, output, kind, batch_size, fail, dropout, times=1, **settings):
    """One process of a run."""
    torch.set_num_threads(1)
    os.dup2(os.open(f'{output}-{rank}.log', os.O_WRONLY | os.O_CREAT), 2)
    if world > 1:
        dist.init_process_group('gloo', init_method=f'file://{output}.store', rank=rank, world_size=world)
    task = frozen_norm_task(kind, dropout)
    train, evaluation = runs.loaders(batch_size, rank=rank, world_size=world, hflip=0.5,
                                     with_index=runs.needs_index(kind))
    if fail == 'nan' and rank == 1:
        train.mean[:] = float('nan')
    if fail == 'shards' and rank == 1:
        train.images, train.labels = train.images[:-2 * batch_size], train.labels[:-2 * batch_size]
    if fail == 'evaluation' and rank == 1:
        evaluation = None
    if fail == 'error' and rank == 1:
        train.set_epoch = lambda epoch: (_ for _ in ()).throw(OSError('the disk of process 1 is gone'))
    if fail == 'signal' and rank == 1:
        update = task.update_ema
        task.update_ema = lambda step: (update(step), step == 4 and os.kill(os.getpid(), signal.SIGTERM))
    config = runs.settings(output, **{'epochs': 2, 'mixup': 0., 'lr': 0.02, 'weight_decay': 0., **settings})
    try:
        for _ in range(times - 1):
            training.fit(task, train, evaluation, replace(config, output=''))
        training.fit(task, train, evaluation, config)
    except SFTeacherError as error:
        os.write(2, str(error).encode())
        os._exit(3)
    except training.Interrupted as stop:
        os.write(2, str(stop).encode())
        os._exit(4)


def together(output, kind, world=2, batch_size=8, fail='', dropout=0., **settings):
    Path(f'{output}.store').unlink(missing_ok=True)     # of the run that this one resumes
    started = [runs.run(work, rank, world, output, kind, batch_size, fail, dropout, **settings)
               for rank in range(world)]
    for process in started:
        process.join(240)
    logs = [Path(f'{output}-{rank}.log').read_text() for rank in range(world)]
    return [p.exitcode for p in started], logs


@pytest.mark.parametrize('kind', [*runs.TEACHER_METHODS, 'plain', 'distill'])
def test_two_processes_with_half_the_batch_equal_one_with_the_whole(kind, tmp_path):
    equal(tmp_path, kind)


def test_so_they_do_when_a_task_is_compiled_and_trained_a_second_time(tmp_path):
    equal(tmp_path, 'sftn', times=2, epochs=1, torchcompile='eager')


def equal(tmp_path, kind, epochs=2, **settings):
    two, one = tmp_path / 'two', tmp_path / 'one'
    codes, logs = together(two, kind, epochs=epochs, **settings)
    assert codes == [0, 0], logs
    codes, logs = together(one, kind, world=1, batch_size=16, epochs=epochs, **settings)
    assert codes == [0], logs
    a, b = runs.final_state(two), runs.final_state(one)
    for state in ('state_dict', 'state_dict_ema'):
        for name, tensor in a[state].items():
            torch.testing.assert_close(tensor, b[state][name], atol=TOLERANCE, rtol=0, msg=f'{state}.{name}')
    assert len(a['rows']) == epochs and a['rows'][0].keys() == b['rows'][0].keys()
    for row, other in zip(a['rows'], b['rows'], strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert len(a['rng']) == 2 and sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())


def test_a_loss_that_is_not_finite_on_one_process_stops_both_before_the_step(tmp_path):
    codes, logs = together(tmp_path / 'run', 'plain', fail='nan')
    assert codes == [3, 3]
    for log in logs:
        assert 'epoch 1, batch 1: process 1: the images hold values that are not finite' in log
    assert runs.final_state(tmp_path / 'run')['epoch'] == 0


@pytest.mark.parametrize(('fail', 'message'), [
    ('shards', 'the training loaders of the 2 processes have 3, 2 batches, and each step takes one of every'),
    ('evaluation', 'there is no eval_loader on process 1, and all 2 evaluate together: give one to each of them')])
def test_loaders_that_differ_are_refused_on_both_before_the_first_step(fail, message, tmp_path):
    codes, logs = together(tmp_path / 'run', 'plain', fail=fail)
    assert codes == [3, 3]
    for log in logs:
        assert message in log
    assert not (tmp_path / 'run').exists()


def test_a_signal_to_one_process_stops_both_and_they_resume_bit_for_bit(tmp_path):
    options = dict(dropout=0.2, mixup=0.2, opt='adamw', lr=1e-3)      # every process draws random numbers of its own
    codes, logs = together(tmp_path / 'run', 'plain', fail='signal', **options)
    assert codes == [4, 4] and all('stopped by SIGTERM in epoch 2; 1 complete epochs are saved' in log for log in logs)
    codes, logs = together(tmp_path / 'run', 'plain', resume=True, **options)
    assert codes == [0, 0], logs
    assert together(tmp_path / 'straight', 'plain', **options)[0] == [0, 0]
    a, b = runs.final_state(tmp_path / 'run'), runs.final_state(tmp_path / 'straight')
    assert runs.differences(a, b) == [] and runs.differences(a['rng'][0], a['rng'][1]) != []


def test_when_one_process_fails_the_other_stops_too(tmp_path):
    began = time.monotonic()
    codes, logs = together(tmp_path / 'run', 'plain', fail='error')
    assert 0 not in codes and None not in codes and time.monotonic() - began < 30
    assert 'the disk of process 1 is gone' in logs[1]


def torchrun(*args, cwd, **kwargs):
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone',
               '-m', 'sf_teacher', *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}, **kwargs)


@pytest.mark.slow
def test_torchrun_trains_and_exports_once(tmp_path):
    args = ['train', 'test_vit', '--student', 'test_vit', '--data', 'digits', '--input-size', '3', '32', '32',
            '--batch-size', '256', '--epochs', '1', '--device', 'cpu', '--output', 'run']
    done = torchrun(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('exported and verified') == 1
    assert {'config.yaml', 'summary.csv', 'teacher', 'checkpoint-00001.pt'} <= set(os.listdir(tmp_path / 'run'))
