"""Labels mean the same for a teacher and for the data that a student learns from."""
import json
import logging
import pickle
import re
import shutil
from pathlib import Path

import pytest
import timm

from sf_teacher import SFTeacherError, cli
from sf_teacher.analysis.report import report
from sf_teacher.analysis.settings import ReportRun
from sf_teacher.data.datasets import load_data
from sf_teacher.data.settings import DataConfig
from sf_teacher.exporting.exporter import export
from sf_teacher.training.planning import plan_student, plan_teacher
from sf_teacher.training.runs import train_teacher
from sf_teacher.training.settings import StudentRun, TeacherRun

from . import training_runs as runs

COMMON = dict(input_size=runs.SIZE, batch_size=8, device='cpu', in_memory=True)


def renamed(root, *names):
    """A data set whose classes are called like this."""
    runs.folder(root)
    for split in ('train', 'validation'):
        for i, name in enumerate(names):
            (root / split / f'class{i}').rename(root / split / name)
    return root


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A teacher of cats, dogs, fish and owls, as `train` exports it."""
    root = tmp_path_factory.mktemp('trained')
    renamed(root / 'data', 'cat', 'dog', 'fish', 'owl')
    assert cli.main(['train', 'test_resnet', '--method', 'none', '--data', str(root / 'data'),
                     '--input-size', '3', '16', '16', '--batch-size', '8', '--epochs', '1', '--device', 'cpu',
                     '--in-memory', '--output',
                     str(root / 'run')]) == 0
    return root / 'run/teacher'


def student(trained, data, **kwargs):
    return plan_student(StudentRun(teacher=str(trained), student='test_resnet', data=str(data), **COMMON, **kwargs))


def test_the_exported_folder_names_the_classes_of_the_data(trained):
    config = json.loads((trained / 'config.json').read_text())
    names = config.get('label_names') or config['pretrained_cfg'].get('label_names')
    assert (list(names.values()) if isinstance(names, dict) else names) == ['cat', 'dog', 'fish', 'owl']


def test_the_same_classes_are_taken(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert student(trained, renamed(tmp_path / 'd', 'cat', 'dog', 'fish', 'owl')).data.num_classes == 4
    assert 'cannot be checked' not in caplog.text


def test_other_classes_are_refused(trained, tmp_path):
    data = renamed(tmp_path / 'd', 'bus', 'car', 'owl', 'train')
    message = 'has other classes than the data: cat, dog, fish against bus, car, train; give the data .*class_map'
    with pytest.raises(SFTeacherError, match=message):
        student(trained, data)
    with pytest.raises(SFTeacherError, match=message):
        plan_teacher(TeacherRun(teacher=f'local-dir:{trained}', method='none', data=str(data), **COMMON))


def test_another_order_is_refused_and_can_be_mapped(trained, tmp_path):
    data = renamed(tmp_path / 'd', 'cat', 'dog', 'fish', 'owl')
    (tmp_path / 'other.txt').write_text('dog\ncat\nfish\nowl\n')
    with pytest.raises(SFTeacherError, match="of the data in another order: class 0 is 'cat' there and 'dog' in"):
        student(trained, data, class_map=str(tmp_path / 'other.txt'))
    (tmp_path / 'map.txt').write_text('cat\ndog\nfish\nowl\n')
    assert student(trained, data, class_map=str(tmp_path / 'map.txt')).data.class_names == ['cat', 'dog', 'fish', 'owl']


def test_a_report_refuses_another_order_before_any_student_is_trained(trained, tmp_path, monkeypatch):
    data = renamed(tmp_path / 'd', 'cat', 'dog', 'fish', 'owl')
    (tmp_path / 'other.txt').write_text('dog\ncat\nfish\nowl\n')
    monkeypatch.setattr('sf_teacher.analysis.pilots.fit', lambda *args: pytest.fail('a student was trained'))
    config = dict(teachers=(str(trained),), student='test_resnet', data=str(data), seeds=2, epochs=1, **COMMON)
    with pytest.raises(SFTeacherError, match="of the data in another order: class 0 is 'cat' there and 'dog' in"):
        report(ReportRun(**config, class_map=str(tmp_path / 'other.txt'), output=str(tmp_path / 'out')))
    assert not (tmp_path / 'out').exists()
    assert cli.main(['report', str(trained), '--student', 'test_resnet', '--data', str(data), '--in-memory', '--output',
                     str(tmp_path / 'out'), '--device', 'cpu', '--class-map', str(tmp_path / 'other.txt')]) == 1
    assert not (tmp_path / 'out').exists()


def test_numbered_folders_in_the_order_of_torchvision_are_mapped(tmp_path):
    """timm sorts folders 1, 2, 3, 10 by number, torchvision by letter: 1, 10, 2, 3."""
    theirs = ['1', '10', '2', '3']
    data = renamed(tmp_path / 'd', '1', '2', '3', '10')
    model = timm.create_model('test_resnet', num_classes=4)
    teacher = export(model, tmp_path / 'teacher', input_size=runs.SIZE, class_names=theirs)
    with pytest.raises(SFTeacherError, match=r"another order: class 1 is '10' there and '2' in the data; .*class_map"):
        student(teacher, data)
    (tmp_path / 'map.txt').write_text('\n'.join(theirs) + '\n')
    mapping = {'class_map': str(tmp_path / 'map.txt')}
    plan = student(teacher, data, **mapping)
    for split in (plan.data.train, plan.data.validation):
        assert len(split.reader.samples) == 24
        assert all(theirs[label] == Path(path).parent.name for path, label in split.reader.samples)
    assert plan.data.class_names == theirs      # and those of the student that is exported
    for arguments, message in (({}, 'in another order'), (mapping, None)):
        config = ReportRun(teachers=(str(teacher),), student='test_resnet', data=str(data), output=str(tmp_path / 'r'),
                           seeds=2, epochs=1, temperatures=(4.,), **COMMON, **arguments)
        if message:
            with pytest.raises(SFTeacherError, match=message):
                report(config)
        else:
            assert report(config)['recommendation']['teacher'] == str(teacher)


def test_what_cannot_be_checked_is_said(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = json.loads((trained / 'config.json').read_text())
    data = load_data(DataConfig(data=str(renamed(tmp_path / 'd', 'cat', 'dog', 'fish', 'owl'))))
    data.class_names = None
    plan_student(StudentRun(teacher=str(trained), student='test_resnet', data='x', **COMMON), data)
    assert 'the data hold no names of classes: whether its classes have the order of the labels cannot be checked' \
        in caplog.text and config


def test_several_names_of_a_class_are_no_names(tmp_path):
    (tmp_path / 'data').mkdir()
    root = renamed(tmp_path / 'data', 'a', 'b', 'c', 'd')
    (root / 'map.pkl').write_bytes(__import__('pickle').dumps({'a': 0, 'b': 1, 'c': 1, 'd': 2}))
    data = load_data(DataConfig(data=str(root), class_map=str(root / 'map.pkl')))
    assert data.num_classes == 3 and data.class_names is None
    assert load_data(DataConfig(data='digits')).class_names == [str(i) for i in range(10)]


@pytest.mark.parametrize('scheme', ['local-dir:', 'Local-Dir:'])
def test_other_classes_are_refused_of_a_teacher_that_is_trained_on(scheme, trained, tmp_path):
    data = renamed(tmp_path / 'd', 'ant', 'bee', 'cat', 'dog')
    with pytest.raises(SFTeacherError, match='has other classes than the data: fish, owl against ant, bee'):
        plan_teacher(TeacherRun(teacher=f'{scheme}{trained}', method='none', data=str(data), **COMMON))


def test_names_of_the_weights_that_a_training_starts_from_are_not_those_of_its_data(trained, tmp_path, caplog):
    root = renamed(tmp_path / 'd', 'a', 'b', 'c', 'd')
    (root / 'map.pkl').write_bytes(pickle.dumps({'a': 0, 'b': 1, 'c': 2, 'd': 3, 'another d': 3}))
    start = dict(teacher=f'local-dir:{trained}', method='none', data=str(root), output=str(tmp_path / 'run'), epochs=1)
    _, folder = train_teacher(TeacherRun(**start, class_map=str(root / 'map.pkl'), **COMMON))
    config = json.loads((folder / 'config.json').read_text())
    assert not config.get('label_names') and not config['pretrained_cfg'].get('label_names')
    fewer = renamed(tmp_path / 'e', 'a', 'b', 'c', 'd')
    for split in ('train', 'validation'):
        shutil.rmtree(fewer / split / 'd')
    plan_teacher(TeacherRun(**{**start, 'data': str(fewer)}, **COMMON))
    assert re.search(r'in local-dir:\S+ has 4 classes and the data 3: its classifier is a new one', caplog.text)


def test_the_trained_student_of_aid_has_the_classes_of_the_data(trained, tmp_path):
    data = renamed(tmp_path / 'd', 'a', 'b', 'c', 'd')
    nameless = export(timm.create_model('test_resnet', num_classes=4), tmp_path / 'teacher', input_size=runs.SIZE)
    with pytest.raises(SFTeacherError, match=r'the student in local-dir:\S+ has other classes than the data: cat, dog'):
        plan_teacher(TeacherRun(teacher=f'local-dir:{nameless}', student=(f'local-dir:{trained}',), method='aid',
                                data=str(data), **COMMON))
