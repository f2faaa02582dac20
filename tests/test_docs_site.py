"""The site is built without a warning, its Python runs, and its picture is that of the script."""
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mkdocs.exceptions import PluginError

import sf_teacher

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'
# their Python runs as it stands, in this order, in one folder; usage.md runs in test_docs_pages.py, and blocks of other
# pages are for another program's files
EXECUTED = ['index.md', 'concepts.md', 'toolboxes/index.md', *(f'methods/{p.name}' for p in DOCS.glob('methods/*.md'))]


def build(folder, out):
    """Exit status and what was printed."""
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, 'NO_COLOR': '1'})
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')
    status, text = build(ROOT, out)
    assert status == 0, text
    return out


def test_every_page_is_built_and_the_reference_has_the_public_names(site):
    for page in DOCS.rglob('*.md'):
        assert (site / page.relative_to(DOCS).with_suffix('.html')).is_file()
    reference = ''.join(path.read_text(encoding='utf-8') for path in (site / 'api').glob('*.html'))
    for name in set(sf_teacher.__all__) - {'__version__'}:
        assert f'id="sf_teacher.{name}"' in reference
    assert 'Attach student branches to a teacher' in reference      # docstrings, not only names


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        assert not re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(?:https?:)?//(?!sf_teacher)[^"]*"', text), page


def test_a_broken_link_and_a_page_without_a_place_fail_the_build(tmp_path):
    shutil.copytree(DOCS, tmp_path / 'docs')
    shutil.copy(ROOT / 'mkdocs.yml', tmp_path)
    for name in ('sf_teacher', 'adapters', 'examples', 'CHANGELOG.md', 'CONTRIBUTING.md', 'README.md'):
        (tmp_path / name).symlink_to(ROOT / name)
    with open(tmp_path / 'docs/concepts.md', 'a', encoding='utf-8') as page:
        page.write('\n[heading](methods.md#no-such-heading)\n')
    (tmp_path / 'docs/lost.md').write_text('# Lost\n')
    status, text = build(tmp_path, tmp_path / 'site')
    assert status != 0
    assert 'no-such-heading' in text and 'lost.md' in text


def test_a_link_to_a_missing_file_of_the_repository_fails_the_build():
    page = SimpleNamespace(file=SimpleNamespace(src_uri='methods/sftn.md'))
    config = SimpleNamespace(docs_dir=str(DOCS), repo_url=None)
    rewrite = runpy.run_path(str(DOCS / 'hooks.py'))['on_page_markdown']
    assert rewrite('[a](../../pyproject.toml) [b](teskd.md#x)', page=page, config=config) \
        == 'a (`pyproject.toml`) [b](teskd.md#x)'
    assert rewrite('[r](../../examples/cifar100/RESULTS.md)', page=page, config=config) == '[r](../results/cifar100.md)'
    assert rewrite('![f](../../examples/cifar100/figures/cpu.png)', page=page, config=config) \
        == '![f](../results/figures/cpu.png)'
    with pytest.raises(PluginError, match=r'docs/methods/sftn\.md: .*leads to gone\.py, which is not in'):
        rewrite('[a](../../gone.py)', page=page, config=config)
    config.repo_url = 'https://example.org/x/'
    assert rewrite('[a](../../setup.cfg)', page=page, config=config) == '[a](https://example.org/x/blob/main/setup.cfg)'


@pytest.mark.fresh_check
def test_python_of_the_pages_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for name in EXECUTED:
        text = (DOCS / name).read_text(encoding='utf-8')
        namespace: dict = {}
        for match in re.finditer(r'^```python\n(.*?)^```$', text, re.M | re.S):
            exec(compile('\n' * text[:match.start(1)].count('\n') + match[1], str(DOCS / name), 'exec'), namespace)
            ran += 1
    assert ran >= 7 and (tmp_path / 'exported/teacher/model.safetensors').is_file()


def test_every_method_page_says_how_sure_its_details_are():
    pages = list(DOCS.glob('methods/*.md'))
    assert len(pages) >= 4
    for page in pages:
        text = page.read_text(encoding='utf-8')
        tags = re.findall(r'\| ([\w ]+) \|$', text.split('## How sure each detail is')[1], re.M)
        assert set(tags) - {'how sure'} <= {'code', 'abstract', 'reported', 'ours'} and len(tags) >= 3, page
        assert '**When to use it**' in text and '```sh\nsf-teacher ' in text, page


def test_the_table_of_methods_is_that_of_the_registry_and_each_has_a_page():
    script = runpy.run_path(str(DOCS / 'make_methods.py'))
    assert (DOCS / 'methods.md').read_text(encoding='utf-8') == script['page'](), 'run python docs/make_methods.py'
    table, pages = script['table'](), {path.stem for path in DOCS.glob('methods/*.md')}
    assert pages == {path.stem for path in (ROOT / 'sf_teacher/methods').glob('[!_]*.py')} - {'base', 'registry'}
    assert all(f'| `{key}` | [' in table and f'(methods/{key}.md)' in table for key in pages)


def test_the_picture_is_that_of_the_script():
    pictures = runpy.run_path(str(DOCS / 'make_diagram.py'))['pictures']()
    assert {path.stem for path in pictures} == {'branched_teacher-light', 'branched_teacher-dark'}
    for path, text in pictures.items():
        assert path.read_text(encoding='utf-8') == text, 'run python docs/make_diagram.py'


def test_the_table_of_contents_names_no_page_twice():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for value in (entry.values() if isinstance(entry, dict) else entry) for page in pages(value)]

    nav = pages(yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))['nav'])
    assert len(nav) == len(set(nav)) >= 20


def test_messages_of_the_troubleshooting_page_are_messages_of_the_code():
    page = (DOCS / 'troubleshooting.md').read_text(encoding='utf-8')
    messages = re.findall(r'^### `(.+)`$', page, re.M)
    files = [path for room in ('sf_teacher', 'adapters') for path in (ROOT / room).rglob('*.py')]
    code = '\n'.join(path.read_text(encoding='utf-8') for path in files)
    code = re.sub(r"'\s*\n\s*f?'", '', code)       # strings that are continued on the next line
    theirs = {'is not expected'}        # torchdistill's
    assert len(messages) >= 12
    assert not [message for message in messages if message not in code and message not in theirs]
