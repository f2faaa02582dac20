import json
import math
import os
import re
import sys
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from matplotlib.axes import Axes
from timm.data import resolve_data_config

import sf_teacher
from sf_teacher import SFTeacherError, cli
from sf_teacher.analysis import halving, pilots
from sf_teacher.analysis.figures import report_figure
from sf_teacher.analysis.report import _check, _keep_earlier, report
from sf_teacher.analysis.settings import ReportRun
from sf_teacher.analysis.verdicts import table
from sf_teacher.data.datasets import load_data
from sf_teacher.data.settings import DataConfig
from sf_teacher.exporting.exported import load_teacher
from sf_teacher.training.components import eval_model
from sf_teacher.training.planning import plan_student
from sf_teacher.training.settings import StudentRun

from ..training import training_runs as runs


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    paths = []
    for seed, name in enumerate(('standard', 'friendly')):
        torch.manual_seed(seed)
        paths.append(tmp_path_factory.mktemp(name) / name)
        model = timm.create_model('test_resnet', num_classes=4)
        timm.models.save_for_hf(model, str(paths[-1]), safe_serialization=True, model_args=dict(num_classes=4),
                                data_config=dict(input_size=runs.SIZE))
    return [str(p) for p in paths]


def test_report_measures_teachers_and_pilots(teachers, tmp_path, capsys):
    data = str(runs.folder(tmp_path / 'data'))
    args = ['report', teachers[1], '--baseline', teachers[0], '--student', 'test_resnet', '--data', data, '--in-memory',
            '--batch-size', '8', '--epochs', '1', '--seeds', '2', '--device', 'cpu', '--output', str(tmp_path / 'out'),
            '--temperatures', '4']
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / 'out/report.json').read_text())
    assert (tmp_path / 'out/report.png').read_bytes()[:4] == b'\x89PNG'
    assert table(result) in out and 'student alone' in out and '95 % confidence' in out
    names = [f'{teacher} at T = 4' for teacher in teachers]
    assert [(c['teacher'], c['reference']) for c in result['comparisons']] == [
        (names[1], names[0]), (names[0], 'student alone'), (names[1], 'student alone')]
    for name in names:
        assert 0 <= result['teachers'][name]['top1'] <= 100 and 0 <= result['teachers'][name]['ece'] <= 1
        assert [p['seed'] for p in result['pilots'][name]] == [42, 43]
        for pilot in result['pilots'][name]:
            assert pilot['kl'] > 0 and 0 <= pilot['agreement'] <= 1 and pilot['top1'] == pilot['student_top1']
            assert all(0 <= c['value'] <= 1 for c in pilot['cka']) and pilot['cka']
    kinds = [c['kind'] for c in result['comparisons']]
    assert all(c['verdict'] in out for c in result['comparisons']) and set(kinds) <= {'gain', 'no gain', 'loss'}
    assert result['rounds'] == []       # nothing to choose, so all validation images tell
    assert result['recommendation']['teacher'] in teachers and result['recommendation']['text'] in out
    assert result['recommendation']['seconds'] == pytest.approx(sum(
        json.loads(p.read_text())['seconds'] for p in (tmp_path / 'out/pilots').iterdir()))


@pytest.mark.parametrize(('given', 'epochs', 'expected'), [
    (dict(warmup_epochs=2), 5, dict(warmup_epochs=2)),
    (dict(warmup_epochs=2), 2, dict(warmup_epochs=1)),
    (dict(warmup_epochs=4, warmup_lr=0.01), 1, dict(warmup_epochs=0)),
    (dict(min_lr=0.01), 2, dict(sched='cosine', min_lr=0.01)),
    (dict(sched='step', decay_epochs=2., decay_rate=0.5), 2, dict(decay_epochs=0.8, decay_rate=0.5)),
    (dict(sched='multistep', decay_milestones=(2, 4)), 3, dict(sched='multistep', decay_milestones=(1, 2))),
    (dict(sched='multistep', decay_milestones=(2, 4), decay_rate=0.5), 1, dict(sched='constant')),
    (dict(sched='wsd', decay_epochs=4.), 2, dict(decay_epochs=1.6)),
])
def test_a_shorter_pilot_has_the_same_schedule_in_its_epochs(given, epochs, expected):
    settings = StudentRun(student='test_resnet', epochs=5, **given)
    found = pilots.shortened(settings, epochs)
    assert found.epochs == epochs and {name: getattr(found, name) for name in expected} == expected
    assert pilots.shortened(settings, 5) == settings


def test_pilots_are_known_again_whatever_ran_them(teachers, tmp_path):
    data = load_data(DataConfig(data='digits'))
    made = [pilots.Pilots(StudentRun(student='test_resnet', **how), data, None, tmp_path, teachers[0])
            for how in (dict(), dict(threads=1, workers=2, log_interval=9, device='cpu'), dict(lr=0.1))]
    first, same, other = (p._key(pilots.Candidate(''), 1, 0) for p in made)
    assert first == same != other
    for images, baseline in ((data, teachers[1]), (replace(data, contents=['others']), teachers[0])):
        others = pilots.Pilots(StudentRun(student='test_resnet'), images, None, tmp_path, baseline)
        assert others._key(pilots.Candidate(''), 1, 0) != first     # the student alone is prepared like the baseline


def test_a_teacher_is_not_compared_with_itself(teachers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = [teachers[0], f'local-dir:{teachers[0]}', f'{teachers[0]}/', os.path.relpath(teachers[0])]
    result = report(ReportRun(
        teachers=tuple(same), student='test_resnet', data=str(runs.folder(tmp_path / 'data')), in_memory=True,
        batch_size=8, epochs=1, seeds=2, device='cpu', output=str(tmp_path / 'out'), temperatures=(4.,)))
    assert result['candidates'] == [teachers[0]] and 'the only teacher' in result['recommendation']['text']


def test_a_student_whose_features_cannot_be_had_is_reported_without_cka(teachers, tmp_path, caplog):
    caplog.set_level('INFO')
    drops_tokens = dict(patch_drop_rate=0.5, img_size=runs.SIZE[-1], patch_size=8)
    result = report(ReportRun(
        teachers=(teachers[0],), student='test_vit', model_kwargs=drops_tokens,
        data=str(runs.folder(tmp_path / 'data')), in_memory=True, batch_size=8, epochs=1, seeds=2, device='cpu',
        output=str(tmp_path / 'out'), temperatures=(4.,)))
    assert 'no CKA: ' in caplog.text and (tmp_path / 'out/report.png').exists()
    [row] = [line for line in table(result).splitlines() if line.startswith(teachers[0])]
    assert row.endswith('  -')


@pytest.mark.slow
def test_a_report_goes_on_where_it_was_stopped(teachers, tmp_path, monkeypatch):
    config = ReportRun(teachers=tuple(teachers), student='test_resnet', data=str(runs.folder(tmp_path / 'data')),
                       in_memory=True, batch_size=8, epochs=2, seeds=2, device='cpu', output=str(tmp_path / 'out'))
    fit, trained = pilots.fit, []

    def stops(task, *args):
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append(task)
        return fit(task, *args)
    monkeypatch.setattr(pilots, 'fit', stops)
    with pytest.raises(KeyboardInterrupt):
        report(config)
    assert len(list((tmp_path / 'out/pilots').iterdir())) == 5 and not (tmp_path / 'out/report.json').exists()
    monkeypatch.setattr(pilots, 'fit', lambda *args: trained.append(args[0]) or fit(*args))
    result = report(config)
    count = 4 + 4 + 3 * 2       # both teachers at four temperatures; then each at its best, and none, with two seeds
    assert len(trained) == count and len(result['pilots']) == 3 and len(result['rounds']) == 2
    assert all(p['top1'] == p['report_top1'] for pilots in result['pilots'].values() for p in pilots)
    monkeypatch.setattr(pilots, 'fit', lambda *args: pytest.fail('trained again'))
    assert report(config) == result


@pytest.mark.parametrize('labelled', [True, False])
def test_images_without_labels_are_for_students_that_have_a_teacher(labelled, teachers, tmp_path, monkeypatch):
    folder = runs.folder(tmp_path / 'data')
    (runs.folder(tmp_path / 'more') / 'train').rename(tmp_path / 'flat')
    config = ReportRun(teachers=tuple(teachers), student='test_resnet', data=str(folder), in_memory=True, batch_size=8,
                       unlabelled=str(tmp_path / 'flat'), **({} if labelled else {'train_split': 'none'}), epochs=1,
                       seeds=2, device='cpu', output=str(tmp_path / 'out'), temperatures=(4.,), budget='2h')
    seen, fit = [], pilots.fit
    monkeypatch.setattr(pilots, 'fit', lambda task, train, *args: seen.append(
        (len(train.labels), int((train.labels < 0).sum()))) or fit(task, train, *args))
    result = report(config)
    assert ('student alone' in result['pilots']) == labelled and len(result['pilots']) == 2 + labelled
    assert seen.count((24 * (1 + labelled), 24)) == 1 + 2 * 2 and seen.count((24, 0)) == 2 * labelled
    assert len(seen) == 1 + 4 + 2 * labelled == 1 + halving.pilot_epochs(2, 1, 1, 2, labelled)   # one tells the speed
    assert result['recommendation']['teacher'] in teachers and result['recommendation']['text'] in table(result)


def test_a_budget_lowers_the_epochs_or_is_refused(teachers, tmp_path):
    config = ReportRun(teachers=tuple(teachers), student='test_resnet', data=str(runs.folder(tmp_path / 'data')),
                       in_memory=True, batch_size=8, epochs=4, seeds=2, device='cpu', output=str(tmp_path / 'out'),
                       temperatures=(4.,), budget='0.001s')
    too_small = r"budget='0.001s' is too small: with pilots of one epoch it takes about \d+ s"
    with pytest.raises(SFTeacherError, match=too_small):
        report(config)
    [path] = (tmp_path / 'out/pilots').iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), 'seconds': 10.03}))
    with pytest.raises(SFTeacherError, match='it takes about 71 s here; give that'):        # 70.21
        report(replace(config, budget='70s'))
    path.write_text(json.dumps({**json.loads(path.read_text()), 'seconds': 10.}))
    assert halving.pilot_epochs(2, 1, 2, 2, beside=1) == 12
    result = report(replace(config, budget='130s'))
    assert result['epochs'] == 2
    asked_less = report(replace(config, budget='130s', epochs=1))
    kept, now = (json.loads((tmp_path / f'out/{name}.json').read_text()) for name in ('report-1', 'report'))
    assert kept['epochs'] == 2 and now['epochs'] == asked_less['epochs'] == 1      # nothing is lost by another report
    assert (tmp_path / 'out/report-1.png').exists() and (tmp_path / 'out/report.png').exists()
    assert '2 epochs (4 do not fit into the budget; shorter pilots may order teachers otherwise)' in table(result)


@pytest.mark.slow
def test_the_baseline_is_fine_tuned_with_branches_and_without_once(teachers, tmp_path, monkeypatch):
    config = ReportRun(teachers=(teachers[0],), student='test_efficientnet', data=str(runs.folder(tmp_path / 'data')),
                       in_memory=True, batch_size=8, epochs=2, seeds=2, device='cpu', output=str(tmp_path / 'out'),
                       temperatures=(4.,), fine_tune=1, fine_tune_lr=0.01, sched='multistep', decay_milestones=(1,))
    result = report(config)
    plain, friendly = (next((tmp_path / 'out/fine_tuned').glob(f'{method}-*/')) for method in ('none', 'sftn'))
    assert result['candidates'] == [teachers[0], str(plain / 'teacher'), str(friendly / 'teacher')]
    [chosen] = result['rounds']
    assert set(chosen['top1']) == {f'{folder} at T = 4' for folder in result['candidates'][1:]}
    assert len(result['teachers']) == 3 and f'{teachers[0]} at T = 4' in result['teachers']
    best, twin = sorted((f'{folder} at T = 4' for folder in result['candidates'][1:]), key=lambda n: -chosen['top1'][n])
    assert [(c['teacher'], c['reference']) for c in result['comparisons'][:3]] == [
        (best, result['baseline']), (twin, result['baseline']), (best, twin)]
    settings = [yaml.safe_load((folder / 'config.yaml').read_text()) for folder in (plain, friendly)]
    assert [s['student'] for s in settings] == [[], ['test_efficientnet']]
    assert {(s['epochs'], s['lr'], s['teacher']) for s in settings} == {(1, 0.01, f'local-dir:{teachers[0]}')}
    weights = [load_teacher(str(folder)).state_dict()['conv1.0.weight'] for folder in (teachers[0], plain, friendly)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    took = sum(json.loads(path.read_text())['seconds'] for part in ('fine_tuned', 'pilots')
               for path in (tmp_path / 'out' / part).glob('*.json'))
    assert result['recommendation']['seconds'] == pytest.approx(took)
    monkeypatch.setattr('sf_teacher.analysis.fine_tuned.train_teacher', lambda *args: pytest.fail('trained again'))
    assert report(config) == result and not (tmp_path / 'out/report-1.json').exists()
    monkeypatch.undo()
    path, = (tmp_path / 'out/fine_tuned').glob('sftn-*.json')
    path.write_text(json.dumps({'seconds': 1000.}))     # it counts against the budget
    too_small = r"budget='900s' is too small: .* takes about 2\d\d\d s here \(2000 s of it for fine_tune=1\)"
    with pytest.raises(SFTeacherError, match=too_small):
        report(replace(config, budget='900s'))
    with pytest.raises(SFTeacherError, match=r'\(101000 s of it for fine_tune=50\)'):     # known after one epoch
        report(replace(config, budget='900s', fine_tune=50))
    begun = []

    def begins(run, data):
        begun.append(run)
        raise KeyboardInterrupt
    monkeypatch.setattr('sf_teacher.analysis.fine_tuned.train_teacher', begins)
    with pytest.raises(KeyboardInterrupt):
        report(replace(config, fine_tune=3))        # other settings are another training
    assert [run.epochs for run in begun] == [3]


def test_what_is_measured_is_the_moving_average_where_there_is_one(teachers, tmp_path, monkeypatch):
    config = ReportRun(teachers=(teachers[0],), student='test_resnet', data=str(runs.folder(tmp_path / 'data')),
                       in_memory=True, batch_size=8, epochs=1, seeds=2, device='cpu', output=str(tmp_path / 'out'),
                       model_ema=True, model_ema_decay=0.999999, temperatures=(2.,))
    plain = replace(config, model_ema=False, model_ema_decay=ReportRun.model_ema_decay)
    kl = [[p['kl'] for p in report(c)['pilots'][f'{teachers[0]} at T = 2']] for c in (config, plain)]
    assert kl[0] != kl[1]

    def averaged(task, ema):
        assert ema
        return eval_model(task, ema)
    monkeypatch.setattr('sf_teacher.analysis.pilots.eval_model', averaged)
    assert [p['kl'] for p in report(replace(config, output=str(tmp_path / 'again')))[
        'pilots'][f'{teachers[0]} at T = 2']] == kl[0]


def test_teachers_see_their_own_normalisation(teachers, tmp_path):
    data = str(runs.folder(tmp_path / 'data'))
    common = dict(teachers=(teachers[0],), student='test_resnet', data=data, in_memory=True, batch_size=8, epochs=1,
                  seeds=2, device='cpu', temperatures=(4.,))
    own = report(ReportRun(**common, output=str(tmp_path / 'own')))
    other = report(ReportRun(**common, mean=(0.,), std=(1.,), output=str(tmp_path / 'other')))
    found = [r['teachers'][f'{teachers[0]} at T = 4'] for r in (own, other)]
    assert found[0]['entropy'] == pytest.approx(found[1]['entropy'], rel=1e-4)
    assert found[0]['top1'] == found[1]['top1']


def test_grey_teachers(tmp_path):
    data = str(runs.folder(tmp_path / 'data'))
    model = timm.create_model('test_resnet', num_classes=4, in_chans=1)
    folder = sf_teacher.export(model, tmp_path / 'grey', input_size=(1, 16, 16), mean=0.5, std=0.5)
    result = report(ReportRun(teachers=(str(folder),), student='test_resnet', data=data, batch_size=8, epochs=1,
                              seeds=2, workers=0, device='cpu', output=str(tmp_path / 'out'), temperatures=(4.,)))
    assert len(result['pilots'][f'{folder} at T = 4']) == 2


def test_report_of_teachers_of_different_sizes(teachers, tmp_path):
    model = timm.create_model('test_resnet', num_classes=4)
    other = str(sf_teacher.export(model, tmp_path / 'other', input_size=(3, 32, 32), mean=0.5, std=0.5))
    with pytest.raises(SFTeacherError, match=r'for images of \(3, 16, 16\) and \(3, 32, 32\): .*give input_size'):
        report(ReportRun(teachers=(teachers[0], other), student='test_resnet', output=str(tmp_path / 'out')))


def test_report_of_several_processes(teachers, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(SFTeacherError, match='a report is made by one process: start it without torchrun'):
        report(ReportRun(teachers=(teachers[0],), student='test_resnet', output=str(tmp_path / 'out')))


def test_every_teacher_has_a_bar_of_its_own(tmp_path, monkeypatch):
    row = {'top1': 50., 'cka': [{'value': 0.5}]}
    names = ['sgd/run/teacher', 'adam/run/teacher', 'student alone']
    bars = []
    barh = Axes.barh
    monkeypatch.setattr(Axes, 'barh', lambda self, y, *args, **kwargs: bars.extend(y) or barh(self, y, *args, **kwargs))
    teachers = {name: {} for name in names[:2]}
    report_figure({'student': 's', 'epochs': 1, 'pilots': {n: [row, row] for n in names}, 'teachers': teachers},
            tmp_path / 'figure.png')
    assert len(set(bars)) == 3


def test_features_that_are_constant_have_no_similarity_and_the_report_stays_json(teachers, tmp_path, monkeypatch):
    monkeypatch.setattr(pilots, 'linear_cka', lambda x, y: math.nan)
    data = str(runs.folder(tmp_path / 'data'))
    result = report(ReportRun(teachers=(teachers[0],), student='test_resnet', data=data, in_memory=True, batch_size=8,
                              epochs=1, seeds=2, device='cpu', output=str(tmp_path / 'out'), temperatures=(4.,)))

    def refuse(word):
        raise AssertionError(word)
    assert json.loads((tmp_path / 'out/report.json').read_text(), parse_constant=refuse)['pilots'] == result['pilots']
    assert 'n/a' in table(result) and (tmp_path / 'out/report.png').exists()


def test_students_get_their_images_as_their_teacher_does(teachers, tmp_path):
    data = str(runs.folder(tmp_path / 'data', size=24))
    common = dict(data=data, output='x', batch_size=8, epochs=1, workers=0, device='cpu')
    assert timm.get_pretrained_cfg('test_efficientnet').interpolation == 'bicubic'
    plan = plan_student(StudentRun(teacher=teachers[0], student='test_efficientnet', **common))
    for found in (resolve_data_config({}, model=load_teacher(teachers[0])), plan.data_config, vars(plan.config),
                  eval_model(plan.task).pretrained_cfg):
        assert (found['interpolation'], found['crop_pct']) == ('bilinear', 0.95)
    chosen = plan_student(StudentRun(teacher=teachers[0], student='test_resnet', interpolation='box', crop_pct=1.,
                                     **common))
    assert (chosen.data_config['interpolation'], chosen.data_config['crop_pct']) == ('box', 1.)
    assert eval_model(chosen.task).pretrained_cfg['interpolation'] == 'box'


def test_report_says_that_matplotlib_is_missing(teachers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(SFTeacherError, match='the figure needs matplotlib: pip install matplotlib'):
        report(ReportRun(teachers=(teachers[0],), student='test_resnet', output=str(tmp_path / 'out')))


def test_too_few_validation_images_are_refused_before_any_pilot(teachers, tmp_path):
    data = runs.folder(tmp_path / 'data', classes=3)
    for split in (data / 'validation').iterdir():
        for image in sorted(split.iterdir())[1:]:
            image.unlink()
    with pytest.raises(SFTeacherError, match=r'3 validation images are too few: .*give at least 4'):
        report(ReportRun(teachers=tuple(teachers), student='test_resnet', data=str(data), in_memory=True, batch_size=8,
                         epochs=1, device='cpu', output=str(tmp_path / 'out')))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('place', ['.', 'report'])
def test_a_report_is_not_written_into_an_exported_teacher(place, teachers, tmp_path):
    folder = sf_teacher.export(load_teacher(teachers[0]), tmp_path / 'teacher')
    before = sorted(folder.iterdir())
    with pytest.raises(SFTeacherError, match=r'cannot write to output=.*/teacher is an exported teacher, whose next'):
        report(ReportRun(teachers=(str(folder),), student='test_resnet', data=str(runs.folder(tmp_path / 'data')),
                         in_memory=True, batch_size=8, epochs=1, seeds=2, device='cpu', output=str(folder / place)))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize('text', ['{"seconds": 1.', '[1]', '{"kl": 1.}', '{"seconds": 1.}', ''])
def test_a_damaged_pilot_is_made_anew(text, tmp_path, caplog):
    path = tmp_path / 'pilots/0123.json'
    path.parent.mkdir()
    path.write_text(text)
    made = pilots.remembered(path, lambda: {'kl': 2.}, ('kl',))
    assert made['kl'] == 2. and made['seconds'] >= 0 and '0123.json is damaged: it is made anew' in caplog.text
    assert pilots.remembered(path, lambda: pytest.fail('made again'), ('kl',)) == made


def test_a_damaged_report_is_kept_under_another_name(tmp_path):
    (tmp_path / 'report.json').write_text('{"student":')
    _keep_earlier(tmp_path, {'student': 'test_resnet'})
    assert not (tmp_path / 'report.json').exists() and (tmp_path / 'report-1.json').read_text() == '{"student":'


def test_a_student_that_starts_otherwise_is_piloted_anew(teachers, tmp_path):
    student = sf_teacher.export(timm.create_model('test_resnet', num_classes=10), tmp_path / 'student',
                                input_size=(3, 32, 32))
    settings, data = StudentRun(student=f'local-dir:{student}'), load_data(DataConfig(data='digits'))
    keys = []
    for _ in range(2):
        made = pilots.Pilots(settings, data, None, tmp_path / 'out', teachers[0])
        keys += [made._key(pilots.Candidate(teachers[0], 4.), 1, 0) for _ in range(2)]
        sf_teacher.export(timm.create_model('test_resnet', num_classes=10), student, input_size=(3, 32, 32),
                          overwrite=True)
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_the_pilot_that_fails_is_named(teachers, tmp_path, monkeypatch):
    def diverge(*args):
        raise SFTeacherError('the loss is not finite')
    monkeypatch.setattr('sf_teacher.analysis.pilots.fit', diverge)
    with pytest.raises(SFTeacherError, match=r'student of \S+standard at T = 4, 1 epochs, seed 42: the loss is not'):
        report(ReportRun(teachers=(teachers[0],), student='test_resnet', data=str(runs.folder(tmp_path / 'data')),
                         in_memory=True, batch_size=8, epochs=1, seeds=2, device='cpu', temperatures=(4.,),
                         output=str(tmp_path / 'out')))


def test_teachers_that_see_other_parts_of_an_image_are_warned_of(teachers, tmp_path, caplog):
    model = timm.create_model('test_resnet', num_classes=4, pretrained_cfg_overlay={'crop_pct': 0.4})
    other = str(sf_teacher.export(model, tmp_path / 'other', input_size=runs.SIZE))
    config = ReportRun(teachers=(teachers[0], other), student='test_resnet', output=str(tmp_path / 'out'))
    _check(config, config.teachers)
    assert re.search(r'images of another crop_pct \(0\.4, 0\.95\), .* give crop_pct', caplog.text)
    caplog.clear()
    _check(replace(config, crop_pct=0.9), config.teachers)
    assert 'crop_pct' not in caplog.text
