"""The examples run as they stand."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import timm
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / 'examples'


def run(script, *args, cwd):
    """Run an example elsewhere; returns what it printed."""
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, str(EXAMPLES / script), *args], cwd=cwd, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, f'{script}:\n{done.stdout}\n{done.stderr}'
    return done


def same_logits_as_exported(folder):
    """Plain timm gives the teacher whose logits were stored when it was exported."""
    teacher = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    with safetensors.safe_open(folder / 'probe.safetensors', 'pt') as probe, torch.no_grad():
        torch.testing.assert_close(teacher(probe.get_tensor('inputs')), probe.get_tensor('logits'))
    return teacher


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp('quickstart')
    return folder / 'out', run('quickstart.py', '--fast', '--out', str(folder / 'out'), cwd=folder)


def test_quickstart_prints_a_row_for_each_way_to_train_the_student(quickstart):
    _, done = quickstart
    number = r'\d+\.\d+ ± \d+\.\d+'
    assert re.search(rf'^student alone +- +{number} +- +-$', done.stdout, re.M)
    for name in ('standard teacher', 'student-friendly (SFTN)'):
        assert re.search(rf'^{re.escape(name)} +{number} +{number} +{number} +{number}$', done.stdout, re.M)
    assert 'headroom, standard teacher over student alone' in done.stdout
    assert 'logits equal bit for bit' in done.stdout
    assert '--fast: these numbers mean nothing' in done.stdout


def test_quickstart_shows_progress_in_plain_lines_without_a_terminal(quickstart):
    _, done = quickstart
    assert 'seed 0: student of the standard teacher\n' in done.stderr
    assert '\x1b' not in done.stderr


def test_quickstart_leaves_a_figure_and_teachers_that_plain_timm_loads(quickstart):
    out, _ = quickstart
    assert (out / 'quickstart.png').read_bytes().startswith(b'\x89PNG')
    standard, friendly = (same_logits_as_exported(out / f'{kind}-seed0') for kind in ('standard', 'sftn'))
    assert list(standard.pretrained_cfg['mean']) == list(friendly.pretrained_cfg['mean']) == [0.5, 0.5, 0.5]
    assert standard.num_classes == 10
    assert 'SFTN' in (out / 'sftn-seed0' / 'README.md').read_text()


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import quickstart
    return quickstart


@pytest.mark.parametrize('differences, expected', [
    ([1., 1.2, 0.9], ': gain'),
    ([-1., -1.2, -0.9], ': loss'),
    ([1., -1.2, 0.9], ': no gain: the interval includes zero'),
    ([1.], 'one seed says nothing'),
])
def test_quickstart_says_gain_only_where_the_interval_excludes_zero(module, differences, expected):
    assert expected in module.verdict('student', differences)


def test_quickstart_interval_is_students_t(module):
    mean, low, high = module.interval([0., 1., 2.])       # 4.3027 * 1 / sqrt(3)
    assert (mean, low, high) == pytest.approx((1., -1.4841, 3.4841), abs=1e-4)


def test_quickstart_compares_like_with_like(module):
    """Same initial weights for both teachers and for all students of a seed; another seed gives others."""
    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

    plain, friendly = (module.trained(module.teacher_task(3, method)) for method in (None, module.METHOD))
    assert same(plain, friendly)
    assert not same(plain, module.trained(module.teacher_task(4, None)))
    assert same(module.trained(module.student_task(3, None)), module.trained(module.student_task(3, plain)))


def test_quickstart_splits_do_not_overlap(module):
    train, validation, test = module.load()
    assert [len(part.y) for part in (train, validation, test)] == [module.TRAIN, module.VALIDATION, 1797 - 700]
    assert train.x.shape[1:] == test.x.shape[1:] == (3, module.SIZE, module.SIZE)


def test_train_teacher_trains_exports_and_reloads(tmp_path):
    done = run('train_teacher.py', '--epochs', '1', '--out', 'out', cwd=tmp_path)
    measured = re.search(r'epoch 0: top-1 (\d+\.\d+) %', done.stdout)[1]
    assert f'exported; plain timm measures {measured} %' in done.stdout
    assert "'branch_kl'" in done.stdout
    same_logits_as_exported(tmp_path / 'out' / 'teacher')


def test_train_teacher_is_short_enough_to_copy():
    assert len((EXAMPLES / 'train_teacher.py').read_text().splitlines()) <= 120
