"""The tour is a notebook that runs from its first cell to its last, and shows what it prints."""
import ast
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
TOUR = ROOT / 'examples' / 'sft_tour.ipynb'
pytestmark = pytest.mark.slow


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def printed(cell):
    return ''.join(output.text for output in cell.outputs if output.get('name') == 'stdout')


@pytest.fixture(scope='module')
def tours(tmp_path_factory):
    """The notebook as it is committed, and as it comes out of a kernel in an empty folder."""
    committed, run = nbformat.read(TOUR, 4), nbformat.read(TOUR, 4)
    for cell in code(run):
        cell.outputs, cell.execution_count = [], None
    folder = tmp_path_factory.mktemp('tour')
    NotebookClient(run, timeout=280, resources={'metadata': {'path': str(folder)}}).execute()
    return committed, run


def test_it_runs_from_top_to_bottom(tours):
    _, run = tours
    text = ''.join(map(printed, code(run)))
    assert 'logits equal: True' in text and text.count('student of') == 2
    assert not [output for cell in code(run) for output in cell.outputs if output.output_type == 'error']


def test_the_output_that_is_shown_is_what_it_prints_apart_from_figures(tours):
    committed, _ = tours
    assert [cell.execution_count for cell in code(committed)] == list(range(1, len(code(committed)) + 1))
    shown, found = ([printed(cell) for cell in code(notebook)] for notebook in tours)
    assert all(shown)
    for before, after in zip(shown, found, strict=True):
        assert len(before.splitlines()) == len(after.splitlines())
    structure = next(index for index, text in enumerate(found) if text.startswith('StudentFriendlyTask('))
    assert shown[structure] == found[structure], 'run the notebook again and commit it'
    assert nbformat.validate(committed) is None


def test_it_needs_the_extra_that_it_names_and_nothing_else(tours):
    committed, _ = tours
    tree = ast.parse('\n'.join(cell.source for cell in code(committed)))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition('.')[0] for name in names} - set(sys.stdlib_module_names) == {'sf_teacher', 'timm', 'torch'}
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    assert set(extras['notebook']) == {'sf_teacher[examples]', 'notebook'}
    assert 'pip install -e ".[notebook]"' in committed.cells[0].source
