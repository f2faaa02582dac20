"""Labels are the same in every process, whatever the classes are called."""
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from timm.utils.misc import natural_key as timms

from sf_teacher import SFTeacherError
from sf_teacher.data.class_map import load_class_map
from sf_teacher.data.datasets import load_data
from sf_teacher.data.natural_order import natural_key
from sf_teacher.data.settings import DataConfig

from ..training import training_runs as runs

TYING = ['A', 'a', '01', '1', '001', 'B1', 'b01', 'b1']
PRINT = '''
import pathlib, sys
from sf_teacher.data.image_files import FolderReader
from sf_teacher.data.tar_files import TarReader
print(FolderReader(pathlib.Path(sys.argv[1])).class_to_idx, TarReader(pathlib.Path(sys.argv[2])).class_to_idx)
'''


def test_names_that_tie_have_one_order_in_every_process(tmp_path):
    image = next((runs.folder(tmp_path / 'data') / 'train/class0').iterdir())
    for name in TYING:
        (tmp_path / 'tying' / name).mkdir(parents=True)
        shutil.copy(image, tmp_path / 'tying' / name)
    with tarfile.open(tmp_path / 'tying.tar', 'w') as tar:
        tar.add(tmp_path / 'tying', arcname='.')
    command = [sys.executable, '-c', PRINT, str(tmp_path / 'tying'), str(tmp_path / 'tying.tar')]
    said = [subprocess.run(command, env={**os.environ, 'PYTHONHASHSEED': seed}, check=True, capture_output=True,
                           text=True).stdout for seed in '12']
    order = str({name: i for i, name in enumerate(['001', '01', '1', 'A', 'a', 'B1', 'b01', 'b1'])})
    assert said == [f'{order} {order}\n'] * 2


def test_the_order_is_timms_where_that_has_one():
    names = ['class10', 'class9', 'n01440764', 'n2', 'Zebra', 'ape', '3d', '', '10', '9 lives', 'a1b2', 'a1b10']
    assert sorted(names, key=natural_key) == sorted(names, key=timms)
    assert sorted(['x²', '²', 'x2', '1²2', '٣', '9' * 5000, '2'], key=natural_key) == [
        '1²2', '2', '9' * 5000, 'x2', 'x²', '²', '٣']


def test_timms_reader_is_not_asked_for_an_order_that_it_does_not_have(tmp_path):
    root = runs.folder(tmp_path / 'data')
    for split in ('train', 'validation'):
        (root / split / 'class1').rename(root / split / 'CLASS0')
    with pytest.raises(SFTeacherError, match="folder has the classes 'CLASS0' and 'class0', which timm puts in anot"):
        load_data(DataConfig(dataset='folder', data=str(root)))
    (tmp_path / 'map.txt').write_text('CLASS0\nclass0\nclass2\nclass3\n')
    found = load_data(DataConfig(dataset='folder', data=str(root), class_map=str(tmp_path / 'map.txt')))
    assert found.num_classes == 4 and found.class_names[:2] == ['CLASS0', 'class0']


def test_a_class_map_of_any_editor(tmp_path):
    (tmp_path / 'map.txt').write_bytes('\ufeffcat\r\n dog\r\n'.encode() + b'caf\xe9\n\n\n')
    assert load_class_map('map.txt', tmp_path) == {'cat': 0, 'dog': 1, os.fsdecode(b'caf\xe9'): 2}
