"""What is installed, seen from outside the checkout: by a wheel in a clean environment, and by the editable install."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from sf_teacher.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
DISTRIBUTIONS = {'PIL': 'pillow', 'sklearn': 'scikit-learn', 'yaml': 'pyyaml'}     # where the import's name differs
SOURCES = ('pyproject.toml', 'setup.cfg', 'README.md', 'LICENSE', 'sf_teacher', 'adapters')

LOOK = """
import importlib.util, json, pathlib
import sf_teacher, sf_teacher.adapters
print(json.dumps({
    'package': sf_teacher.__file__,
    'adapters': sf_teacher.adapters.__file__,
    'top-level adapters': importlib.util.find_spec('adapters') is not None,
    'version': sf_teacher.__version__,
    'typed': (pathlib.Path(sf_teacher.__file__).parent / 'py.typed').is_file(),
}))
"""


def run(*command, cwd, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'PYTHONHOME')}
    done = subprocess.run(command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f'{command} failed:\n{done.stdout}\n{done.stderr}'
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools leaves its build folder and egg-info beside the sources."""
    copy, out = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('wheel')
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, copy / name)
    run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', str(out), '.', cwd=copy)
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def clean(wheel, tmp_path_factory):
    """An environment of its own with the wheel in it and nothing else."""
    environment = tmp_path_factory.mktemp('clean')
    venv.create(environment, with_pip=False, symlinks=True)
    run(
        sys.executable, '-m', 'pip', '--python', str(environment / 'bin' / 'python'), 'install', '--no-deps',
        '--no-index', '--disable-pip-version-check', str(wheel), cwd=environment,
    )
    return environment


def test_wheel_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f'sf_teacher-{__version__}.dist-info/METADATA').decode()
    assert wheel.name.startswith(f'sf_teacher-{__version__}-py3-none-any')
    assert f'\nVersion: {__version__}\n' in metadata
    assert {name.partition('/')[0] for name in names} == {'sf_teacher', f'sf_teacher-{__version__}.dist-info'}
    assert {'sf_teacher/py.typed', 'sf_teacher/__init__.py', 'sf_teacher/adapters/__init__.py'} <= set(names)
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'sf_teacher').rglob('*.py')}
    sources |= {f'sf_teacher/{path.relative_to(ROOT).as_posix()}' for path in (ROOT / 'adapters').rglob('*.py')}
    assert {name for name in names if name.endswith('.py')} == sources


def test_wheel_in_a_clean_environment(clean, tmp_path):
    # PYTHONPATH lends the third-party packages; unlike a site folder it runs no .pth file, so no editable install
    site = os.pathsep.join(path for path in sys.path if Path(path).name == 'site-packages')
    found = json.loads(run(str(clean / 'bin' / 'python'), '-c', LOOK, cwd=tmp_path, PYTHONPATH=site))
    assert Path(found['package']).is_relative_to(clean) and Path(found['adapters']).is_relative_to(clean)
    assert Path(found['adapters']).parent == Path(found['package']).parent / 'adapters'
    assert found['version'] == __version__ and found['typed'] and not found['top-level adapters']
    help_text = run(str(clean / 'bin' / 'sf-teacher'), '--help', cwd=tmp_path, PYTHONPATH=site)
    assert 'usage: sf-teacher' in help_text and 'verify' in help_text


def test_this_environment(tmp_path):
    """The editable install, where the tests run from one."""
    found = json.loads(run(sys.executable, '-c', LOOK, cwd=tmp_path))
    assert found['version'] == __version__ and found['typed'] and not found['top-level adapters']
    if Path(found['package']).is_relative_to(ROOT):
        assert Path(found['adapters']) == ROOT / 'adapters' / '__init__.py'
    assert (Path(sysconfig.get_path('scripts')) / 'sf-teacher').is_file()


def declared(*extras):
    """Distributions by `dependencies` and these extras, our own extras resolved."""
    found = set()
    for requirement in [*(PROJECT['dependencies']), *(r for e in extras for r in PROJECT['optional-dependencies'][e])]:
        name, _, rest = re.match(r'([\w.-]+)(\[([\w,-]+)\])?', requirement).group(1, 2, 3)
        found |= declared(*rest.split(',')) if name == PROJECT['name'] else {name.lower().replace('_', '-')}
    return found


def imported(folder, deferred):
    """Distributions imported below `folder`, with those inside functions and `if` blocks where `deferred`."""
    own = {'sf_teacher', 'tests', 'own_models', 'like_mdistiller', 'like_repdistiller'}     # written by tests
    if folder in ('examples', 'tests'):
        own |= {path.stem for path in (ROOT / 'examples').rglob('*.py')}       # scripts beside each other
    found = {}
    for path in (ROOT / folder).rglob('*.py'):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in ast.walk(tree) if deferred else tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in {name.partition('.')[0] for name in names} - sys.stdlib_module_names - own:
                found.setdefault(DISTRIBUTIONS.get(name, name).lower().replace('_', '-'), []).append(path.name)
    return found


@pytest.mark.parametrize(('folder', 'deferred', 'extras'), [
    ('sf_teacher', False, ()),      # what importing a module of ours needs is always installed
    ('sf_teacher', True, PROJECT['optional-dependencies']),
    ('adapters', True, ('torchdistill',)),
    ('examples', True, ('examples', 'torchdistill')),
    ('docs', True, ('test',)),
    ('tests', True, ('test',)),
])
def test_every_direct_import_is_declared(folder, deferred, extras):
    found = imported(folder, deferred)
    assert 'timm' in found and (folder != 'adapters' or 'torchdistill' in found)
    assert not {name: files for name, files in found.items() if name not in declared(*extras)}


def test_extras_lead_somewhere():
    assert {'scikit-learn', 'torchdistill', 'pytest', 'ruff'} <= declared('dev')
    assert 'torchdistill' not in declared('examples') and 'matplotlib' not in declared()
