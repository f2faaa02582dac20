"""Folders that several test files export once and copy before they break it."""
import shutil
from pathlib import Path

import pytest

from sf_teacher.exporting.exporter import export
from tests.exporting.folders import MEAN, METADATA, SIZE, STD
from tests.helpers import build


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """One folder; tests copy it before they break it."""
    path = tmp_path_factory.mktemp('module') / 'teacher'
    return export(build(), path, input_size=SIZE, mean=MEAN, std=STD, metadata=METADATA)


@pytest.fixture
def broken(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / 'teacher'))
