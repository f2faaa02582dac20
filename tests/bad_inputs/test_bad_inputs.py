"""The table of bad inputs: what is given to which surface, and what is said. `pytest --collect-only` counts the rows.

What is an attack, or damage to a folder, is in tests/test_security.py, tests/exporting/test_integrity.py and
tests/training/test_run_folder.py.
"""
from collections import Counter

import pytest

from . import command_line, data_folders, exports, loaders, methods, models, settings, steps
from .row import Place, Row, make_shared

TABLE: list[Row] = [row for module in (
    models, steps, methods, loaders, data_folders, settings, command_line, exports) for row in module.ROWS]


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
    return make_shared(tmp_path_factory.mktemp('shared'))


@pytest.mark.parametrize('row', TABLE, ids=str)
def test_a_bad_input_is_refused(row, shared, tmp_path, monkeypatch):
    """By our error, whose message says what to do; a command shows no traceback; no file appears, changes or goes."""
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, shared)
    row.prepare(place)
    before = place.contents()
    with pytest.raises(row.error, match=f'(?s){row.message}'):
        row.call(place)
    assert place.contents() == before


def test_no_row_hides_another():
    assert [name for name, count in Counter(map(str, TABLE)).items() if count > 1] == []
    assert all(len(row.message) > 8 for row in TABLE)
