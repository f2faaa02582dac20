"""What is seen of a run: its header, lines or a bar, averages, trackers, curves."""
import io
import logging
import sys
import types

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from sf_teacher import SFTeacherError, cli
from sf_teacher.analysis.inspection import inspect
from sf_teacher.training import fit
from sf_teacher.training.progress import Average, Progress
from sf_teacher.training.settings_file import read_yaml

from ..helpers import on_two_ranks
from . import training_runs as runs


@pytest.mark.parametrize('asked', [dict(tensorboard=True), dict(log_with='tensorboard')], ids=str)
def test_tensorboard_files_are_written(asked, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = fit(runs.task('plain'), *runs.loaders(), runs.settings(tmp_path / 'run', epochs=2, **asked))
    assert list((tmp_path / 'run').glob('events.out.tfevents.*'))
    events = EventAccumulator(str(tmp_path / 'run')).Reload()
    assert [e.step for e in events.Scalars('train/loss')] == [0, 1]
    assert [e.value for e in events.Scalars('eval/top1')] == pytest.approx([row['eval_top1'] for row in rows])


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(SFTeacherError, match="log_with='wandb' needs wandb: pip install wandb accelerate, or leave it"):
        fit(runs.task('plain'), *runs.loaders(), runs.settings(tmp_path / 'run', epochs=1, log_with='wandb'))
    assert not (tmp_path / 'run').exists() or not list((tmp_path / 'run').glob('*.yaml'))
    fit(runs.task('plain'), *runs.loaders(), runs.settings(tmp_path / 'run', epochs=1))      # nothing is in the way


def test_a_tracker_is_finished_when_a_run_fails(tmp_path, monkeypatch):
    finished = []
    tracker = types.SimpleNamespace(log=lambda *args, **kwargs: None, finish=lambda: finished.append(True))
    monkeypatch.setattr('sf_teacher.training.loop.start_tracker', lambda *args: tracker)

    def fails(row):
        raise KeyError('mine')
    with pytest.raises(KeyError, match='mine'):
        fit(runs.task('plain'), *runs.loaders(), runs.settings(tmp_path / 'run', epochs=1), fails)
    assert finished == [True]


def test_progress_is_plain_lines_outside_of_a_terminal_and_a_bar_in_one(capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    plain = Progress(3, 10, 5)
    assert [u for u in range(1, 11) if plain.due(u)] == [5, 10]
    plain.began -= 10.
    plain.show(0, 5, 1.5, 0.1, 100.)
    assert capsys.readouterr().err == 'epoch 1/3  5/10  loss 1.5  lr 0.1  100 images/s  0:00:50 left\n'
    plain._shown -= 31.     # nothing was said for so long
    assert plain.due(6)
    monkeypatch.setenv('TERM', 'xterm')
    bar = Progress(3, 10, 5, Terminal())
    bar.show(0, 5, 1.5, 0.1, 100.)
    bar.line('a line [that stays]')
    bar.close()
    text = bar.stream.getvalue()
    assert 'epoch 1/3  5/10  loss 1.5' in text and 'a line [that stays]' in text


@pytest.mark.curves
def test_a_header_says_what_will_be_done_and_curves_what_was(tmp_path, caplog):
    data = runs.folder(tmp_path / 'data')
    caplog.set_level(logging.INFO)
    args = ['train', 'test_resnet', '--student', 'test_resnet', '--data', str(data), '--input-size', '3', '16', '16',
            '--batch-size', '8', '--epochs', '2', '--device', 'cpu', '--in-memory', '--output', str(tmp_path / 'run')]
    assert cli.main(args) == 0
    for text in ('teacher:  test_resnet, 0.', 'students: test_resnet; branches', 'branches: at layer',
                 'device:   cpu with 1 threads, images 3x16x16', 'data:     train: 24 images of 4 classes (class0 6',
                 'validation: 24 images', 'steps:    2 epochs of 3 steps of 8 images, 6 in all'):
        assert text in caplog.text
    known = inspect('test_resnet', ['test_resnet'], num_classes=4, input_size=(3, 16, 16))
    ratio = known['step']['gflops_per_image'] / known['plain_step']['gflops_per_image']
    assert f'cost:     a step takes about {ratio:.2f} x a plain step of the teacher (FLOPs)' in caplog.text
    with Image.open(tmp_path / 'run/curves.png') as picture:
        assert picture.width > 900      # three panels
    assert read_yaml(tmp_path / 'run/config.yaml')['threads'] == 1


@pytest.mark.curves
def test_without_matplotlib_that_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    caplog.set_level(logging.INFO)
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    assert 'curves.png is drawn where matplotlib is installed' in caplog.text
    assert not (tmp_path / 'run/curves.png').exists()


def test_averages_are_weighted_and_take_names_as_they_come():
    average = Average()
    average.update({'a': torch.tensor(1.), 'b': torch.tensor(2.)}, 3)
    average.update({'a': torch.tensor(5.)}, 1)
    assert average.compute() == {'a': 2., 'b': 2.}


def averages_of_two_processes():
    average = Average()
    average.update({'a': torch.tensor(1. + 4. * dist.get_rank())}, 3 - 2 * dist.get_rank())
    assert average.compute(distributed=True) == {'a': 2.}


def test_averages_over_processes_count_what_each_has_seen(tmp_path):
    on_two_ranks(tmp_path, averages_of_two_processes)


def test_a_tracker_without_a_place_is_refused():
    with pytest.raises(SFTeacherError, match="log_with='tensorboard' has no effect without output: give output"):
        fit(runs.task('plain'), *runs.loaders(), runs.settings('', log_with='tensorboard'))
