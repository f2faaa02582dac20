"""Flags are made from the settings: all of them, in the documentation too, and back again through YAML."""
import runpy
from pathlib import Path

import pytest
import yaml

from sf_teacher import cli
from sf_teacher.analysis.settings import ReportRun
from sf_teacher.cli.app import parsers
from sf_teacher.cli.flags import key_value
from sf_teacher.cli.report import LEFT_OUT
from sf_teacher.training.settings import StudentRun, TeacherRun
from sf_teacher.training.settings_file import read_yaml, to_yaml
from sf_teacher.validation import from_dict

ROOT = Path(__file__).parents[2]
RUNS = {'train': TeacherRun, 'distill': StudentRun, 'report': ReportRun}


def test_the_documented_flags_are_those_of_the_parsers():
    script = runpy.run_path(str(ROOT / 'docs/make_flags.py'))
    assert (ROOT / 'docs/flags.md').read_text() == script['flags'](), 'run python docs/make_flags.py'


@pytest.mark.parametrize('command', RUNS)
def test_every_setting_has_a_flag_and_a_help_text(command):
    known = {action.dest: action.help for action in parsers()[1][command]._actions}
    left_out = LEFT_OUT if command == 'report' else ()
    for field in RUNS[command].__dataclass_fields__:
        assert field in left_out or len(known[field]) > 5, field


def test_every_flag_of_every_command_has_a_help_text():
    for name, parser in parsers()[1].items():
        for action in parser._actions:
            assert action.help, f'{name} {action.dest}'


@pytest.mark.parametrize('command', RUNS)
def test_a_printed_config_is_commented_and_taken_back(command, tmp_path, capsys):
    flags = ['--lr', '1e-3', '--input-size', '3', '8', '8', '--model-kwargs', 'drop_rate=0.1', '--amp',
             '--hflip', '0.5', '--data', "it's: #here"]
    flags += {'train': ['a', '--student', 'b', 'c', '--method', 'gtn'], 'distill': ['--student', '1'],
              'report': ['x', 'y', '--student', 'b']}[command]
    printed = []
    for arguments in (flags, ['--config', str(tmp_path / 'config.yaml')]):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, *arguments, '--print-config'])
        assert stop.value.code in (0, None)
        printed.append(capsys.readouterr().out)
        (tmp_path / 'config.yaml').write_text(printed[0])
    assert printed[0] == printed[1]
    lines = printed[0].splitlines()
    assert all(len(line) <= 120 for line in lines)
    values = read_yaml(tmp_path / 'config.yaml')
    assert values['lr'] == 1e-3 and values['amp'] is True and values['data'] == "it's: #here"
    assert from_dict(RUNS[command], values, 'it').input_size == (3, 8, 8)
    for name, field in RUNS[command].__dataclass_fields__.items():      # its help is above it
        if command == 'report' and name in LEFT_OUT:
            assert name not in values
            continue
        above = lines[next(i for i, line in enumerate(lines) if line.startswith(f'{name}: ')) - 1]
        assert above.startswith('# '), name
        assert field.metadata['help'].split()[0] in printed[0]


@pytest.mark.parametrize('cls', [TeacherRun, StudentRun])
def test_yaml_gives_back_the_config(cls, tmp_path):
    config = cls(teacher='a', data='7e10', output='1e5',
                 student=('b',) if cls is TeacherRun else 'b', input_size=(3, 8, 8), mean=(0.1,), lr=1e-3,
                 model_kwargs={'drop_rate': 0.1})
    (tmp_path / 'c.yaml').write_text(to_yaml(config))
    assert from_dict(cls, read_yaml(tmp_path / 'c.yaml'), 'c') == config
    assert yaml.safe_load(to_yaml(config))['student'] == (['b'] if cls is TeacherRun else 'b')


@pytest.mark.parametrize(('text', 'value'), [
    ('x=false', False), ('x=True', True), ('x=none', None), ('x=1e-3', 1e-3), ('x=gelu', 'gelu'), ('x=(1, 2)', (1, 2))])
def test_values_of_keys(text, value):
    assert key_value(text) == ('x', value)


def test_what_a_value_of_a_key_cannot_be():
    assert key_value('x=' + '(' * 10000)[1] == '(' * 10000       # as text, without exhausting the parser
