"""The command line as such: help, exit codes, what it says to beginners, and what it imports."""
import subprocess
import sys

import pytest

from sf_teacher import cli
from sf_teacher.cli.app import COMMANDS


def run(capsys, *words):
    """Exit code, output and errors of a command."""
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize('words', [['--help'], ['--version'], *([command, '--help'] for command in COMMANDS),
                                   ['train'], ['train', 'resnet18', '--lr', '0', '--print-config']], ids=' '.join)
def test_help_and_refusals_import_no_torch(words):
    code = f"""
import sys
from sf_teacher.cli import main
try:
    code = main({words!r})
except SystemExit as stop:
    code = stop.code
heavy = {{'torch', 'timm', 'numpy', 'PIL', 'torchvision', 'rich'}} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == (2 if words[0] == 'train' and '--help' not in words else 0), done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('command', COMMANDS)
def test_a_bare_command_explains_itself(command, capsys):
    code, out, err = run(capsys, command)
    assert code == 2 and not out
    assert err.startswith(f'sf-teacher {command}: ') and f'\n  sf-teacher {command} ' in err and '--help' in err
    assert 'error' not in err and 'required' not in err


def test_bare_sf_teacher_shows_its_commands(capsys):
    code, _, err = run(capsys)
    assert code == 2 and all(command in err for command in COMMANDS)


@pytest.mark.parametrize(('words', 'message'), [
    (['trian'], "sf-teacher: there is no command 'trian'; like it: train"),
    (['dance'], "there is no command 'dance'; there are inspect, train, distill"),
    (['train', 'resnet18', '--outptu', 'x'], 'sf-teacher train: --outptu x is not understood; like it: --output'),
    (['train', 'resnet18', '--lr'], 'sf-teacher train: argument --lr: expected one argument'),
    (['train', 'resnet18', '--lr', '0'], 'sf-teacher: --lr 0 must be a finite number > 0 and <= 100'),
    (['inspect', 'resnet18', '--num-classes', '-3'], 'sf-teacher: --num-classes -3 must be a whole number >= 1'),
    (['inspect', 'resnet18', '--input-size', '3', '0', '9'], '--input-size 3 0 9 must be a list of whole numbers >= 1'),
    (['inspect', 'resnet18', '--input-size', '3', '9'], '--input-size 3 9 must be three numbers, channels height'),
    (['export', 'a', 'b', '--model', 'resnet18', '--factory', 'm:f'], 'export takes --model for a model'),
    (['verify', '--tolerance', 'x', 'f'], "argument --tolerance: invalid float value: 'x'"),
])
def test_misuse_exits_with_2_in_one_line(words, message, capsys):
    code, out, err = run(capsys, *words)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not out


@pytest.mark.parametrize('words', [
    ['train', 'test_resnet', '--student', 'test_resnet', '--data', 'nowhere', '--output', 'run'],
    ['distill', '--student', 'test_resnet', '--data', 'nowhere', '--output', 'run'],
    ['verify', 'nowhere'], ['export', 'nowhere', 'there', '--model', 'test_resnet', '--num-classes', '3']],
    ids=lambda words: words[0])
def test_failures_exit_with_1_and_leave_nothing(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 1 and err.startswith('sf-teacher: ') and 'nowhere' in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('shell', ['bash', 'zsh'])
def test_completion_knows_commands_and_flags(shell, capsys):
    code, out, _ = run(capsys, '--print-completion', shell)
    assert code in (0, None) and '--student' in out and 'distill' in out
    if shell == 'bash':
        assert subprocess.run(['bash', '-n'], input=out, text=True).returncode == 0
