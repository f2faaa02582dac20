import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sf_teacher.cli.train import settings
from sf_teacher.training.settings import ReportRun, StudentRun, TeacherRun

ROOT = Path(__file__).parents[2]
COMMANDS = [(path.name, line) for path in sorted((ROOT / 'docs').glob('*.md'))
            for line in re.findall(
                r'^(?:sf-teacher|torchrun .*-m sf_teacher) (?:train|distill|report) .*',
                path.read_text(), re.M)]
COMMANDS = [(name, re.sub(r'^torchrun .*-m sf_teacher', 'sf-teacher', line)) for name, line in COMMANDS]


@pytest.fixture(scope='module')
def script():
    return runpy.run_path(str(ROOT / 'docs/make_flags.py'))


def test_flags_are_those_of_the_parser(script):
    assert (ROOT / 'docs/flags.md').read_text() == script['flags'](), 'run python docs/make_flags.py'


def test_every_setting_has_a_flag_and_a_help_text(script):
    for name, cls in (('train', TeacherRun), ('distill', StudentRun)):
        known = {action.dest: action.help for action in script['commands']()[name]._actions}
        for field in cls.__dataclass_fields__:
            assert len(known[field]) > 5, field


@pytest.mark.parametrize(('page', 'command'), COMMANDS, ids=[f'{n}-{i}' for i, (n, _) in enumerate(COMMANDS)])
def test_commands_in_the_documentation_parse(page, command, script):
    _, name, *args = shlex.split(command, comments=True)
    args = script['commands']()[name].parse_args(args)
    args.config = None
    settings(args, {'train': TeacherRun, 'distill': StudentRun, 'report': ReportRun}[name])


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 12


def test_the_overhead_benchmark_runs(monkeypatch, capsys):
    args = '--teacher test_resnet --student test_resnet --size 16 --batch-size 8 --steps 2 --rounds 2 --device cpu'
    monkeypatch.setattr(sys, 'argv', ['loop_overhead.py', *args.split()])
    runpy.run_path(str(ROOT / 'examples/benchmarks/loop_overhead.py'), run_name='__main__')
    assert {'bare_ms_a_step', 'loop_ms_a_step', 'overhead_percent'} <= json.loads(capsys.readouterr().out).keys()


def test_the_tour_runs(tmp_path):
    """As plain Python in a fresh process; needs no Jupyter."""
    cells = json.loads((ROOT / 'examples/sft_tour.ipynb').read_text())['cells']
    code = '\n\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
    (tmp_path / 'tour.py').write_text(code)
    done = subprocess.run([sys.executable, 'tour.py'], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert 'logits equal: True' in done.stdout and done.stdout.count('student of') == 2
