"""Ctrl-C and SIGTERM as terminals and schedulers send them: to the whole process group, twice, at any moment."""
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from torch import nn

from sf_teacher import SFTeacherError, cli, training
from sf_teacher.files import undisturbed
from sf_teacher.training.interruption import Guard, World
from sf_teacher.training.signals import Interrupted, Stop, signals

from . import training_runs as runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return runs.folder(tmp_path_factory.mktemp('data'), count=8)


@pytest.fixture(scope='module')
def slow_to_evaluate(tmp_path_factory):
    """Few images to train on, many to validate on."""
    root = runs.folder(tmp_path_factory.mktemp('data'), count=8)
    for path in sorted((root / 'validation').rglob('*.png')):
        for i in range(100):
            os.link(path, path.with_name(f'{path.stem}-{i}.png'))
    return root


def test_a_signal_that_comes_while_processes_agree_is_not_forgotten(monkeypatch):
    stop, world = Stop(), World(0, 2)

    def gathered(value):
        stop.signum = signal.SIGTERM
        return [value, 0]       # nobody knew of one
    monkeypatch.setattr(world, 'gathered', gathered)
    guard = Guard(world, stop, '', nn.Identity())
    guard.check_between()       # the others go on, so this one does
    monkeypatch.undo()
    monkeypatch.setattr(world, 'gathered', lambda value: [0, value])
    with pytest.raises(Interrupted, match='stopped by SIGTERM'):
        guard.check_between()


def started(data, output, epochs):
    """A run with loading processes, in a process group of its own."""
    args = ['train', 'test_resnet', '--method', 'none', '--data', str(data), '--input-size', '3', '16', '16',
            '--batch-size', '8', '--validation-batch-size', '1', '--epochs', str(epochs), '--device', 'cpu',
            '--workers', '2', '--output', str(output)]
    return subprocess.Popen([sys.executable, '-m', 'sf_teacher', *args], stderr=subprocess.PIPE, text=True,
                            stdout=subprocess.PIPE, start_new_session=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def stop(process, signum, times):
    """Send it to the group; what was said, and after how many seconds it was gone."""
    began = time.monotonic()
    for i in range(times):
        time.sleep(0.2 * bool(i))
        os.killpg(process.pid, signum)
    err = process.communicate(timeout=60)[1]
    return err, time.monotonic() - began


def check(process, err, seconds, signum, output):
    assert process.returncode == 128 + signum, err
    assert f'stopped by {signal.Signals(signum).name}' in err
    assert 'Traceback' not in err and 'Exception ignored' not in err and 'Error' not in err, err
    assert seconds < 15     # of a machine that does much else
    left = [p.name for p in output.rglob('.*') if p.name != '.lock'] if output.exists() else []
    assert not left and not (output / 'teacher').exists()


def wait(process, path):
    while not list(path.parent.glob(path.name)) and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1]


@pytest.mark.slow
@pytest.mark.parametrize(('moment', 'signum', 'times'), [
    ('start', signal.SIGINT, 2), ('imports', signal.SIGTERM, 1), ('training', signal.SIGTERM, 2),
    ('training', signal.SIGINT, 1), ('last evaluation', signal.SIGTERM, 1), ('last evaluation', signal.SIGINT, 2),
    ('export', signal.SIGINT, 2), ('export', signal.SIGTERM, 1)])
def test_the_whole_group_is_stopped(moment, signum, times, data, slow_to_evaluate, tmp_path):
    output = tmp_path / 'run'
    images = slow_to_evaluate if moment == 'last evaluation' else data
    process = started(images, output, 1 if moment in ('last evaluation', 'export') else 1000)
    if moment == 'start':
        time.sleep(1.)
    elif moment == 'imports':
        time.sleep(2.5)
    elif moment == 'export':
        wait(process, output / '.teacher.sf_teacher-*')
    else:
        wait(process, output / ('checkpoint-00000.pt' if moment == 'last evaluation' else 'checkpoint-00001.pt'))
        time.sleep(1.)
    err, seconds = stop(process, signum, times)
    check(process, err, seconds, signum, output)
    if moment in ('training', 'export'):
        assert 'Continue with' in err
    if moment == 'export':
        assert 'before the teacher was exported; 1 complete epochs are saved' in err
        assert cli.main(['train', '--config', str(output / 'config.yaml'), '--resume']) == 0
        assert (output / 'teacher' / 'config.json').exists()


@pytest.mark.parametrize('where', ['training', 'evaluation'])
def test_a_slow_step_is_not_waited_for(where, tmp_path):
    train, evaluation = runs.loaders()

    class Slow:
        times = 0

        def __len__(self):
            return 3

        def __iter__(self):
            self.times += 1
            if self.times == 1 and where == 'evaluation':       # looked at beforehand
                yield next(iter(evaluation))
            for batch in train:
                signal.raise_signal(signal.SIGTERM)
                for _ in range(60):
                    time.sleep(0.5)
                yield batch

    pair = (Slow(), evaluation) if where == 'training' else (train, Slow())
    began = time.monotonic()
    with pytest.raises(Interrupted, match='stopped by SIGTERM in epoch 1; 0 complete epochs are saved'):
        training.fit(runs.task('plain'), *pair, runs.settings(tmp_path / 'run'))
    assert 1.5 < time.monotonic() - began < 10      # a quick step may end by itself


def test_after_the_block_everything_is_as_before():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    with signals() as stop:
        assert isinstance(signal.getsignal(signal.SIGINT), Stop)
        with signals() as inner:
            assert inner is stop
        with pytest.raises(Interrupted, match='stopped by SIGINT before the first step'):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)      # while tidying up: nothing
        stop._raised -= 5.
        with pytest.raises(Interrupted):        # but whoever lost the first one hears the next
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)] == before


def test_a_signal_waits_for_the_end_of_what_must_not_be_disturbed():
    done = []
    with signals(), pytest.raises(Interrupted), undisturbed():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    before = signal.getsignal(signal.SIGINT)

    def elsewhere():
        with undisturbed():
            done.append(2)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [1, 2] and signal.getsignal(signal.SIGINT) is before


def test_a_loading_process_that_dies_alone_is_an_error(tmp_path):
    class Loader:
        def __len__(self):
            return 1

        def __iter__(self):
            raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')

    with pytest.raises(SFTeacherError,
                       match=r'a loading process died .*Killed.*short of memory, give fewer workers'):
        training.fit(runs.task('plain'), Loader(), None, runs.settings(epochs=1))
