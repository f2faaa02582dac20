"""The README does what it says: its Python runs, its commands are those of CI and of the package, its YAML is read.

Nothing is substituted: the blocks are executed as they stand, top to bottom in one namespace, in an empty folder.
"""
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import timm
import torch
import yaml

import sf_teacher.cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
BLOCKS = [(README[:m.start(2)].count('\n'), m[1], m[2]) for m in FENCE.finditer(README)]     # line, language, text


def blocks(language):
    return [text for _, found, text in BLOCKS if found == language]


def commands():
    """Every shell line, split at `&&`."""
    lines = [line for text in blocks('sh') for line in text.splitlines() if line and not line.startswith('#')]
    return [[part.strip() for part in line.split('&&')] for line in lines]


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
    """The folder and the namespace that the Python blocks leave."""
    folder, before = tmp_path_factory.mktemp('readme'), os.getcwd()
    os.chdir(folder)
    namespace = {}
    try:
        for line, language, text in BLOCKS:
            if language == 'python':
                code = compile('\n' * line + text, str(ROOT / 'README.md'), 'exec')    # tracebacks name README's lines
                exec(code, namespace)
    finally:
        os.chdir(before)
    return folder, namespace


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for _, language, _ in BLOCKS} == {'python', 'sh', 'yaml', 'text'}
    assert README.count('```') == 2 * len(BLOCKS)


def test_python_blocks_run_and_leave_an_exported_teacher(executed):
    folder, names = executed
    exported = folder / 'exported' / 'resnet50-sft'
    reloaded = timm.create_model(f'local-dir:{exported}', pretrained=True).eval()
    assert torch.equal(reloaded(names['images']), names['task'].teacher.eval()(names['images']))
    reloaded.load_state_dict(names['state'])        # of teacher.pth, strict
    assert all(p.grad is not None for p in names['own'].teacher.parameters())
    assert sf_teacher.verify(folder / 'exported' / 'own', factory='torchvision.models:resnet18')['bit_equal']
    assert all(p.grad is None for p in names['teacher'].parameters())


def test_command_line_calls_run(executed, capsys, monkeypatch):
    folder, _ = executed
    monkeypatch.chdir(folder)
    calls = [shlex.split(part) for line in commands() for part in line if part.startswith('sf-teacher ')]
    assert calls
    for call in calls:
        assert sf_teacher.cli.main(call[1:]) == 0, capsys.readouterr().err


def test_two_commands_set_everything_up_from_git_and_python():
    start = ['git clone', 'cd sf_teacher', 'python3 -m venv .venv', '.venv/bin/pip install -e ', '']
    setups = [line for line in commands() if line[0].startswith('git clone')]
    assert len(setups) == 2
    for line in setups:
        assert len(line) == len(start)
        assert all(part.startswith(expected) for part, expected in zip(line, start, strict=True))
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    assert all(re.search(r'"\.\[(\w+)\]"$', line[3])[1] in extras for line in setups)
    quickstart, tests = setups
    assert quickstart[4] == '.venv/bin/python examples/quickstart.py'
    assert (ROOT / 'examples' / 'quickstart.py').is_file()
    # the tests' command is what CI runs: the same installation, the same pytest, the same threads
    ci = (ROOT / '.ci' / 'run').read_text()
    ci = ci.replace('install --quiet --disable-pip-version-check', 'install')
    ci = ci.replace('"$venv/bin/pip"', '.venv/bin/pip')
    threads, pytest_command = tests[4].split(' ', 1)
    assert tests[3] in ci
    assert f'export {threads}' in ci
    assert pytest_command in ci.replace('"$venv/bin/pytest"', '.venv/bin/pytest')


def test_yaml_blocks_are_torchdistill_configs_with_known_keys(executed):
    folder, _ = executed
    ours, theirs = map(yaml.safe_load, blocks('yaml'))
    pytest.importorskip('torchdistill')
    from torchdistill.common.main_util import import_dependencies, load_ckpt
    from torchdistill.models.official import get_image_classification_model
    from torchdistill.models.registry import get_model
    before = os.getcwd()
    os.chdir(folder)
    try:
        import_dependencies(ours['dependencies'])
        config = ours['models']['teacher_model']
        assert get_image_classification_model(config) is None       # no torchvision name, so the registry is asked
        teacher = get_model(config['key'], **config['kwargs'])
        config = theirs['models']['teacher_model']
        twin = get_image_classification_model(config)               # as torchdistill's scripts do
        load_ckpt(config['src_ckpt'], model=twin)
    finally:
        os.chdir(before)
    assert twin.training and not teacher.training                   # as the README warns
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(twin.eval()(x), teacher(x))


def test_measured_table_has_the_rows_and_the_verdicts_that_the_quickstart_prints():
    (printed,) = blocks('text')
    rows = [line for line in printed.splitlines() if '±' in line and '->' not in line]
    names = ['student alone', 'standard teacher', 'student-friendly (SFTN)']
    source = (ROOT / 'examples' / 'quickstart.py').read_text()
    assert [re.split(r'  +', row)[0] for row in rows] == names
    assert all(name in source for name in names)
    verdict = re.compile(r': [+-]\d+\.\d\d points \(95 % interval .* paired over seeds\): (gain|loss|no gain.*)$')
    assert len([line for line in printed.splitlines() if verdict.search(line)]) == 3


def test_links_lead_somewhere():
    links = [link for link in re.findall(r'\]\(([^)]+)\)', README) if not link.startswith('http')]
    assert links
    for path, _, heading in (link.partition('#') for link in links):
        path = path or 'README.md'
        assert (ROOT / path).exists(), path
        if heading:
            titles = re.findall(r'^#+ (.*)', (ROOT / path).read_text(encoding='utf-8'), re.M)
            assert heading in [title.lower().replace(' ', '-') for title in titles]


