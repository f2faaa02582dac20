"""The runner: each run a file, and none lost or changed by a kill."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import timm
import torch
import yaml

from ...training.training_runs import loaders
from .tiny_run import BY_NAME, FOLDER, arguments, results_of, run, start


@pytest.fixture(scope='module')
def finished(tiny):
    done = subprocess.run([sys.executable, str(FOLDER / 'run.py'), *arguments(tiny, 'work', 'tiny')],
                          capture_output=True, text=True, cwd=tiny)
    assert done.returncode == 0, done.stderr
    return results_of(tiny, 'work')


@pytest.mark.slow
def test_every_run_is_a_file_that_says_what_was_done(finished, modules, tiny):
    protocol = modules['protocol'].read(tiny / 'tiny.yaml')
    runs = [run for chain in modules['plan'].chains(protocol) for run in chain]
    assert set(finished) == {run.key for run in runs} and len(runs) == 2 * 3 + 2
    for planned in runs:
        result = finished[planned.key]
        assert result['settings'] == planned.settings and result['seed'] == 3
        assert len(result['curve']) == planned.settings['train']['epochs']
        assert result['curve'][-1] == round(result['top1'], 2)
        assert ('kl' in result) == ('teacher' in planned.settings)
        assert result['machine']['torch'] == torch.__version__ and len(result['machine']['commit'].strip('+')) == 40
        assert result['resolved']['train']['opt'] == 'sgd' and result['resolved']['train']['seed'] == 3
        assert ('branch_seed' in result['resolved']) == ('method' in planned.settings)
    assert {finished[run.key]['settings'].get('teacher') in finished for run in runs if run.arm == 'sftn'
            and run.kind == 'student'} == {True}


@pytest.mark.slow
def test_killed_and_started_again_it_gives_the_same_numbers(tiny):
    process = start(tiny, 'killed', 'by_name')
    results = tiny / 'results-killed' / 'tiny'
    while not list(results.glob('*.json')) and process.is_alive():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    first = {path: path.stat().st_mtime_ns for path in results.glob('*.json')}
    again = run(tiny, 'killed', 'by_name')
    assert 1 <= len(first) < len(again) == 3
    assert all(path.stat().st_mtime_ns == then for path, then in first.items())     # what was done is not done again
    assert {key: result['curve'] for key, result in again.items()} == {
        key: result['curve'] for key, result in run(tiny, 'whole', 'by_name').items()}


@pytest.mark.slow
def test_a_teacher_whose_weights_are_gone_is_trained_again_for_its_students(tiny):
    first = run(tiny, 'gone', 'by_name')
    results = tiny / 'results-gone' / 'tiny'
    student, = (key for key, result in first.items() if result['settings'].get('teacher'))
    teacher = first[student]['settings']['teacher']
    others = {path: path.stat().st_mtime_ns for path in results.glob('*.json') if path.stem not in (student, teacher)}
    for known in (first[teacher]['curve'], [1., 2., 3.]):       # reproduced, or not
        shutil.rmtree(tiny / 'gone')
        (results / f'{student}.json').unlink()
        (results / f'{teacher}.json').write_text(json.dumps({**first[teacher], 'curve': known}))
        stale = results / 'student-0.json'
        stale.write_text(json.dumps({**first[student], 'settings': {'teacher': teacher}}))
        again = run(tiny, 'gone', 'by_name')
        assert {key: again[key]['curve'] for key in first} == {key: result['curve'] for key, result in first.items()}
        same = known == first[teacher]['curve']
        assert stale.exists() == same != (tiny / 'gone' / 'superseded' / 'tiny' / stale.name).exists()
        assert (again[teacher] == first[teacher]) == same       # the record of what came out the same stays as it was
    assert others and all(path.stat().st_mtime_ns == then for path, then in others.items())


@pytest.mark.slow
def test_methods_with_several_branches_and_with_a_simplifier(tiny):
    pool = [{'name': 'test_resnet'}, {'name': 'test_efficientnet'}]
    arms = {'standard': {}, 'gtn': {'method': 'gtn', 'branch': pool},
            'teskd': {'method': 'teskd', 'options': {'width': 8}}, 'skd': {'simplifier': 0.01}}
    (tiny / 'methods.yaml').write_text(yaml.safe_dump({**BY_NAME, 'arms': arms}, sort_keys=False))
    results = run(tiny, 'methods', 'methods').values()
    assert {(r['kind'], r['arm']) for r in results} == {
        ('student', 'alone'), *(('student', arm) for arm in arms), *(('teacher', arm) for arm in arms if arm != 'skd')}
    curves = {r['arm']: r['curve'] for r in results if r['kind'] == 'teacher'}
    assert len(set(map(tuple, curves.values()))) == 3
    assert {r['arm'] for r in results if r['settings'].get('simplifier')} == {'skd'}


def test_images_that_choose_are_trained_on_by_nobody(modules):
    divided, labels = modules['images'].divided, torch.arange(5).repeat(12)
    images = torch.randint(256, (60, 3, 4, 4), dtype=torch.uint8), labels
    for per_class in (None, 4, 9):
        for seed in (None, 0, 7):
            train, held_out = divided(images, (1, 4), per_class, 3, seed)
            assert not set(train.tolist()) & set(held_out.tolist())
            assert len(held_out) == 9 and len(train) == 3 * (per_class or 9)
            assert seed is not None or min(held_out.tolist()) > max(train.tolist())
            assert set(labels[train].tolist()) == set(labels[held_out].tolist()) == {1, 2, 3}
    with pytest.raises(SystemExit, match='too few'):
        divided(images, (1, 4), 10, 3)


def test_a_seed_draws_the_same_images_whatever_order_they_come_in(modules):
    divided, labels = modules['images'].divided, torch.arange(5).repeat(40)
    pixels, other = torch.randint(256, (200, 3, 4, 4), dtype=torch.uint8), torch.randperm(200)
    drawn = {seed: divided((pixels, labels), (0, 5), 10, 8, seed) for seed in (0, 1)}
    for seed, parts in drawn.items():
        again = divided((pixels[other], labels[other]), (0, 5), 10, 8, seed)
        assert all(torch.equal(pixels[part], pixels[other][same]) for part, same in zip(parts, again, strict=True))
    assert torch.equal(drawn[0][1], drawn[1][1])        # one and the same validation images
    overlap = len(set(drawn[0][0].tolist()) & set(drawn[1][0].tolist()))
    assert 5 <= overlap <= 30       # of 50: 16 by chance (10 of 32 in each class)
    assert drawn[0][0].tolist() != sorted(drawn[0][0].tolist())


def test_what_a_teacher_says_in_lower_precision_is_kept_in_it(modules, tmp_path):
    teacher, (loader, _) = timm.create_model('test_resnet', num_classes=4).eval(), loaders()
    autocast = partial(torch.autocast, 'cpu', torch.bfloat16)
    said = modules['images'].teacher_logits(teacher, loader, 2, tmp_path / 'said.pt', autocast, channels_last=True)
    loader.set_epoch(1)
    with autocast(), torch.no_grad():
        expected = [teacher(images.contiguous(memory_format=torch.channels_last)) for images, _ in loader]
    assert said.dtype == torch.bfloat16 and torch.equal(said[len(loader):], torch.stack(expected))


@pytest.mark.parametrize('loss', ['dkd', 'logit_standardisation'])
def test_rival_losses_vanish_where_student_and_teacher_agree(modules, loss):
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 6, 5, generator=generator)
    target, rival = torch.arange(6) % 5, modules['rivals'].LOSSES[loss]
    assert rival(teacher, teacher, target, 4.).abs() < 1e-5 < rival(student, teacher, target, 4.)
    if loss == 'logit_standardisation':     # neither shift nor scale matters
        assert rival(3 * teacher + 1, teacher, target, 4.).abs() < 1e-5
    else:       # its parts with weights 1 and 1, the second times the teacher's mass off the target, are the divergence
        p, q = (z.div(4.).softmax(1) for z in (teacher, student))
        of = torch.arange(6), target
        other = 1 - p[of]
        binary = p[of] * (p[of] / q[of]).log() + other * (other / (1 - q[of])).log()
        kl = (p * (p / q).log()).sum(1)
        assert rival(student, teacher, target, 4.).allclose((binary + 8 * (kl - binary) / other).mean() * 16, atol=1e-4)
