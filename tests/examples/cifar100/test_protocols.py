"""Protocols: what they ask for, what they share, and what is wrong in one."""
from dataclasses import replace

import pytest
import torch
import yaml

import sf_teacher
from sf_teacher.methods import METHODS

from .tiny_run import BY_NAME, FOLDER, PROTOCOLS, QUEUE, TINY


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
    standard, guide = (runs[key] for key in modules['runs'].needed(aid))
    assert standard.settings['model'] == protocol.pairs['by name'].teacher
    assert guide.settings['model'] == protocol.pairs['by name'].student
    worker = modules['worker'].Worker(None, tmp_path, tmp_path, 'cpu')
    known = {run.key: modules['tasks'].build(run.settings['model'], 5, 3) for run in (standard, guide)}
    monkeypatch.setattr(worker.models, 'teacher', known.__getitem__)
    task = worker.models.task(aid, 3)
    for mine, run in ((task.teacher, standard), (task.branches.student, guide)):
        state = known[run.key].state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())
    for name, run in (('standard', standard), ('guide', guide)):
        folder = tmp_path / run.key / 'teacher'
        folder.mkdir(parents=True)
        (folder / modules['tasks'].TEACHER).write_bytes(name.encode())
    other = worker.folder(aid)
    (tmp_path / guide.key / 'teacher' / modules['tasks'].TEACHER).write_bytes(b'another')
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


@pytest.mark.parametrize('name', PROTOCOLS)
def test_seeds_that_choose_are_not_reported(modules, name):
    protocol = modules['protocol'].read(FOLDER / f'{name}.yaml')
    assert not set(protocol.seeds) & set(protocol.selection_seeds)
    assert bool(protocol.temperatures) == bool(protocol.validation) == bool(protocol.selection_seeds)
    assert max(protocol.seeds) < modules['runs'].NESTED


def test_the_share_of_images_of_kinds_with_labels(modules, tiny):
    kinds = modules['kinds'].kinds
    train = kinds([f't/tank/{name}' for name in ('army_tank_s_000001.png', 'tank_s_000001.png', 'tank_s_000002.png')])
    assert train == {'tank': ['army_tank', 'tank', 'tank']}
    test = kinds([f't/tank/{kind}_s_{i:06d}.png' for i, kind in enumerate(['army_tank'] + 3 * ['tank'])])
    protocol = modules['protocol'].read(FOLDER / 'few_labels_in_order.yaml')
    few = replace(protocol, classes=(0, 1), per_class=1, validation=2)
    assert modules['kinds'].shares(train, test, few) == {'test images': 25., 'held-out images': 0.}


def test_the_committed_queue_can_be_read(modules):
    stages = modules['scheduler'].stages_of(FOLDER / f'{QUEUE}.yaml', None, None, modules['protocol'].read)
    assert {stage.part for stage in stages} == {'select', 'report'}
    assert {stage.protocol.results for stage in stages} == {'few_labels', 'all_images'}
