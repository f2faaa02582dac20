"""Longer pages do what they say: usage.md runs, the YAML of torchdistill.md is read, measured tables are current.

The blocks are executed as they stand, top to bottom in one namespace, in an empty folder; exports are checked in this
process, where README's are checked in a fresh one.
"""
import contextlib
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml

import sf_teacher.cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)


def blocks(page):
    """Line, language and text of each."""
    text = (DOCS / page).read_text(encoding='utf-8')
    return [(text[:m.start(2)].count('\n'), m[1], m[2]) for m in FENCE.finditer(text)]


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
    """The folder and the namespace that the Python blocks leave."""
    folder, namespace = tmp_path_factory.mktemp('usage'), {}
    with contextlib.chdir(folder):
        for line, language, text in blocks('usage.md'):
            if language == 'python':
                code = compile('\n' * line + text, str(DOCS / 'usage.md'), 'exec')     # tracebacks name its lines
                exec(code, namespace)
    return folder, namespace


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for _, language, _ in blocks('usage.md')} == {'python', 'sh'}
    assert (DOCS / 'usage.md').read_text(encoding='utf-8').count('```') == 2 * len(blocks('usage.md'))


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
    lines = [line for _, language, text in blocks('usage.md') if language == 'sh' for line in text.splitlines()]
    calls = [shlex.split(line) for line in lines if line.startswith('sf-teacher ')]
    assert calls
    for call in calls:
        assert sf_teacher.cli.main(call[1:]) == 0, capsys.readouterr().err


def test_yaml_blocks_are_torchdistill_configs_with_known_keys(executed):
    folder, _ = executed
    texts = [text for _, language, text in blocks('toolboxes/torchdistill.md') if language == 'yaml']
    ours, theirs = (yaml.safe_load(text) for text in texts if re.search('^models:', text, re.M))     # whole configs
    pytest.importorskip('torchdistill')
    from torchdistill.common.main_util import import_dependencies, load_ckpt
    from torchdistill.models.official import get_image_classification_model
    from torchdistill.models.registry import get_model
    with contextlib.chdir(folder):
        import_dependencies(ours['dependencies'])
        config = ours['models']['teacher_model']
        assert get_image_classification_model(config) is None       # no torchvision name, so the registry is asked
        teacher = get_model(config['key'], **config['kwargs'])
        config = theirs['models']['teacher_model']
        twin = get_image_classification_model(config)               # as torchdistill's scripts do
        load_ckpt(config['src_ckpt'], model=twin)
    assert twin.training and not teacher.training                   # as the page warns
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(twin.eval()(x), teacher(x))


def test_measured_table_has_the_rows_that_the_quickstart_prints():
    printed, *_ = [text for _, language, text in blocks('results.md') if language == 'text']
    rows = [line for line in printed.splitlines() if '±' in line]
    names = ['standard teacher', 'student-friendly (SFTN)']
    source = (ROOT / 'examples' / 'quickstart.py').read_text()
    assert [re.split(r'  +', row)[0] for row in rows] == names
    assert all(f"'{name}': (" in source for name in names)
    difference = re.compile(r'minus standard: [+-]\d+\.\d\d points, 95 % interval \S+ to \S+, paired over seeds$')
    assert len([line for line in printed.splitlines() if difference.search(line)]) == 2
