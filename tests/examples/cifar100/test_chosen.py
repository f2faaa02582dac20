"""Settings chosen on some images and seeds, and reported on others; the queue; the regret of the advisor."""
import json
import re
import sys
import time

import pytest
import torch
import yaml

from .tiny_run import FOLDER, TINY, run, start

CHOSEN = {
    **TINY, 'results': 'chosen', 'per_class': 4, 'drawn': True, 'validation': 3, 'student_per_class': 9,
    'unlabelled': True, 'temperatures': [2, 8], 'selection_seeds': [100], 'seeds': [0], 'students': 2,
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


@pytest.mark.slow
def test_several_teachers_choose_and_arms_may_have_fewer(modules, chosen, tiny):
    read, plan = modules['protocol'].read, modules['plan']
    (tiny / 'three.yaml').write_text(yaml.safe_dump({**CHOSEN, 'selection_seeds': [100, 101]}, sort_keys=False))
    protocol = read(tiny / 'three.yaml')
    assert plan.choose(protocol, chosen) == plan.choose(read(tiny / 'chosen.yaml'), chosen)     # one of two is done
    known = dict(chosen)
    for arm, accuracies in (('standard', (10., 90.)), ('half-way', (80., 20.))):
        of = {t: [run.key for seed in (100, 101) for run in plan.student_runs(protocol, 'by name', arm, seed, t)]
              for t in (2, 8)}
        for (first, second), accuracy in zip(of.values(), accuracies, strict=True):
            known |= {first: {'validation_top1': 50.}, second: {'validation_top1': accuracy}}
            begun = plan.choose(protocol, known)
            assert (('by name', 'own', arm) in begun) == (accuracy == accuracies[1])    # not before all are done
    found = plan.choose(protocol, known)
    assert found['by name', 'own', 'standard'] == plan.Choice('standard', 8, {2: 30., 8: 70.}, (100, 101))
    assert found['by name', 'own', 'best'] == found['by name', 'own', 'standard']
    assert found['by name', 'own', 'dkd'].seeds == (100,)
    only_first = {**known, **{key: {'validation_top1': v} for key, v in zip(
        (of[2][0], of[8][0]), (99., 0.), strict=True)}}
    del only_first[of[2][1]], only_first[of[8][1]]      # half-way has one teacher, on which the two are compared
    assert plan.choose(protocol, only_first)['by name', 'own', 'best'].arm == 'half-way'


@pytest.mark.slow
def test_nothing_is_reported_while_the_last_teacher_still_chooses(modules, chosen, tiny):
    arms = {name: CHOSEN['arms'][name] for name in ('standard', 'cutmix')}
    (tiny / 'two_choose.yaml').write_text(yaml.safe_dump(
        {**CHOSEN, 'selection_seeds': [100, 101], 'seeds': [7], 'arms': arms}, sort_keys=False))
    scheduler, protocol = modules['scheduler'], modules['protocol'].read(tiny / 'two_choose.yaml')
    stages = [scheduler.Stage(protocol, 'select', arms=['standard']), scheduler.Stage(protocol, 'report')]
    known, work = scheduler.Results(tiny / 'results-chosen'), tiny / 'chosen'

    def found(taken):
        return [[(run.arm, run.seed) for run, _ in chain] for _, chain in scheduler.ready(stages, known, work, taken)]
    (selecting, *_), *_ = (chain for _, chain in scheduler.ready(stages, known, work, set()))
    assert found(set())[0] == [('standard', 101)] * 3
    assert found({selecting[0].key}) == [[('alone', 7), ('alone', 1007)], [('cutmix', 7)] * 2 + [('cutmix', 1007)]]


@pytest.mark.slow
def test_another_protocol_may_choose(modules, chosen, tiny):
    read, plan = modules['protocol'].read, modules['plan']
    settings = {**CHOSEN, 'chosen_by': 'chosen', 'classes': [0, 3], 'seeds': [5]}
    for name, more in (('again', {}), ('elsewhere', {'results': 'elsewhere'})):
        (tiny / f'{name}.yaml').write_text(yaml.safe_dump({**settings, **more}, sort_keys=False))
    again, choices = read(tiny / 'again.yaml'), plan.choose(read(tiny / 'chosen.yaml'), chosen)
    assert plan.choose(again, chosen) == choices and not plan.chains(again, chosen, 'select')
    runs = [run for chain in plan.chains(again, chosen, 'report', arms=['standard']) for run in chain]
    assert [run.seed for run in runs] == [5, 5, 1005] and not {run.key for run in runs} & set(chosen)
    assert {run.settings['kd']['temperature'] for run in runs[1:]} == {
        choices['by name', 'own', 'standard'].temperature}
    rows = modules['chosen'].rows(again, chosen, 'by name', 'own')
    assert modules['tables'].selection_table(read(tiny / 'chosen.yaml'), rows)
    assert not modules['tables'].selection_table(again, rows)
    with pytest.raises(SystemExit, match=r'elsewhere\.yaml: chosen_by: its results are in chosen, not in elsewhere'):
        read(tiny / 'elsewhere.yaml')


@pytest.mark.slow
def test_students_without_labels_see_none(modules, chosen, tiny):
    settings = next(r['settings'] for r in chosen.values() if r['kind'] == 'student' and r['arm'] == 'standard')
    assert settings['unlabelled'] and settings['kd']['task_loss_weight'] == 0 and settings['per_class'] == 9
    images = torch.zeros(60, 3, 32, 32, dtype=torch.uint8), torch.arange(5).repeat(12)
    split = modules['images'].Split({'train': images, 'test': images}, settings, 0, torch.device('cpu'))
    assert {int(t) for _, target in split.training(0) for t in target} == {0}
    assert {int(t) for _, target in split.evaluation('validation') for t in target} == {0, 1, 2}


@pytest.mark.slow
def test_what_a_teacher_said_is_remembered_bit_for_bit(chosen, tiny):
    settings = {**CHOSEN, 'temperatures': [8], 'seeds': [], 'arms': {'standard': {}, 'half-way': {'halfway': True}}}
    (tiny / 'one.yaml').write_text(yaml.safe_dump(settings, sort_keys=False))
    for arm in ('standard', 'half-way'):        # one student a chain: the teacher is asked every time
        run(tiny, f'one-{arm}', 'one', '--arms', *{'standard', arm})
    asked = {**read(tiny, 'one-standard'), **read(tiny, 'one-half-way')}
    same = [key for key in asked if key in chosen and asked[key]['kind'] == 'student' and asked[key]['seed'] == 100]
    assert len(same) == 2
    for key in same:
        assert all(asked[key][name] == chosen[key][name] for name in ('train_loss', 'top1', 'validation_top1', 'kl'))


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
    assert {t: top1 for _, t, top1 in found['candidates']} == full and found['epochs'] == 2 and found['sure']
    printed = capsys.readouterr().out
    for name in ('baseline', 'recommended'):
        arm, temperature = found[name]
        assert arm == 'standard' and f'{name}: standard at T = {temperature:g}, regret ' \
            f'{max(full.values()) - full[temperature]:.2f} of 2 candidates' in printed
    images = tiny / 'chosen' / 'advisor-two-by-name-2h' / 'images'
    assert [len(list((images / part).glob('*/*.png'))) for part in ('train', 'validation')] == [27, 9]


def test_a_report_of_an_earlier_version_is_read_by_today_s_rule(modules):
    old = {'recommended': ['standard', 4.], 'leader': ['SFTN', 2.], 'text': 'no: it made +0.64 [-0.69, +1.97] points'}
    read = modules['regret'].as_today(old)
    assert (read['baseline'], read['recommended'], read['gain']) == (['standard', 4.], ['SFTN', 2.], 0.64)
    assert read['half_width'] == pytest.approx(1.33)
    assert modules['regret'].as_today({**old, 'text': 'no difference'})['gain'] is None
    today = {name: value for name, value in read.items() if name != 'leader'}
    assert modules['regret'].as_today(today) == today


def test_regret_is_below_the_best_of_all_and_the_table_has_baseline_and_recommendation(modules, tmp_path, monkeypatch):
    regret = modules['regret']
    result = {'protocol': 'p', 'pair': 'q', 'budget': '20m', 'seconds': 60., 'epochs': 5, 'rounds': [],
              'baseline': ['standard', 4.], 'recommended': ['SFTN', 8.], 'gain': 1.25, 'half_width': 2., 'sure': False,
              'candidates': [['standard', 4., 50.], ['SFTN', 8., 52.5], ['SFTN', 4., 53.]]}
    assert regret.regrets(result) == {'baseline': 3., 'recommended': 0.5}
    (tmp_path / 'advisor').mkdir()
    (tmp_path / 'advisor' / 'a.json').write_text(json.dumps(result))
    monkeypatch.setattr(regret, 'RESULTS', tmp_path)
    assert regret.shown().splitlines()[-1] == (
        '| p, q | in three steps | 20m | 1.0 | 5 | 3 | standard at T = 4 | 50.00 | 3.00 | SFTN at T = 8 | +1.25 ± 2.00 '
        '| 52.50 | 0.50 | SFTN at T = 4 | 53.00 | 50.00 |')


@pytest.mark.parametrize(('name', 'unlabelled'), [('few_labels', True), ('few_images', False), ('all_images', False)])
def test_the_advisor_sees_what_students_of_the_protocol_see(modules, name, unlabelled, tmp_path):
    protocol = modules['protocol'].read(FOLDER / f'{name}.yaml')
    pair = next(iter(protocol.pairs))
    run = modules['regret'].settings(protocol, pair, ['a', 'b'], tmp_path, '20m')
    assert run.teachers == ('a', 'b') and run.temperatures == (2., 4., 8., 16., 32.) and run.budget == '20m'
    assert bool(run.unlabelled) == (run.train_split == 'none') == unlabelled
    assert run.task_loss_weight == protocol.kd['task_loss_weight']
    assert run.epochs == (protocol.train | protocol.student)['epochs']
    simplified = [arm for arm, settings in protocol.arms.items() if settings.simplifier]
    assert not set(simplified) & set(modules['regret'].known(protocol, modules['regret'].RESULTS, pair, 100))


@pytest.mark.parametrize(('args', 'message'), [
    (['--protocol', 'fewlabels'], r'there is no .*fewlabels.yaml; there are all_images, '),
    (['--protocol', 'cpu'], 'cpu tries no temperatures'),
    (['--pair', 'resnet50'], r"few_labels_in_order has no pair 'resnet50'; it has 'resnet10t \(half width\) -> "),
    (['--results', 'nowhere'], 'no teacher of seed 100 has students of every temperature in nowhere: make them'),
    ([], r'the weights of standard, SFTN.* of seed 100 are not in .*: give the --work of run.py'),
    (['--budget', 'soon'], r'`?budget.*must be a time such as 90s, 20m or 2h'),
    (['--data', 'nowhere'], 'nowhere')])
def test_regret_says_what_is_missing_before_anything_is_piloted(modules, args, message, tmp_path, monkeypatch, capsys):
    module, work, made = modules['regret'], tmp_path / 'work', []
    if args and args[0] in ('--budget', '--data'):      # the teachers are there
        protocol = modules['protocol'].read(FOLDER / 'few_labels_in_order.yaml')
        pair, seed = next(iter(protocol.pairs)), protocol.selection_seeds[0]
        made = [work / module.teacher_run(protocol, pair, name, seed).key / 'teacher'
                for name in module.known(protocol, module.RESULTS, pair, seed)]
    for folder in made:
        folder.mkdir(parents=True)
    monkeypatch.setattr(sys, 'argv', ['regret.py', '--protocol', 'few_labels_in_order', '--work', str(work), *args])
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
