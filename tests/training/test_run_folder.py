"""A run folder that somebody prepared or the disk damaged: nothing outside is written, nothing lost."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from sf_teacher import SFTeacherError, cli
from sf_teacher.training.checkpoint import DamagedCheckpoint, read_checkpoint
from sf_teacher.training.run_folder import RunFolder, checkpoints
from sf_teacher.training.settings import TeacherRun, TrainConfig
from sf_teacher.training.settings_file import read_yaml
from sf_teacher.validation import from_dict

from . import training_runs as runs


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of two epochs."""
    path = tmp_path_factory.mktemp('trained') / 'run'
    runs.train(path, 'plain', epochs=2)
    return path


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be damaged."""
    path = tmp_path / 'run'
    path.mkdir()
    for file in trained.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def resume(path):
    return runs.train(path, 'plain', epochs=2, resume=True)


@pytest.mark.parametrize('name', ['.lock', 'summary.csv', 'config.yaml', 'checkpoint-00002.pt', 'checkpoint-00009.pt'])
@pytest.mark.parametrize('exists', [True, False], ids=['to a file', 'to nowhere'])
def test_a_link_in_a_run_folder_is_refused_and_its_target_untouched(name, exists, run, tmp_path):
    target = tmp_path / 'precious'
    if exists:
        target.write_text('mine')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    with pytest.raises(SFTeacherError, match=rf'{name} is a link to .*precious, which no run leaves there: remove it'):
        resume(run)
    assert (target.read_text() == 'mine') if exists else not target.exists()


@pytest.mark.parametrize('name', ['.lock', 'config.yaml', 'checkpoint-00009.pt'])
def test_a_fifo_in_a_run_folder_does_not_hang(name, run):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(SFTeacherError, match=rf'{name} is no regular file'):
        resume(run)


@pytest.mark.curves
def test_temporary_names_cannot_be_foreseen(run, tmp_path):
    """The links that took earlier versions out of the folder."""
    target = tmp_path / 'precious'
    for name in ('.summary.csv.tmp', '.config.yaml.tmp', '.checkpoint-00002.pt.tmp', '.curves.png.tmp'):
        (run / name).symlink_to(target)
    resume(run)
    assert not target.exists() and (run / '.summary.csv.tmp').is_symlink()


def test_what_others_have_left_in_the_folder_stays(run):
    names = ['.bashrc.old', '.notes.tmp', '.teacher.sf_teacher-short.tmp', '.mine.sf_teacher-0123456789abcdef.tmp',
             'checkpoint-best.pt', 'checkpoint-1.pt', 'checkpoint-zzzzz.pt', 'teacher.old']
    for name in names:
        (run / name).write_text('mine')
    (run / '.concurrent.tmp').mkdir()
    resume(run)
    assert [(run / name).read_text() for name in names] == ['mine'] * len(names) and (run / '.concurrent.tmp').exists()


def test_a_new_run_removes_nothing(tmp_path):
    (tmp_path / 'run').mkdir()
    mark = tmp_path / 'run' / '.teacher.sf_teacher-0123456789abcdef.tmp'     # of an export that is going on
    mark.mkdir()
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    assert mark.exists()


def test_checkpoints_are_ordered_by_number(tmp_path):
    for epoch in (99998, 99999, 100000):
        (tmp_path / f'checkpoint-{epoch:05d}.pt').write_text('')
    assert [p.name for p in checkpoints(tmp_path)] == [f'checkpoint-{n}.pt' for n in (100000, 99999, 99998)]


def edited(run, **values):
    path = run / 'checkpoint-00002.pt'
    torch.save(torch.load(path, weights_only=True) | values, path)


ROWS = [{'epoch': 0, 'train_loss': 1.}, {'epoch': 1, 'train_loss': 1.}]
EDITED = [
    (dict(rows=[{**ROWS[0], 'eval_x': '=cmd|evil'}, ROWS[1]]), r"rows\[0\]\['eval_x'\] is no number but '=cmd"),
    (dict(rows=[{**ROWS[0], 'train_a\n* * * * * evil': 1.}, ROWS[1]]), r'rows\[0\] has a column'),
    (dict(rows=[{**ROWS[0], '=1+1': 1.}, ROWS[1]]), r'rows\[0\] has a column'),
    (dict(rows=[{**ROWS[0], 3: 1.}, ROWS[1]]), r'rows\[0\] has a column 3'),
    (dict(rows=[ROWS[0], {**ROWS[1], 'lr': torch.ones(2)}]), r"rows\[1\]\['lr'\] is no number"),
    (dict(rows=[ROWS[0], {**ROWS[1], 'lr': True}]), r"rows\[1\]\['lr'\] is no number"),
    (dict(rows=ROWS[::-1]), r'rows\[0\] is of epoch 1'),
    (dict(rows=ROWS[:1]), 'rows are not the 2 rows'),
    (dict(rows='text'), 'rows are not the 2 rows'),
    (dict(epoch=-1), 'epoch=-1 is no number of epochs'),
    (dict(epoch='2'), "epoch='2' is no number"),
    (dict(best={'epoch': 0, 'eval_top1': 'high'}), 'best='),
    (dict(best=[1]), r'best=\[1\]'),
    (dict(state_dict={'a': 1}), 'state_dict is no mapping from names to tensors'),
    (dict(rng='seed'), 'rng are no states'),
]


@pytest.mark.parametrize(('values', 'message'), EDITED, ids=[f'{next(iter(v))}-{i}' for i, (v, _) in enumerate(EDITED)])
def test_an_edited_checkpoint_is_refused_before_anything_is_written(values, message, run):
    edited(run, **values)
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    with pytest.raises(SFTeacherError, match=f'checkpoint-00002.pt holds what no run writes.*{message}.*Remove it'):
        resume(run)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


@pytest.mark.parametrize('values', [
    dict(rng=[{'torch': torch.zeros(3, dtype=torch.uint8)}]), dict(rng=[{}]), dict(optimizer={}), dict(optimizer=[1]),
    dict(optimizer={'state': {}, 'param_groups': [{'lr': 'high', 'params': [0]}]}), dict(state_dict={}),
    dict(state_dict_ema={'a': torch.ones(1)})], ids=lambda v: next(iter(v)))
def test_a_checkpoint_with_parts_of_another_is_refused(values, run):
    edited(run, **values)
    with pytest.raises(SFTeacherError, match='is that of another model or optimizer: '):
        resume(run)


def test_another_kind_of_learning_rate_is_noticed(run):
    state = torch.load(run / 'checkpoint-00002.pt', weights_only=True)
    state['optimizer']['param_groups'][0]['lr'] = 'high'
    edited(run, optimizer=state['optimizer'])
    with pytest.raises(SFTeacherError, match='the settings of its optimizer are of other kinds'):
        resume(run)


def flip(path, at, bit=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_one_flipped_bit_in_a_momentum_buffer_gives_way_to_the_checkpoint_before(run, trained, caplog):
    path = run / 'checkpoint-00002.pt'
    state = torch.load(path, weights_only=True)
    momentum = max((b for s in state['optimizer']['state'].values() for b in s.values()
                    if isinstance(b, torch.Tensor)), key=lambda b: b.numel())
    flip(path, path.read_bytes().index(momentum.numpy().tobytes()) + 41, 6)
    assert runs.differences(torch.load(path, weights_only=True), state), 'torch itself notices'
    resume(run)
    assert 'checkpoint-00002.pt is damaged or truncated' in caplog.text and 'the one before it' in caplog.text
    assert runs.differences(runs.final_state(run), runs.final_state(trained)) == []


def test_no_flipped_bit_anywhere_goes_unnoticed(tmp_path):
    state = {'epoch': 0, 'state_dict': {'w': torch.randn(64)}, 'optimizer': {}, 'rng': [{}], 'rows': [], 'best': None}
    torch.save(state, tmp_path / 'x.pt')
    data = (tmp_path / 'x.pt').read_bytes()
    assert runs.differences(read_checkpoint(tmp_path / 'x.pt'), state) == []
    noticed = 0
    for at in range(0, len(data)):
        (tmp_path / 'x.pt').write_bytes(data)
        flip(tmp_path / 'x.pt', at, random.Random(at).randrange(8))
        try:
            found = read_checkpoint(tmp_path / 'x.pt')
        except SFTeacherError:
            noticed += 1
        else:
            assert runs.differences(found, state) == [], at     # padding
    assert noticed > len(data) // 3


def test_a_record_that_is_marked_as_a_folder_is_noticed(tmp_path):
    """Its checksum fits, and torch would return memory as it finds it."""
    state = {'epoch': 0, 'state_dict': {'w': torch.randn(64)}, 'optimizer': {}, 'rng': [{}], 'rows': [], 'best': None}
    torch.save(state, tmp_path / 'x.pt')
    data = (tmp_path / 'x.pt').read_bytes()
    entry = data.rindex(b'PK\x01\x02', 0, data.rindex(b'archive/data/0' if b'archive/data/0' in data else b'data/0'))
    flip(tmp_path / 'x.pt', entry + 38, 4)
    with pytest.raises(DamagedCheckpoint, match='its checksum does not fit'):
        read_checkpoint(tmp_path / 'x.pt')


def hold(path, started):
    """A run with two loading processes that outlive it."""
    import multiprocessing

    folder = RunFolder(path, TrainConfig(output=str(path)), resume=True)
    workers = [multiprocessing.get_context('fork').Process(target=time.sleep, args=(20,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    started.put([w.pid for w in workers])
    time.sleep(30)
    folder.close()


def test_a_run_resumes_right_after_a_kill_though_its_loading_processes_live(tmp_path):
    queue = runs.processes.Queue()
    process = runs.run(hold, tmp_path / 'run', queue)
    workers = queue.get(timeout=60)
    config = TrainConfig(output=str(tmp_path / 'run'))
    with pytest.raises(SFTeacherError, match='another process is training into'):
        RunFolder(tmp_path / 'run', config, resume=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    try:
        assert all(os.path.exists(f'/proc/{pid}') for pid in workers)
        RunFolder(tmp_path / 'run', config, resume=True).close()
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)


def test_kill_and_resume_of_the_real_command_with_loading_processes(tmp_path):
    runs.folder(tmp_path / 'data', count=8)
    args = ['train', 'test_resnet', '--method', 'none', '--data', str(tmp_path / 'data'), '--input-size', '3', '16',
            '16', '--batch-size', '4', '--epochs', '400', '--device', 'cpu', '--workers', '2', '--output',
            str(tmp_path / 'run')]
    process = subprocess.Popen([sys.executable, '-m', 'sf_teacher', *args], stderr=subprocess.DEVNULL)
    while not (tmp_path / 'run/checkpoint-00001.pt').exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    folder = RunFolder(tmp_path / 'run', TrainConfig(), resume=True, primary=False)
    assert folder.load()['epoch'] >= 1
    config = from_dict(TeacherRun, read_yaml(tmp_path / 'run/config.yaml'), 'config')
    RunFolder(tmp_path / 'run', config, resume=True).close()        # at once


def test_failed_settings_leave_no_folder_behind(tmp_path):
    with pytest.raises(SFTeacherError, match='timm has no optimizer'):
        runs.train(tmp_path / 'a/b/run', 'plain', epochs=1, opt='sdg')
    assert not (tmp_path / 'a').exists()
    (tmp_path / 'mine').mkdir()
    with pytest.raises(SFTeacherError, match='timm has no optimizer'):
        runs.train(tmp_path / 'mine', 'plain', epochs=1, opt='sdg')
    assert (tmp_path / 'mine').exists()


DIGITS = ['--data', 'digits', '--input-size', '3', '16', '16', '--batch-size', '256', '--epochs', '1',
          '--device', 'cpu']


def test_an_unrelated_export_in_the_place_of_ours_is_refused_before_the_first_step(tmp_path, capsys):
    train = ['train', 'test_resnet', '--method', 'none', *DIGITS, '--output', str(tmp_path / 'run')]
    student = ['distill', '--student', 'test_resnet', *DIGITS, '--output', str(tmp_path / 'run')]
    for command, name in ((train, 'teacher'), (student, 'student')):
        place = tmp_path / 'run' / name
        place.mkdir(parents=True)
        (place / 'probe.safetensors').write_text('of another')
        (place / 'config.json').write_text('{}')
        assert cli.main(command) == 1
        assert f'{name} holds something that is not of this run' in capsys.readouterr().err
        for child in place.iterdir():
            child.unlink()
        place.rmdir()
        place.write_text('a file')
        assert cli.main(command) == 1
        assert f'the {name} could not be exported after training: ' in capsys.readouterr().err
        assert place.read_text() == 'a file' and os.listdir(tmp_path / 'run') == [name]
        place.unlink()


@pytest.mark.slow
def test_a_resumed_run_replaces_its_own_export_only(tmp_path, capsys):
    train = ['train', 'test_resnet', '--method', 'none', *DIGITS, '--output', str(tmp_path / 'run')]
    assert cli.main(train) == 0
    again = ['train', '--config', str(tmp_path / 'run/config.yaml'), '--resume']
    assert cli.main(again) == 0
    config = tmp_path / 'run/teacher/config.json'
    content = json.loads(config.read_text())
    content['sf_teacher']['seed'] = 7
    config.write_text(json.dumps(content))
    capsys.readouterr()
    assert cli.main(again) == 1
    assert 'is not an earlier export of this run (another seed)' in capsys.readouterr().err
    assert cli.main([*again, '--lr', '0.3']) == 1
    assert 'was started with other settings (lr: 0.05 then, 0.3 now)' in capsys.readouterr().err
    assert cli.main(train) == 1
    assert 'run holds a run already: continue it with --resume, or choose another --output' in capsys.readouterr().err


def test_a_run_whose_settings_are_gone_is_not_resumed(run):
    (run / 'config.yaml').unlink()
    before = sorted(p.name for p in run.iterdir())
    with pytest.raises(SFTeacherError, match=r'config.yaml is missing, so the settings .* are not known: put it back'):
        resume(run)
    assert sorted(p.name for p in run.iterdir()) == before


def test_a_run_of_an_earlier_version_resumes_without_the_settings_that_came_later(run):
    path = run / 'config.yaml'
    known = path.read_text()
    assert '\nclip_mode: ' in known
    path.write_text(''.join(line for line in known.splitlines(keepends=True) if not line.startswith('clip_mode: ')))
    assert len(resume(run)) == 2
