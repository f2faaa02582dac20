"""The examples run as they stand."""
import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import safetensors
import timm
import torch

from sf_teacher import cli

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


def test_quickstart_prints_what_it_measured_and_no_verdict(quickstart):
    _, done = quickstart
    number = r'\d+\.\d+ ± \d+\.\d+'
    for name in ('standard teacher', 'student-friendly (SFTN)'):
        assert re.search(rf'^{re.escape(name)} +{number} +{number} +{number}$', done.stdout, re.M)
    assert '50 labelled images for the teachers, 1050 without labels for the students, 360 test images' in done.stdout
    assert 'equal bit for bit' in done.stdout and '--fast: these numbers mean nothing' in done.stdout
    assert not re.search(r'\b(gain|loss)\b', done.stdout)


def test_quickstart_shows_progress_in_plain_lines_without_a_terminal(quickstart):
    _, done = quickstart
    lines = [line for line in done.stderr.splitlines() if ' seed 0: ' in line]
    assert [line.split()[0] for line in lines] == ['0', '25', '50', '75']       # per cent
    assert re.search(r'50 %  seed 0: student-friendly \(SFTN\)  0:\d\d:\d\d left', done.stderr)
    assert '\x1b' not in done.stderr


def test_quickstart_leaves_a_figure_and_teachers_that_plain_timm_loads(quickstart):
    out, done = quickstart
    assert (out / 'quickstart.png').read_bytes().startswith(b'\x89PNG')
    assert f'figure:   {out}/quickstart.png\nteachers: {out}/standard and sftn, of seed 0\n' in done.stdout
    standard, friendly = (same_logits_as_exported(out / kind) for kind in ('standard', 'sftn'))
    assert list(standard.pretrained_cfg['mean']) == list(friendly.pretrained_cfg['mean']) == [0.5, 0.5, 0.5]
    assert standard.num_classes == 10
    assert 'SFTN' in (out / 'sftn' / 'README.md').read_text()


def test_quickstart_ends_with_a_command_that_works(quickstart, tmp_path, monkeypatch):
    _, done = quickstart
    python, dash_m, module, *arguments = shlex.split(done.stdout.splitlines()[-1].removeprefix('try next: '))
    assert [python, dash_m, module, arguments[0]] == [sys.executable, '-m', 'sf_teacher', 'train']
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, '--dry-run']) == 0


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import quickstart
    return quickstart


def test_quickstart_differences_are_paired_over_seeds(module):
    rows = [[{'teacher': t, 'student': s, 'kl': 0.1} for t, s in pairs]
            for pairs in (((80., 70.), (82., 60.), (84., 50.)), ((80., 70.), (83., 61.), (86., 52.)))]
    text = module.table(dict(zip(module.ARMS, rows, strict=True)))     # 1 -+ 4.3027 * 1 / sqrt(3)
    for what in ('teacher', 'student'):
        assert f'{what}, student-friendly minus standard: +1.00 points, 95 % interval -1.48 to +3.48, paired' in text
    assert 'minus standard' not in module.table({name: rows[0][:1] for name in module.ARMS})    # one seed


def test_quickstart_compares_like_with_like(module):
    """Same initial weights for both teachers and for all students of a seed; another seed gives others."""
    def same(a, b):
        a, b = (task.get_eval_model().state_dict().values() for task in (a, b))
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    plain, friendly = (module.teacher_task(3, method) for method, _ in module.ARMS.values())
    assert same(plain, friendly)
    assert not same(plain, module.teacher_task(4, None))
    students = [module.student_task(3, task.get_eval_model(), 2.) for task in (plain, friendly)]
    assert same(*students) and students[0].task_loss_weight == 0.       # no labels


def test_quickstart_images_without_labels_have_none_and_nothing_overlaps(module):
    digits = module.Digits()
    numbers = torch.arange(len(digits.pool[1]))
    assert [len(part[1]) for part in (digits.pool, digits.validation, digits.test)] == [1100, module.VALIDATION, 360]
    digits.pool = numbers, digits.pool[1]       # instead of the images
    (few, labels), (others, targets) = digits.divided(0)
    assert labels.bincount().tolist() == [module.LABELS] * 10 and not targets.any()
    assert torch.equal(torch.cat([few, others]).sort().values, numbers)
    assert not torch.equal(few, digits.divided(1)[0][0])


def test_the_sweep_took_no_seed_of_the_quickstart_and_chose_the_temperatures(module):
    rows = [json.loads(line) for line in (EXAMPLES / 'sweeps' / 'digits.jsonl').read_text().splitlines()]
    assert min(row['seed'] for row in rows) >= 100
    pair = rows[0]['pair']
    for arm, (_, temperature) in zip(('standard', 'SFTN'), module.ARMS.values(), strict=True):
        of_arm = [row for row in rows if (row['pair'], row['arm']) == (pair, arm)]
        means = {t: fmean(row['student'] for row in of_arm if row['temperature'] == t)
                 for t in {row['temperature'] for row in of_arm}}
        assert len(means) > 1 and max(means, key=means.get) == temperature


def test_the_page_shows_the_whole_sweep(module, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / 'sweeps'))
    sweep = importlib.import_module('digits')
    rows = [json.loads(line) for line in (EXAMPLES / 'sweeps' / 'digits.jsonl').read_text().splitlines()]
    planned = set(itertools.product(sweep.PAIRS, sweep.ARMS, sweep.SEEDS, sweep.TEMPERATURES))
    assert {(r['pair'], r['arm'], r['seed'], r['temperature']) for r in rows} == planned and len(rows) == len(planned)
    assert f'```text\n{sweep.summary(rows)}\n```' in (EXAMPLES.parent / 'docs/results.md').read_text(encoding='utf-8')


@pytest.mark.slow
def test_train_teacher_trains_exports_and_reloads(tmp_path):
    done = run('train_teacher.py', '--epochs', '1', '--out', 'out', cwd=tmp_path)
    measured = re.search(r'epoch 0: top-1 (\d+\.\d+) %', done.stdout)[1]
    assert f'exported; plain timm measures {measured} %' in done.stdout
    assert "'branch_kl'" in done.stdout
    same_logits_as_exported(tmp_path / 'out' / 'teacher')


def test_train_teacher_is_short_enough_to_copy():
    assert len((EXAMPLES / 'train_teacher.py').read_text().splitlines()) <= 120
