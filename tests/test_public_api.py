"""The public names: none disappears, none hides a module, and what type checkers see is what is imported."""
import ast
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import sf_teacher

# A name that leaves this list breaks somebody's code: deprecate it first. New names are added here too.
PUBLIC = {
    'GTN', 'SFTN', 'TESKD', 'Method', 'wrap', 'export', 'verify', 'StudentFriendlyTask', 'StudentFriendlyKDTask',
    'SFTeacherError', 'BoundaryError', 'check_folder', '__version__',
}


def test_no_public_name_disappears():
    assert set(sf_teacher.__all__) >= PUBLIC
    assert len(sf_teacher.__all__) <= 16
    assert set(sf_teacher.__all__) <= set(dir(sf_teacher))


@pytest.mark.parametrize('name', sf_teacher.__all__)
def test_every_public_name_is_there_and_is_no_module(name):
    assert importlib.util.find_spec(f'sf_teacher.{name}') is None    # or NAME would depend on what ran first
    value = getattr(sf_teacher, name)
    assert value is getattr(sf_teacher, name) and type(value).__name__ != 'module'


def test_modules_do_not_differ_from_public_names_by_case_only():
    """Some file systems do not tell them apart."""
    modules = {module.name for module in pkgutil.iter_modules(sf_teacher.__path__)}
    assert {'split', 'methods', 'exporting'} <= modules
    assert not modules & {name.lower() for name in sf_teacher.__all__}


def test_type_checkers_see_the_names_that_are_imported_when_asked_for():
    tree = ast.parse(Path(sf_teacher.__file__).read_text(encoding='utf-8'))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == sf_teacher._MODULES
    eager = {'BoundaryError', 'SFTeacherError', '__version__'}
    assert set(typed) | eager == set(sf_teacher.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sf_teacher' has no attribute 'warp'"):
        sf_teacher.warp  # noqa: B018
