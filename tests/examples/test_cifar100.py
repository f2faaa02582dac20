"""The evidence: its protocols, its runner on a small data set of the same form, and that no number is typed by hand."""
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sf_teacher
from sf_teacher.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'examples' / 'cifar100'
PROTOCOLS = sorted(path.stem for path in FOLDER.glob('*.yaml'))
TINY = {
    'about': 'tiny', 'results': 'tiny', 'classes': [1, 4], 'per_class': 8, 'batch_size': 8, 'seeds': [3],
    'train': {'epochs': 3, 'lr': 0.05},
    'pairs': {'by path': {
        'teacher': {'cifar': 'resnet8'}, 'student': {'cifar': 'wrn_10_1'},
        'others': {'by name': {'name': 'test_resnet'}}, 'boundaries': [['layer1', 'layer1'], ['layer2', 'layer2']]}},
    'arms': {'standard': {}, 'sftn': {
        'method': 'sftn', 'options': {'kl_weight': 1., 'kl_ramp': 0.5}, 'after': 'standard'}},
}
BY_NAME = {**TINY, 'arms': {'standard': {}}, 'pairs': {'by name': {
    'teacher': {'name': 'test_resnet', 'channels': [16, 24, 24, 48]}, 'student': {'name': 'test_efficientnet'}}}}


@pytest.fixture(scope='module')
def modules():
    """protocol, nets and results of the example, imported as its scripts import them."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in ('protocol', 'nets', 'results')}
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A folder with a data set of five classes and a protocol that uses three of them."""
    folder = tmp_path_factory.mktemp('tiny')
    generator = np.random.default_rng(0)
    for split, count in (('train', 12), ('test', 4)):
        for label in range(5):
            (folder / 'data' / split / f'class{label}').mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 50 * label + 50, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / 'data' / split / f'class{label}' / f'{i}.png')
    (folder / 'tiny.yaml').write_text(yaml.safe_dump(TINY))
    (folder / 'by_name.yaml').write_text(yaml.safe_dump(BY_NAME))
    return folder


def command(folder, work, name):
    return [sys.executable, str(FOLDER / 'run.py'), str(folder / f'{name}.yaml'), '--data', str(folder / 'data'),
            '--device', 'cpu', '--work', str(folder / work), '--results', str(folder / f'results-{work}')]


def run(folder, work, name):
    done = subprocess.run(command(folder, work, name), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.stem: json.loads(path.read_text()) for path in (folder / f'results-{work}' / 'tiny').glob('*.json')}


@pytest.fixture(scope='module')
def finished(tiny):
    return run(tiny, 'work', 'tiny')


@pytest.mark.parametrize('name', PROTOCOLS)
def test_protocols_can_be_read_and_their_settings_are_checked(modules, name):
    protocol = modules['protocol'].read(FOLDER / f'{name}.yaml')
    assert modules['protocol'].STANDARD in protocol.arms
    for arm in protocol.arms.values():
        if arm.method:
            METHODS[arm.method](**arm.options)
    if 'SFTN' in protocol.arms:     # "SFTN" without more is what a user gets
        assert METHODS['sftn'](**protocol.arms['SFTN'].options) == sf_teacher.SFTN()
    keys = [run.key for phase in modules['protocol'].chains(protocol) for chain in phase for run in chain]
    assert len(set(keys)) == len(keys)


def test_pairs_that_share_a_student_or_a_teacher_share_its_runs(modules, tmp_path):
    student, other = {'name': 'test_resnet'}, {'name': 'test_efficientnet'}
    pairs = {'a': {'teacher': {'name': 'resnet10t'}, 'student': student, 'others': {'x': other}},
             'b': {'teacher': {'name': 'resnet18'}, 'student': student},
             'c': {'teacher': {'name': 'resnet18'}, 'student': other}}
    (tmp_path / 'shared.yaml').write_text(yaml.safe_dump({**BY_NAME, 'pairs': pairs}))
    (first, second) = modules['protocol'].chains(modules['protocol'].read(tmp_path / 'shared.yaml'))
    runs = [run for chain in first for run in chain]
    assert not second and len({run.key for run in runs}) == len(runs)
    assert sum(run.kind == 'teacher' for run in runs) == 2      # resnet10t and resnet18
    assert sum(run.arm == 'alone' for run in runs) == 2         # each student once
    for chain in first:     # a student comes after its teacher, in the same chain
        keys = [run.key for run in chain]
        assert all(run.settings.get('teacher', keys[0]) in keys[:i + 1] for i, run in enumerate(chain))


def test_a_mistake_in_a_protocol_is_named(modules, tmp_path):
    for change, message in ((dict(epochs=3), 'there is no epochs; there are about'),
                            (dict(arms={'standard': {'metod': 'sftn'}}), 'arms: standard: there is no metod'),
                            (dict(arms={'standard': {'after': 'other'}}), "there is no arm 'other' to start from")):
        (tmp_path / 'bad.yaml').write_text(yaml.safe_dump({**TINY, **change}))
        with pytest.raises(SystemExit, match=message):
            modules['protocol'].read(tmp_path / 'bad.yaml')


@pytest.mark.parametrize(('name', 'parameters'), [
    ('wrn_40_2', 2255156), ('wrn_16_2', 703284), ('resnet32x4', 7433860), ('resnet8x4', 1233540), ('resnet20', 278324)])
def test_networks_have_the_parameters_that_the_benchmarks_report(modules, name, parameters):
    model = modules['nets'].build(name, 100)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_every_run_is_a_file_that_says_what_was_done(finished, modules, tiny):
    protocol = modules['protocol'].read(tiny / 'tiny.yaml')
    runs = [run for phase in modules['protocol'].chains(protocol) for chain in phase for run in chain]
    assert set(finished) == {run.key for run in runs} and len(runs) == 2 * 3 + 2
    for planned in runs:
        result = finished[planned.key]
        assert result['settings'] == planned.settings and result['seed'] == 3
        assert len(result['curve']) == planned.settings['train']['epochs']
        assert result['curve'][-1] == round(result['top1'], 2)
        assert ('kl' in result) == ('teacher' in planned.settings)
        assert result['machine']['torch'] == torch.__version__
    assert {finished[run.key]['settings'].get('teacher') in finished for run in runs if run.arm == 'sftn'
            and run.kind == 'student'} == {True}


def test_killed_and_started_again_it_gives_the_same_numbers(tiny):
    process = subprocess.Popen(command(tiny, 'killed', 'by_name'), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, cwd=tiny, start_new_session=True)
    results = tiny / 'results-killed' / 'tiny'
    while not list(results.glob('*.json')) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in results.glob('*.json')}
    again = run(tiny, 'killed', 'by_name')
    assert 1 <= len(first) < len(again) == 3
    assert all(path.stat().st_mtime_ns == then for path, then in first.items())     # what was done is not done again
    assert {key: result['curve'] for key, result in again.items()} == {
        key: result['curve'] for key, result in run(tiny, 'whole', 'by_name').items()}


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
        assert stale.exists() == (known == first[teacher]['curve'])
    assert others and all(path.stat().st_mtime_ns == then for path, then in others.items())


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


def test_results_are_made_of_the_json_files_alone(modules):
    results = modules['results']
    assert (FOLDER / 'RESULTS.md').read_text(encoding='utf-8') == results.document()
    assert (ROOT / 'docs/results.md').read_text(encoding='utf-8') == results.overview()


def test_every_result_belongs_to_a_protocol(modules):
    planned = {f'{protocol.results}/{run.key}.json' for name in PROTOCOLS
               for protocol in [modules['protocol'].read(FOLDER / f'{name}.yaml')]
               for phase in modules['protocol'].chains(protocol) for chain in phase for run in chain}
    found = {f'{path.parent.name}/{path.name}' for path in (FOLDER / 'results').glob('*/*.json')}
    assert found and found <= planned


def test_verdicts(modules):
    verdict = modules['results'].verdict
    assert verdict([1., 1.1, 0.9]).endswith('gain') and 'no gain' not in verdict([1., 1.1, 0.9])
    assert verdict([-1., -1.1, -0.9]).endswith('loss')
    assert verdict([1., -1., 0.2]).endswith('no gain')
    assert verdict([1.]) == '+1.00 (1 seed)' and verdict([1., 2.]) == '+1.50 (2 seeds)' and verdict([]) == '-'
