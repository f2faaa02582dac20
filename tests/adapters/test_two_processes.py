"""Two processes run the flow of torchdistill's own script on our configs; -test_only tests what was trained."""
import json
import subprocess
import sys

import pytest
import timm
import torch
from sf_teacher.adapters import torchdistill as adapter
from torch import nn

from sf_teacher import SFTeacherError

from ..helpers import on_two_ranks
from .script_flow import file_util, run
from .torchdistill_runs import EXAMPLES, environment, run_script

TWO_STAGES, ALONE = 'digits/sftn/test_efficientnet_from_test_resnet.yaml', 'digits/sftn/test_resnet.yaml'


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp('work')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(path)
        run_script(monkeypatch, 'make_digits', '--train', 256, '--total', 400)
    return path


def two_processes(folder, work, config, test_only=False):
    """What each of them reports."""
    folder.mkdir()
    on_two_ranks(folder, run, work, str(EXAMPLES / config), test_only, folder / 'report')
    return [json.loads((folder / f'report.{rank}').read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(('config', 'folder', 'epochs'), [
    (TWO_STAGES, 'test_resnet-two_stages', range(4, 8)), (ALONE, 'test_resnet-sft', range(4))])
def test_the_scripts_flow_and_its_test_only(work, tmp_path, config, folder, epochs):
    first, second = two_processes(tmp_path / 'train', work, config)
    assert first == second      # teacher and student agree on both ranks
    assert first['saved'] and set(first['saved']) <= set(epochs)    # no checkpoint of a student that waits
    tested, _ = two_processes(tmp_path / 'test', work, config, test_only=True)
    assert {**tested, 'saved': first['saved']} == first
    exported = timm.create_model(f'local-dir:{work}/exported/digits/{folder}', pretrained=True)
    total = sum(p.double().sum().item() for p in exported.parameters())
    assert total == tested['sums'][0]
    if config == TWO_STAGES:
        assert_training_again_does_not_start_from_the_exported_teacher(work)


def assert_training_again_does_not_start_from_the_exported_teacher(work):
    assert file_util.check_if_exists(str(work / 'exported/digits/test_resnet-two_stages/teacher.pth'))
    command = [sys.executable, EXAMPLES / 'run.py', '--config', EXAMPLES / TWO_STAGES, '--device', 'cpu']
    done = subprocess.run(command, cwd=work, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Teacher4SFTN, `export`: " in done.stderr and 'exists and is not empty' in done.stderr


def test_test_only_needs_the_trained_teacher(tmp_path, monkeypatch, work):
    (tmp_path / 'data').symlink_to(work / 'data')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'models.teacher_model.src_ckpt: .*teacher.pth does not exist, the teacher w'):
        run_script(monkeypatch, 'run', '--config', EXAMPLES / TWO_STAGES, '--device', 'cpu', '-test_only')


def test_batch_norm_is_synchronised_where_there_are_processes(monkeypatch):
    plain = adapter.timm_model('test_resnet', sync_bn=True)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in plain.modules())
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: True)
    model = adapter.timm_model('test_resnet', sync_bn=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_sync_bn_without_effect_is_refused(tmp_path, monkeypatch, work):
    with pytest.raises(SFTeacherError, match=r"sync_bn=True of teacher 'test_resnet'.*nothing to synchronise"):
        adapter.timm_teacher('test_resnet', sync_bn=True)
    text = (EXAMPLES / ALONE).read_text()
    (work / 'config.yaml').write_text(text.replace("    key: 'sf_teacher.timm_model'\n",
                                                   "    key: 'sf_teacher.timm_model'\n    sync_bn: True\n"))
    monkeypatch.chdir(work)
    with pytest.raises(SystemExit, match=r"models.model.sync_bn: torchdistill reads it for torchvision's models only"):
        run_script(monkeypatch, 'run', '--config', 'config.yaml', '--device', 'cpu')
