"""The names of the classes travel with the teacher, in order, to whoever can read them."""
import json

import pytest
import timm

from sf_teacher import SFTeacherError, cli, wrap
from sf_teacher.exporting.class_names import class_names_of
from sf_teacher.exporting.exported import load_teacher
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.verify import verify
from tests.exporting.folders import edit_config
from tests.helpers import build

NAMES = ['cat', 'dog', 'fish', 'bus', 'car', 'train', '10']


def test_they_come_back_in_order(tmp_path):
    folder = export(build(), tmp_path / 'teacher', class_names=NAMES)
    assert class_names_of(load_teacher(str(folder))) == NAMES
    assert class_names_of(timm.create_model(f'local-dir:{folder}', pretrained=True)) == NAMES
    assert verify(folder)['class_names'] == NAMES
    edit_config(folder, lambda config: config['label_names'].reverse())
    for refuse in (verify, load_teacher):
        with pytest.raises(SFTeacherError, match=r"config.json gives label_names \['10', .*, exported was \['cat'"):
            refuse(str(folder))


def test_transformers_reads_them(tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(export(build(), tmp_path / 'teacher', class_names=NAMES))
    assert list(config.id2label.values()) == NAMES and config.label2id == {name: i for i, name in enumerate(NAMES)}


def test_a_teacher_that_has_none_says_so(tmp_path):
    folder = export(build(), tmp_path / 'teacher')
    assert class_names_of(load_teacher(str(folder))) is None and verify(folder)['class_names'] is None
    assert 'label_names' not in json.loads((folder / 'config.json').read_text())


def test_a_model_that_was_loaded_keeps_them_unless_others_are_given(tmp_path):
    loaded = load_teacher(str(export(build(), tmp_path / 'first', class_names=NAMES)))
    assert class_names_of(load_teacher(str(export(loaded, tmp_path / 'second')))) == NAMES
    other = export(loaded, tmp_path / 'third', class_names=NAMES[::-1])
    assert class_names_of(load_teacher(str(other))) == NAMES[::-1]
    assert 'label_names' not in json.loads((other / 'config.json').read_text())['pretrained_cfg']
    loaded.reset_classifier(3)
    assert class_names_of(load_teacher(str(export(loaded, tmp_path / 'fourth')))) is None


def test_a_task_and_the_command_line_pass_them_on(tmp_path):
    task = wrap(build(), 'test_resnet', input_size=(3, 64, 64))
    folder = task.export(tmp_path / 'teacher', class_names=NAMES)
    assert class_names_of(load_teacher(str(folder))) == NAMES
    assert cli.main(['export', str(folder / 'teacher.pth'), str(tmp_path / 'again'), '--model', 'test_resnet',
                     '--num-classes', '7', '--class-names', *NAMES]) == 0
    assert class_names_of(load_teacher(str(tmp_path / 'again'))) == NAMES


def test_timms_forms_are_read():
    model = build()
    model.pretrained_cfg = {**model.pretrained_cfg, 'label_names': {str(i): name for i, name in enumerate(NAMES)}}
    assert class_names_of(model) == NAMES
    model.pretrained_cfg['label_names'] = NAMES[:3]     # of weights with other classes
    assert class_names_of(model) is None
