import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from sf_teacher.analysis.settings import ReportRun
from sf_teacher.cli.app import parsers
from sf_teacher.cli.flags import settings
from sf_teacher.training.settings import StudentRun, TeacherRun

ROOT = Path(__file__).parents[2]
COMMANDS = [(path.name, line) for path in sorted((ROOT / 'docs').rglob('*.md'))
            for line in re.findall(
                r'^(?:sf-teacher|torchrun .*-m sf_teacher) (?:train|distill|report) .*',
                path.read_text(), re.M)]
COMMANDS = [(name, re.sub(r'^torchrun .*-m sf_teacher', 'sf-teacher', line)) for name, line in COMMANDS]


@pytest.mark.parametrize(('page', 'command'), COMMANDS, ids=[f'{n}-{i}' for i, (n, _) in enumerate(COMMANDS)])
def test_commands_in_the_documentation_parse(page, command):
    args = parsers()[0].parse_args(shlex.split(command, comments=True)[1:])
    args.config = None
    with settings(args, {'train': TeacherRun, 'distill': StudentRun, 'report': ReportRun}[args.command]) as config:
        assert config.data or config.dataset or config.resume


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 12


def test_the_overhead_benchmark_runs(monkeypatch, capsys):
    args = '--teacher test_resnet --student test_resnet --size 16 --batch-size 8 --steps 2 --rounds 2 --device cpu'
    monkeypatch.setattr(sys, 'argv', ['loop_overhead.py', *args.split()])
    runpy.run_path(str(ROOT / 'examples/benchmarks/loop_overhead.py'), run_name='__main__')
    assert {'bare_ms_a_step', 'loop_ms_a_step', 'overhead_percent'} <= json.loads(capsys.readouterr().out).keys()
