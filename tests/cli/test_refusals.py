"""What users get wrong on the command line: each message names flag or key, cause and remedy, and no file is lost."""
import os
import re
import shutil
import time

import pytest
from huggingface_hub import close_session

from sf_teacher import cli
from sf_teacher.data.datasets import load_data
from sf_teacher.data.settings import DataConfig

from ..training import training_runs as runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return runs.folder(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    return runs.fixed_size_teacher(tmp_path_factory.mktemp('teacher'))


@pytest.fixture
def call(data, teacher, tmp_path, monkeypatch, capsys):
    """Run a command whose arguments replace or extend good ones; its exit code and what it says."""
    monkeypatch.chdir(tmp_path)

    def run(command, *args):
        good = {'--data': str(data), '--output': 'run', '--batch-size': '8', '--epochs': '1', '--device': 'cpu',
                '--in-memory': None}
        good |= {'train': {'TEACHER': 'test_resnet', '--student': 'test_resnet', '--input-size': '3 16 16'},
                 'distill': {'--teacher': str(teacher), '--student': 'test_resnet'}}[command]
        for arg in args:
            name, _, value = arg.partition(' ')
            value = value.format(data=data, teacher=teacher, tmp=tmp_path)
            good.pop(name.removeprefix('~'), None)
            if not name.startswith('~'):
                good[name] = value or None
        words = [command, *(good.pop('TEACHER', '').split())]
        words += [word for name, value in good.items() for word in (name, *(value or '').split())]
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err
    return run


def test_flags_win_over_a_file_and_each_is_blamed_for_its_own(call, tmp_path):
    (tmp_path / 'config.yaml').write_text('lr: 0\nepochs: 0\n')
    code, err = call('train', '--config config.yaml')     # `call` gives --epochs 1
    assert code == 2 and err.splitlines() == ['sf-teacher: config.yaml: lr: 0 must be a finite number > 0 and <= 100']
    err = call('train', '--config config.yaml', '--epochs 0')[1]
    assert '--epochs 0 must be a whole number >= 1' in err and 'config.yaml: lr: 0 must be' in err


@pytest.mark.parametrize('name', ['test_resnet', 'hf-hub:timm/test_resnet.r160_in1k', 'gcvit_xxtiny'])
def test_pretrained_weights_without_a_network(name, call, monkeypatch, tmp_path):
    """Nobody listens at this address; huggingface_hub's own client would try for a minute."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setenv('HTTPS_PROXY', 'http://127.0.0.1:9')
    close_session()
    began = time.monotonic()
    code, err = call('train', f'TEACHER {name}', '--pretrained')
    close_session()
    assert time.monotonic() - began < 10 and code == 1 and not os.path.exists('run')
    assert re.search(rf"weights of '{name}.*' .given as teacher. cannot be downloaded, as http.* is not reached .*: "
                     'train without them, or give local-dir:FOLDER', err), err


def test_class_missing_in_validation_with_a_class_map(data, tmp_path):
    shutil.copytree(data, tmp_path / 'less')
    shutil.rmtree(tmp_path / 'less/validation/class1')
    (tmp_path / 'map.txt').write_text('class0\nclass1\nclass2\nclass3\n')
    found = load_data(DataConfig(data=str(tmp_path / 'less'), class_map=str(tmp_path / 'map.txt')))
    assert found.num_classes == 4
