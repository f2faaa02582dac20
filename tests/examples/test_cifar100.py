"""The evidence: its protocols, its runner on a small data set of the same form, and that no number is typed by hand."""
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import sf_teacher
from sf_teacher.methods import METHODS

from ..helpers import processes
from ..training.training_runs import loaders
from . import quick_run

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'examples' / 'cifar100'
QUEUE = 'queue'
PROTOCOLS = sorted(path.stem for path in FOLDER.glob('*.yaml') if path.stem != QUEUE)
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
    """The modules of the example, imported as its scripts import them."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name)
               for name in ('protocol', 'plan', 'images', 'nets', 'rivals', 'scheduler', 'worker', 'results',
                             'chosen', 'gains', 'regret')}
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


def arguments(folder, work, name, *more):
    return [str(folder / f'{name}.yaml'), '--data', str(folder / 'data'), '--device', 'cpu', '--work',
            str(folder / work), '--results', str(folder / f'results-{work}'), *more]


def start(folder, work, name, *more):
    process = processes.Process(target=quick_run.main, args=(
        arguments(folder, work, name, *more), folder, folder / f'{work}.log'))
    process.start()
    return process


def run(folder, work, name, *more):
    process = start(folder, work, name, *more)
    process.join()
    assert process.exitcode == 0, (folder / f'{work}.log').read_text()
    return results_of(folder, work)


def results_of(folder, work):
    return {path.stem: json.loads(path.read_text()) for path in (folder / f'results-{work}' / 'tiny').glob('*.json')}


@pytest.fixture(scope='module')
def finished(tiny):
    done = subprocess.run([sys.executable, str(FOLDER / 'run.py'), *arguments(tiny, 'work', 'tiny')],
                          capture_output=True, text=True, cwd=tiny)
    assert done.returncode == 0, done.stderr
    return results_of(tiny, 'work')


@pytest.mark.parametrize('name', PROTOCOLS)
def test_protocols_can_be_read_and_their_settings_are_checked(modules, name):
    protocol = modules['protocol'].read(FOLDER / f'{name}.yaml')
    assert modules['protocol'].STANDARD in protocol.arms
    for arm in protocol.arms.values():
        if arm.method:
            METHODS[arm.method](**arm.options)
    if 'SFTN' in protocol.arms:     # "SFTN" without more is what a user gets
        assert METHODS['sftn'](**protocol.arms['SFTN'].options) == sf_teacher.SFTN()
    keys = [run.key for chain in modules['plan'].chains(protocol) for run in chain]
    assert len(set(keys)) == len(keys)


def test_pairs_that_share_a_student_or_a_teacher_share_its_runs(modules, tmp_path):
    student, other = {'name': 'test_resnet'}, {'name': 'test_efficientnet'}
    pairs = {'a': {'teacher': {'name': 'resnet10t'}, 'student': student, 'others': {'x': other}},
             'b': {'teacher': {'name': 'resnet18'}, 'student': student},
             'c': {'teacher': {'name': 'resnet18'}, 'student': other}}
    (tmp_path / 'shared.yaml').write_text(yaml.safe_dump({**BY_NAME, 'pairs': pairs}))
    chains = modules['plan'].chains(modules['protocol'].read(tmp_path / 'shared.yaml'))
    runs = [run for chain in chains for run in chain]
    assert len({run.key for run in runs}) == len(runs)
    assert sum(run.kind == 'teacher' for run in runs) == 2      # resnet10t and resnet18
    assert sum(run.arm == 'alone' for run in runs) == 2         # each student once
    for chain in chains:     # a student comes after its teacher, in the same chain
        keys = [run.key for run in chain]
        assert all(run.settings.get('teacher', keys[0]) in keys[:i + 1] for i, run in enumerate(chain))


def test_a_method_with_a_trained_student_gets_that_of_its_guide(modules, tiny, tmp_path, monkeypatch):
    arms = {'standard': {}, 'guide': {'as_branch': True}, 'aid': {
        'method': 'aid', 'after': 'standard', 'guide': 'guide', 'train': {'epochs': 1}}}
    (tmp_path / 'guided.yaml').write_text(yaml.safe_dump({**BY_NAME, 'arms': arms}))
    protocol, plan = modules['protocol'].read(tmp_path / 'guided.yaml', arms=['aid']), modules['plan']
    runs = {run.key: run for chain in plan.chains(protocol, arms=['aid']) for run in chain}
    aid = next(run for run in runs.values() if run.arm == 'aid' and run.kind == 'teacher')
    standard, guide = (runs[key] for key in plan.needed(aid))
    assert standard.settings['model'] == protocol.pairs['by name'].teacher
    assert guide.settings['model'] == protocol.pairs['by name'].student
    worker = modules['worker'].Worker(None, tmp_path, tmp_path, 'cpu')
    worker.num_classes, worker.size = 3, (3, 32, 32)
    models = {run.key: modules['worker'].build(run.settings['model'], 5, 3) for run in (standard, guide)}
    monkeypatch.setattr(worker, 'teacher', models.__getitem__)
    task = worker.task(aid)
    for mine, known in ((task.teacher, models[standard.key]), (task.branches.student, models[guide.key])):
        state = known.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())
    for name, run in (('standard', standard), ('guide', guide)):
        folder = tmp_path / run.key / 'teacher'
        folder.mkdir(parents=True)
        (folder / modules['worker'].TEACHER).write_bytes(name.encode())
    other = worker.folder(aid)
    (tmp_path / guide.key / 'teacher' / modules['worker'].TEACHER).write_bytes(b'another')
    assert worker.folder(aid) != other      # its checkpoints belong to these weights


def test_a_mistake_in_a_protocol_is_named(modules, tmp_path):
    for change, message in ((dict(epochs=3), 'there is no epochs; there are about'),
                            (dict(arms={'standard': {'metod': 'sftn'}}), 'arms: standard: there is no metod'),
                            (dict(arms={'standard': {}, 'aid': {'method': 'aid'}}), 'aid: a guide is for methods with'),
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
        assert result['machine']['torch'] == torch.__version__
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
        assert stale.exists() == (known == first[teacher]['curve'])
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


def test_results_are_made_of_the_json_files_alone(modules):
    results = modules['results']
    assert (FOLDER / 'RESULTS.md').read_text(encoding='utf-8') == results.document()
    assert (ROOT / 'docs/results.md').read_text(encoding='utf-8') == results.overview()


def test_every_result_belongs_to_a_protocol(modules):
    planned = set()
    for name in PROTOCOLS:
        protocol = modules['protocol'].read(FOLDER / f'{name}.yaml')
        known = modules['chosen'].results_of(protocol)
        planned |= {f'{protocol.results}/{run.key}.json' for part in ('select', 'report')
                    for chain in modules['plan'].chains(protocol, known, part) for run in chain}
    found = {f'{path.parent.name}/{path.name}' for path in (FOLDER / 'results').glob('*/*.json')
             if path.parent.name != modules['regret'].ADVISOR}
    assert found and found <= planned


def test_verdicts(modules):
    verdict = modules['results'].verdict
    assert verdict([1., 1.1, 0.9]).endswith('gain') and 'no gain' not in verdict([1., 1.1, 0.9])
    assert verdict([-1., -1.1, -0.9]).endswith('loss')
    assert verdict([1., -1., 0.2]).endswith('no gain')
    assert verdict([1.]) == '+1.00 (1 seed)' and verdict([1., 2.]) == '+1.50 (2 seeds)' and verdict([]) == '-'


CHOSEN = {
    **TINY, 'results': 'chosen', 'per_class': 4, 'validation': 3, 'student_per_class': 9, 'unlabelled': True,
    'temperatures': [2, 8], 'selection_seeds': [100], 'seeds': [0], 'students': 2,
    'kd': {'task_loss_weight': 0., 'distill_loss_weight': 1.}, 'batch_size': 4,
    'train': {'epochs': 2, 'lr': 0.05, 'channels_last': True},
    'pairs': {'by name': {'teacher': {'name': 'test_resnet', 'channels': [16, 24, 24, 48]},
                          'student': {'name': 'test_efficientnet'}, 'branch': {'name': 'test_resnet'}}},
    'arms': {'standard': {}, 'half-way': {'halfway': True}, 'dkd': {'loss': 'dkd'}, 'cutmix': {'train': {'cutmix': 1.}},
             'ema': {'train': {'model_ema': True, 'model_ema_decay': 0.9}},
             'more': {'after': 'standard', 'train': {'epochs': 1}}, 'best': {'best_of': ['standard', 'half-way']}}}


@pytest.fixture(scope='module')
def chosen(tiny):
    (tiny / 'chosen.yaml').write_text(yaml.safe_dump(CHOSEN, sort_keys=False))
    run(tiny, 'chosen', 'chosen')
    return read(tiny, 'chosen')


def read(folder, work):
    return {path.stem: json.loads(path.read_text()) for path in (folder / f'results-{work}' / 'chosen').glob('*.json')}


@pytest.mark.slow
def test_what_chooses_is_never_what_is_reported(modules, chosen, tiny):
    protocol, plan = modules['protocol'].read(tiny / 'chosen.yaml'), modules['plan']
    parts = {part: {r.key for chain in plan.chains(protocol, chosen, part) for r in chain}
             for part in ('select', 'report')}
    assert not parts['select'] & parts['report'] and parts['select'] | parts['report'] == set(chosen)
    assert {chosen[key]['seed'] for key in parts['select']} == {100}
    assert {chosen[key]['seed'] for key in parts['report']} == {0, 1000}
    choices = plan.choose(protocol, chosen)
    other = {key: {**result, 'top1': 100 - result['top1']} for key, result in chosen.items()}
    assert plan.choose(protocol, other) == choices      # test images choose nothing
    assert plan.choose(protocol, {key: chosen[key] for key in parts['select']}) == choices      # nor do other seeds
    assert choices['by name', 'own', 'best'] in (
        choices['by name', 'own', 'standard'], choices['by name', 'own', 'half-way'])
    for arm in ('standard', 'best'):
        temperatures = {r.settings['kd']['temperature']
                        for r in plan.reported_runs(protocol, 'by name', arm, 0, choices)}
        assert temperatures == {choices['by name', 'own', arm].temperature}
    assert not plan.reported_runs(protocol, 'by name', 'standard', 0, {})       # before anything has been chosen


def test_images_that_choose_are_trained_on_by_nobody(modules):
    labels = torch.arange(5).repeat(12)
    for per_class in (None, 4, 9):
        train, held_out = modules['images'].divided(labels, (1, 4), per_class, 3)
        assert not set(train.tolist()) & set(held_out.tolist())
        assert len(held_out) == 9 and len(train) == 3 * (per_class or 9)
        assert min(held_out.tolist()) > max(train.tolist())
        assert set(labels[train].tolist()) == set(labels[held_out].tolist()) == {1, 2, 3}
    with pytest.raises(SystemExit, match='too few'):
        modules['images'].divided(labels, (1, 4), 10, 3)


@pytest.mark.parametrize('name', PROTOCOLS)
def test_seeds_that_choose_are_not_reported(modules, name):
    protocol = modules['protocol'].read(FOLDER / f'{name}.yaml')
    assert not set(protocol.seeds) & set(protocol.selection_seeds)
    assert bool(protocol.temperatures) == bool(protocol.validation) == bool(protocol.selection_seeds)
    assert max(protocol.seeds) < modules['plan'].NESTED


@pytest.mark.slow
def test_students_without_labels_see_none(modules, chosen, tiny):
    settings = next(r['settings'] for r in chosen.values() if r['kind'] == 'student' and r['arm'] == 'standard')
    assert settings['unlabelled'] and settings['kd']['task_loss_weight'] == 0 and settings['per_class'] == 9
    images = torch.zeros(60, 3, 32, 32, dtype=torch.uint8), torch.arange(5).repeat(12)
    split = modules['images'].Split({'train': images, 'test': images}, settings, torch.device('cpu'))
    assert {int(t) for _, target in split.training(0) for t in target} == {0}
    assert {int(t) for _, target in split.evaluation('validation') for t in target} == {0, 1, 2}


@pytest.mark.slow
def test_what_a_teacher_said_is_remembered_bit_for_bit(chosen, tiny):
    settings = {**CHOSEN, 'temperatures': [8], 'arms': {'standard': {}, 'half-way': {'halfway': True}}}
    (tiny / 'one.yaml').write_text(yaml.safe_dump(settings, sort_keys=False))
    for arm in ('standard', 'half-way'):        # one student a chain: the teacher is asked every time
        run(tiny, f'one-{arm}', 'one', '--arms', *{'standard', arm})
    asked = {**read(tiny, 'one-standard'), **read(tiny, 'one-half-way')}
    same = [key for key in asked if key in chosen and asked[key]['kind'] == 'student' and asked[key]['seed'] == 100]
    assert len(same) == 2
    for key in same:
        assert all(asked[key][name] == chosen[key][name] for name in ('train_loss', 'top1', 'validation_top1', 'kl'))


def test_what_a_teacher_says_in_lower_precision_is_kept_in_it(modules, tmp_path):
    teacher, (loader, _) = timm.create_model('test_resnet', num_classes=4).eval(), loaders()
    autocast = partial(torch.autocast, 'cpu', torch.bfloat16)
    said = modules['images'].teacher_logits(teacher, loader, 2, tmp_path / 'said.pt', autocast, channels_last=True)
    loader.set_epoch(1)
    with autocast(), torch.no_grad():
        expected = [teacher(images.contiguous(memory_format=torch.channels_last)) for images, _ in loader]
    assert said.dtype == torch.bfloat16 and torch.equal(said[len(loader):], torch.stack(expected))


@pytest.mark.slow
def test_an_average_of_the_weights_is_what_students_learn_from(chosen):
    standard, ema = (next(r for r in chosen.values() if r['kind'] == 'teacher' and r['arm'] == arm and r['seed'] == 0)
                     for arm in ('standard', 'ema'))
    assert standard['train_loss'] == ema['train_loss'] and standard['ece'] != ema['ece']


@pytest.mark.slow
def test_the_scheduler_killed_alone_leaves_nothing_behind_and_goes_on(chosen, tiny):
    arms = ('--arms', 'standard', 'cutmix')
    process = start(tiny, 'alone-killed', 'chosen', *arms)
    results = tiny / 'results-alone-killed' / 'chosen'
    while not list(results.glob('*.json')) and process.is_alive():
        time.sleep(0.05)
    process.kill()      # its workers are not told
    process.join()
    time.sleep(2)
    run(tiny, 'alone-killed', 'chosen', *arms)
    assert {key: r['train_loss'] for key, r in read(tiny, 'alone-killed').items()} == {
        key: r['train_loss'] for key, r in chosen.items() if r['arm'] in (*arms, 'alone')}


@pytest.mark.slow
def test_the_regret_of_the_advisor_is_that_of_the_full_trainings(modules, chosen, tiny, monkeypatch, capsys):
    (tiny / 'two.yaml').write_text(yaml.safe_dump({**CHOSEN, 'arms': {'standard': {}}}, sort_keys=False))
    results = tiny / 'results-chosen'
    monkeypatch.setattr(sys, 'argv', ['regret.py', '--protocol', str(tiny / 'two.yaml'), '--data', str(tiny / 'data'),
                                      '--work', str(tiny / 'chosen'), '--results', str(results), '--budget', '2h'])
    modules['regret'].main()
    found = json.loads((results / 'advisor' / 'two-by-name-2h.json').read_text())
    full = {r['settings']['kd']['temperature']: r['top1'] for r in chosen.values()
            if r['kind'] == 'student' and r['seed'] == 100 and r['arm'] == 'standard'}
    assert {t: top1 for _, t, top1 in found['candidates']} == full and found['epochs'] == 2
    printed = capsys.readouterr().out
    for name in ('recommended', 'leader'):
        arm, temperature = found[name]
        assert arm == 'standard' and f'{name}: standard at T = {temperature:g}, regret ' \
            f'{max(full.values()) - full[temperature]:.2f} of 2 candidates' in printed
    images = tiny / 'chosen' / 'advisor-two-by-name-2h' / 'images'
    assert [len(list((images / part).glob('*/*.png'))) for part in ('train', 'validation')] == [27, 9]


@pytest.mark.parametrize(('args', 'message'), [
    (['--protocol', 'fewlabels'], r'there is no .*fewlabels.yaml; there are all_images, '),
    (['--protocol', 'cpu'], 'cpu tries no temperatures'),
    (['--pair', 'resnet50'], r"few_labels has no pair 'resnet50'; it has 'resnet10t \(half width\) -> "),
    (['--results', 'nowhere'], 'no teacher of seed 100 has students of every temperature in nowhere: make them'),
    ([], r'the weights of standard, SFTN.* of seed 100 are not in .*: give the --work of run.py'),
    (['--budget', 'soon'], r'`?budget.*must be a time such as 90s, 20m or 2h'),
    (['--data', 'nowhere'], 'nowhere')])
def test_regret_says_what_is_missing_before_anything_is_piloted(modules, args, message, tmp_path, monkeypatch, capsys):
    module, work, made = modules['regret'], tmp_path / 'work', []
    if args and args[0] in ('--budget', '--data'):      # the teachers are there
        protocol = modules['protocol'].read(FOLDER / 'few_labels.yaml')
        pair, seed = next(iter(protocol.pairs)), protocol.selection_seeds[0]
        made = [work / module.teacher_run(protocol, pair, name, seed).key / 'teacher'
                for name in module.known(protocol, module.RESULTS, pair, seed)]
    for folder in made:
        folder.mkdir(parents=True)
    monkeypatch.setattr(sys, 'argv', ['regret.py', '--work', str(work), *args])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert re.search(message, f'{stopped.value} {capsys.readouterr().err}')
    assert sorted(work.glob('*')) == sorted(folder.parent for folder in made)


@pytest.mark.slow
def test_a_queue_is_worked_off_in_order_and_a_failure_stops_nothing_else(chosen, tiny, modules):
    arms = {**CHOSEN['arms'], 'wrong': {'method': 'sftn', 'boundaries': [['nowhere', 'nowhere']]}}
    (tiny / 'faulty.yaml').write_text(yaml.safe_dump({**CHOSEN, 'arms': arms}, sort_keys=False))
    queue = [{'protocol': 'faulty', 'part': 'select', 'arms': ['wrong', 'dkd']},
             {'protocol': 'faulty', 'part': 'report', 'arms': ['dkd'], 'seeds': [0]}]
    (tiny / 'queue.yaml').write_text(yaml.safe_dump({'queue': queue}))
    process = start(tiny, 'queue', 'queue')
    process.join()
    printed = (tiny / 'queue.log').read_text()
    assert process.exitcode == 1 and 'nowhere' in printed
    lines = [line for line in printed.splitlines() if '[dkd]' in line and ' seed ' in line]
    assert [line.split(' seed ')[1].split()[0] for line in lines] == ['100'] * 3 + ['0', '0', '1000']
    (tiny / 'queue.yaml').write_text(yaml.safe_dump({'queue': [{'protocol': 'faulty', 'arms': ['nothing']}]}))
    with pytest.raises(SystemExit, match='faulty has no nothing'):
        modules['scheduler'].stages_of(tiny / 'queue.yaml', None, None, modules['protocol'].read)


def test_the_committed_queue_can_be_read(modules):
    stages = modules['scheduler'].stages_of(FOLDER / f'{QUEUE}.yaml', None, None, modules['protocol'].read)
    assert stages[0].part == 'select' and {stage.protocol.results for stage in stages} == {'few_labels', 'all_images'}


def test_gains_respect_the_nesting(modules):
    module = modules['gains']

    def row(*accuracies):
        return module.Row(None, {}, {seed: [{'top1': a} for a in each] for seed, each in enumerate(accuracies)})

    standard = row((50., 52.), (40., 42.), (45., 45.))
    assert module.nested_gains(row((52., 52.), (43., 43.), (47., 45.)), standard) == [1., 2., 1.]
    assert module.nested_gains(row((52., 52.)), standard) == [1.] and module.nested_gains(standard, None) == []
    assert module.verdict([1., 1.1, 0.9]).endswith('] gain') and module.verdict([1., -1., 0.2]).endswith('no gain')
    assert module.verdict([1.], 'teacher') == '+1.00 (1 teacher)'
    assert module.verdict([1., 2.], 'teacher') == '+1.50 (2 teachers)'
    assert module.verdict([1., 1.1, 0.9], wide=2.) == '+1.00 [+0.75, +1.25], with images [-1.00, +3.00] no gain'


def test_the_interval_for_other_images_holds_the_truth_as_often_as_it_says(modules):
    module = modules['gains']
    generator, means, halves = np.random.default_rng(0), [], []

    def row(chance):
        right = [torch.from_numpy(generator.random(404) < chance + 0.02 * generator.normal()) for _ in range(5)]
        again = module.unpacked(module.packed(right[0]), 100 * right[0].float().mean().item())
        assert (again == right[0].numpy()).all()
        return module.Row(None, {}, {seed: [{'top1': 100 * each.float().mean().item(), 'right': module.packed(each)}]
                                     for seed, each in enumerate(right)})
    for _ in range(300):
        base, gain = generator.uniform(0.35, 0.55, 404), generator.uniform(-0.3, 0.4, 404)      # 5 points on average
        standard, other = row(base), row(base + gain)
        means.append(np.mean(module.nested_gains(other, standard)))
        halves.append(module.with_images(other, standard))
    covered = np.mean(np.abs(np.array(means) - 5) < halves)
    assert covered >= 0.94 and np.mean(halves) < 1.5 * 1.96 * np.std(means)
    few = module.Row(None, {}, {seed: other.students[seed] for seed in (0, 1)})
    assert module.with_images(few, standard) is None        # as where a result does not say what was right


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
