"""The rooms and the direction of their imports, as `[tool.importlinter]` of pyproject.toml has them."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINT = 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))'


def lint(folder):
    """Exit status and text; run in `folder`, whose own `sf_teacher` and `adapters` are looked at."""
    environment = {**os.environ, 'PYTHONPATH': str(folder)}
    done = subprocess.run([sys.executable, '-c', LINT], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_contract_is_kept():
    status, text = lint(ROOT)
    assert status == 0, text
    assert '0 broken' in text


@pytest.mark.parametrize(('file', 'line', 'broken'), [
    ('sf_teacher/split/pairing.py', 'from ..training import settings', 'rooms import downwards only'),
    ('sf_teacher/exporting/writer.py', 'from ..methods import get_method', 'exporting knows neither branches'),
    ('sf_teacher/data/batches.py', 'from ..training import checkpoint', 'rooms import downwards only'),
    ('adapters/_timm.py', 'from sf_teacher.training import settings', 'adapters use the public API'),
    ('sf_teacher/checks.py', 'from adapters import mdistiller', 'the package needs no adapter'),
])
def test_an_import_in_the_wrong_direction_is_found(tmp_path, file, line, broken):
    for name in ('sf_teacher', 'adapters'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    with open(tmp_path / file, 'a', encoding='utf-8') as source:
        source.write(f'\n{line}\n')
    status, text = lint(tmp_path)
    assert status == 1, text
    (found,) = [shown for shown in text.splitlines() if broken in shown and 'BROKEN' in shown]
    assert found


def test_a_new_module_must_be_given_its_place(tmp_path):
    for name in ('sf_teacher', 'adapters'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    (tmp_path / 'sf_teacher' / 'helpers.py').touch()
    status, text = lint(tmp_path)
    assert status == 1
    assert 'sf_teacher.helpers' in text


def test_every_module_can_be_imported_where_there_is_no_unix():
    """Windows has none of these modules."""
    code = """
import importlib, pkgutil, sys
for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'tty', 'pty', 'curses', 'posix_ipc', 'readline'):
    sys.modules[name] = None
import timm, torchdistill       # whose business is theirs
import sf_teacher, sf_teacher.adapters
packages = sf_teacher, sf_teacher.adapters
modules = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.')]
for name in modules:
    if name != 'sf_teacher.__main__':       # runs the command line
        importlib.import_module(name)
import torch
from sf_teacher.training.components import peak_memory
assert peak_memory(torch.device('cpu')) == 0.
print(len(modules))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 60
