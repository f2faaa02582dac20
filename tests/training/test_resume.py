import os
import random
import resource
import signal
import time
import zipfile

import pytest
import torch

from sf_teacher import SFTeacherError, training
from sf_teacher.training import loop
from sf_teacher.training import run_folder as checkpoint
from sf_teacher.training.checkpoint import read_checkpoint
from sf_teacher.training.run_folder import RunFolder, checkpoints
from sf_teacher.training.settings_file import read_yaml

from . import training_runs as runs


def killed(target, *args, **kwargs):
    """Run a process that is to die of SIGKILL."""
    process = runs.run(target, *args, **kwargs)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    return process


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """Four epochs without an interruption, for each kind of task."""
    made = {}

    def get(kind, **kwargs):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            process = runs.run(runs.train, made[kind] / 'run', kind, **kwargs)
            process.join(120)
            assert process.exitcode == 0
        return made[kind] / 'run'
    return get


@pytest.mark.parametrize('kind', [*runs.TEACHER_METHODS, 'plain', 'distill'])
def test_killed_after_two_epochs_and_resumed_is_bit_for_bit_the_straight_run(kind, straight, tmp_path):
    output = tmp_path / 'run'
    killed(runs.train, output, kind, die_after=2)
    assert len(runs.summary(output)) == 3
    process = runs.run(runs.train, output, kind, resume=True)
    process.join(120)
    assert process.exitcode == 0
    state = runs.final_state(output)
    assert {'state_dict', 'state_dict_ema', 'optimizer', 'rng', 'best', 'rows'} <= state.keys()
    assert runs.differences(state, runs.final_state(straight(kind))) == []
    assert runs.summary(output) == runs.summary(straight(kind)) and len(runs.summary(output)) == 5


def test_resumes_bit_for_bit_with_loading_processes_and_pillow_augmentation(tmp_path):
    data = str(runs.folder(tmp_path / 'data'))
    kwargs = dict(kind='plain', data=data, epochs=3, opt='adamw', sched_on_updates=True, clip_grad=1., lr=1e-3)
    killed(runs.train, tmp_path / 'b', die_after=1, **kwargs)
    for output, resume in ((tmp_path / 'a', False), (tmp_path / 'b', True)):
        process = runs.run(runs.train, output, **kwargs, resume=resume)
        process.join(120)
        assert process.exitcode == 0
    assert runs.differences(runs.final_state(tmp_path / 'a'), runs.final_state(tmp_path / 'b')) == []


@pytest.mark.parametrize('event', [-1, -2, -3, *sorted(random.Random(6).sample(range(1, 24), 6))])
def test_killed_at_any_moment_even_in_mid_write_it_resumes_to_the_same_end(event, straight, tmp_path):
    output = tmp_path / 'run'
    killed(runs.train_and_die, event, output, kind='plain')
    for path in output.glob('checkpoint-*.pt'):
        read_checkpoint(path)       # whatever carries the name of a checkpoint is complete
    process = runs.run(runs.train, output, 'plain', resume=True)
    process.join(120)
    assert process.exitcode == 0
    assert runs.differences(runs.final_state(output), runs.final_state(straight('plain'))) == []
    assert not list(output.glob('.*.tmp'))


@pytest.mark.parametrize('seed', range(3))
def test_killed_from_outside_at_a_random_time_it_resumes_to_the_same_end(seed, straight, tmp_path):
    output = tmp_path / 'run'
    process = runs.run(runs.train, output, 'plain', wait_after=4)       # however fast the machine, it is still there
    while not (output / 'checkpoint-00000.pt').exists() and process.is_alive():
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0., 0.3))
    assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    process = runs.run(runs.train, output, 'plain', resume=True)
    process.join(120)
    assert process.exitcode == 0
    assert runs.differences(runs.final_state(output), runs.final_state(straight('plain'))) == []


def test_a_truncated_newest_checkpoint_gives_way_to_the_one_before(straight, tmp_path, caplog):
    output = tmp_path / 'run'
    runs.train(output, 'plain', epochs=2)
    newest, _ = checkpoints(output)
    newest.write_bytes(newest.read_bytes()[:-100])
    runs.train(output, 'plain', epochs=2, resume=True)
    assert 'checkpoint-00002.pt is damaged or truncated' in caplog.text
    read_checkpoint(newest)


def test_no_complete_checkpoint_is_an_error_and_nothing_is_lost(tmp_path):
    output = tmp_path / 'run'
    runs.train(output, 'plain', epochs=1)
    for path in output.glob('checkpoint-*.pt'):
        path.write_bytes(b'PK')
    before = sorted(p.name for p in output.iterdir())
    with pytest.raises(SFTeacherError, match=r'no checkpoint in .* is complete: start anew in another output'):
        runs.train(output, 'plain', epochs=1, resume=True)
    assert sorted(p.name for p in output.iterdir()) == before


def test_killed_while_it_exported(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    mark = '.teacher.sf_teacher-0123456789abcdef'       # as written_at_once leaves them
    for name in (f'{mark}.tmp', f'{mark}.old'):
        (tmp_path / 'run' / name).mkdir()
        (tmp_path / 'run' / name / 'config.json').write_text(name)
    assert len(runs.train(tmp_path / 'run', 'plain', epochs=1, resume=True)) == 1
    assert not list((tmp_path / 'run').glob('.teacher.*'))
    assert (tmp_path / 'run' / 'teacher' / 'config.json').read_text() == f'{mark}.old'     # the earlier one is back


def test_a_run_that_was_moved_resumes_and_its_settings_do_not_ask_to_resume(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    (tmp_path / 'run').rename(tmp_path / 'moved')
    assert len(runs.train(tmp_path / 'moved', 'plain', epochs=1, resume=True)) == 1
    assert read_yaml(tmp_path / 'moved/config.yaml')['resume'] is False


class Crafted:
    def __reduce__(self):
        return os.system, ('touch executed',)


def test_a_crafted_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / 'run'
    runs.train(output, 'plain', epochs=1)
    torch.save({'epoch': 1, 'state_dict': Crafted()}, output / 'checkpoint-00009.pt')
    with pytest.raises(SFTeacherError, match='was refused: it holds more than tensors and plain values'):
        runs.train(output, 'plain', epochs=1, resume=True)
    assert not (tmp_path / 'executed').exists()


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    torch.save({'state_dict': {}}, tmp_path / 'checkpoint-00001.pt')
    with pytest.raises(SFTeacherError, match='is not a checkpoint of sf_teacher'):
        read_checkpoint(tmp_path / 'checkpoint-00001.pt')


def test_a_checkpoint_whose_checksums_fit_and_that_ends_too_early(tmp_path):
    torch.save({'epoch': 1}, tmp_path / 'checkpoint-00001.pt')
    with zipfile.ZipFile(tmp_path / 'checkpoint-00001.pt') as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / 'checkpoint-00001.pt', 'w') as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data[:3] if name.endswith('data.pkl') else data)
    with pytest.raises(SFTeacherError, match=r'checkpoint-00001.pt (is damaged or truncated|was refused)'):
        read_checkpoint(tmp_path / 'checkpoint-00001.pt')


def test_full_disk_keeps_what_was_saved(tmp_path, monkeypatch):
    output = tmp_path / 'run'
    runs.train(output, 'plain', epochs=1)
    before = (output / 'checkpoint-00001.pt').read_bytes()

    def full(state, file):
        file.write(b'some of it')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoint.torch, 'save', full)
    with pytest.raises(SFTeacherError, match=r'cannot write .*No space left on device.*make room'):
        RunFolder(output, runs.settings(output, epochs=1), resume=True).save({}, 1)
    assert (output / 'checkpoint-00001.pt').read_bytes() == before and not list(output.glob('.*.tmp'))


def limited(output, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))     # a write beyond it fails as on a full disk
    try:
        runs.train(output, 'plain')
    except SFTeacherError as error:
        os._exit(7 if 'cannot write' in str(error) else 8)


def test_a_write_that_really_fails_leaves_no_half_file(tmp_path):
    process = runs.run(limited, tmp_path / 'run', 10 ** 6)
    process.join(60)
    assert process.exitcode == 7
    assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == ['.lock', 'config.yaml']


def test_full_disk_is_found_before_the_first_step(tmp_path, monkeypatch):
    def full(state, file):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoint.torch, 'save', full)
    monkeypatch.setattr(loop.Loop, '_epoch', lambda *args: pytest.fail('trained'))
    with pytest.raises(SFTeacherError, match='No space left on device'):
        runs.train(tmp_path / 'run', 'plain')


def test_a_moving_average_of_the_users_goes_on_where_it_was(tmp_path):
    def task():
        made = runs.task('plain')
        made.setup_ema(decay=0.9)
        return made

    class Stopped(Exception):
        pass

    def stop(row):
        if row['epoch'] == 1:
            raise Stopped
    config = {'epochs': 3, 'model_ema': False}
    straight, killed_one, resumed = task(), task(), task()
    training.fit(straight, *runs.loaders(), runs.settings(tmp_path / 'straight', **config))
    with pytest.raises(Stopped):
        training.fit(killed_one, *runs.loaders(), runs.settings(tmp_path / 'run', **config), stop)
    training.fit(resumed, *runs.loaders(), runs.settings(tmp_path / 'run', resume=True, **config))
    for mine, theirs in zip(resumed.trainable_module_ema.state_dict().values(),
                            straight.trainable_module_ema.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
