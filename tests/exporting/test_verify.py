"""`verify` and `sf-teacher verify`: whatever is no longer what was exported is named."""
import json
import os
import pickle
import shutil
from collections import OrderedDict

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from sf_teacher import SFTeacherError, cli
from sf_teacher.exporting import reload
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.verify import verify
from tests.exporting.folders import edit_probe
from tests.helpers import build


@pytest.mark.fresh_check
def test_verify_in_a_fresh_process(folder, capsys, broken, monkeypatch):
    monkeypatch.setattr(reload, 'report', lambda *args: pytest.fail('checked in this process'))
    assert cli.main(['verify', str(folder), '--json', '--tolerance', '0']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['bit_equal'] and report['arch'] == 'test_resnet' and report['exported_with'] == report['checked_with']
    (broken / 'config.json').unlink()
    assert cli.main(['verify', str(broken)]) == 1
    assert 'config.json is missing' in capsys.readouterr().err


def test_verify_shows_both_versions(broken, capsys):
    edit_probe(broken, lambda facts: facts['versions'].update(torch='2.0.0'))
    assert cli.main(['verify', str(broken)]) == 0
    out = capsys.readouterr().out
    assert f'torch: 2.0.0 when exported, {torch.__version__} here' in out
    assert 'interpolation bilinear, crop_pct 0.95' in out


@pytest.mark.parametrize('name', ['teacher', 'student'])
def test_what_a_run_exported_is_found_in_its_folder(name, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / 'run' / name)
    for place in ('run', f'run/{name}'):
        assert cli.main(['verify', str(tmp_path / place)]) == 0
        assert f'{tmp_path}/run/{name}: test_resnet, 7 classes' in capsys.readouterr().out
        for given in (f'local-dir:{tmp_path}/{place}', tmp_path / place):
            assert verify(given)['arch'] == 'test_resnet'
    assert cli.main(['push', str(tmp_path / 'run'), 'alice/teacher', '--dry-run']) == 0


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'teacher.pth', 'probe.safetensors'])
def test_verify_missing_file(name, broken):
    (broken / name).unlink()
    with pytest.raises(SFTeacherError, match=f'{name} is missing from'):
        verify(broken)


@pytest.mark.parametrize('name, message', [
    ('model.safetensors', 'model.safetensors is truncated or changed'),
    ('teacher.pth', 'teacher.pth is truncated or changed'),
    ('probe.safetensors', 'probe.safetensors cannot be read, it is truncated'),
    ('config.json', r'config.json cannot be read: (Expecting|Unterminated)'),
])
def test_verify_truncated_file(name, message, broken):
    data = (broken / name).read_bytes()
    (broken / name).write_bytes(data[:len(data) // 2])
    with pytest.raises(SFTeacherError, match=message):
        verify(broken)


def test_verify_changed_weights(broken):
    state = safetensors.torch.load_file(broken / 'model.safetensors')
    state['fc.weight'][0, 0] += 1e-6      # far below any tolerance of logits
    safetensors.torch.save_file(state, broken / 'model.safetensors')
    with pytest.raises(SFTeacherError, match=r'model.safetensors is truncated or changed'):
        verify(broken)
    edit_probe(broken)
    with pytest.raises(SFTeacherError, match=r'teacher.pth and model.safetensors differ in fc.weight'):
        verify(broken)


def test_verify_other_weights_in_both_files(broken):
    other = export(build('test_resnet', drop_rate=0.1).apply(
        lambda module: module.weight.data.mul_(0.9) if isinstance(module, nn.Linear) else None
    ), broken.parent / 'other')
    for name in ('model.safetensors', 'teacher.pth'):
        shutil.copy(other / name, broken / name)
    edit_probe(broken)
    with pytest.raises(SFTeacherError, match=r"reloaded teacher's logits differ by up to [\d.e-]+ .*tolerance 0.0001"):
        verify(broken)


def test_verify_other_preprocessing(broken):
    config = json.loads((broken / 'config.json').read_text())
    config['pretrained_cfg']['mean'] = [0.5, 0.5, 0.5]
    (broken / 'config.json').write_text(json.dumps(config))
    with pytest.raises(SFTeacherError, match=r'config.json gives mean \[0.5, .*\], exported was \[0.1, 0.2, 0.3\]'):
        verify(broken)


def test_verify_tolerance(broken):
    logits = safetensors.torch.load_file(broken / 'probe.safetensors')['logits']
    largest = logits.abs().max()
    edit_probe(broken, logits=logits + 1e-3 * largest)
    report = verify(broken, tolerance=1e-2)
    assert not report['bit_equal'] and report['max_difference'] == pytest.approx(1e-3 * largest.item(), rel=1e-2)
    for tolerance in (0, 1e-4):
        with pytest.raises(SFTeacherError, match='logits differ'):
            verify(broken, tolerance=tolerance)
    with pytest.raises(SFTeacherError, match=r'0 <= tolerance < 1, got 2'):
        verify(broken, tolerance=2)


@pytest.mark.parametrize('name', ['a\0b', '~nobody-has-this-name/a'])
def test_verify_what_no_folder_is_called(name):
    with pytest.raises(SFTeacherError, match=r'no folder can be called .*(null byte|home directory)'):
        verify(name)


def test_verify_what_is_no_export(tmp_path):
    with pytest.raises(SFTeacherError, match='nowhere: there is no such folder'):
        verify(tmp_path / 'nowhere')
    with pytest.raises(SFTeacherError, match=r'probe.safetensors is missing .*not a folder that sf_teacher exported'):
        verify(tmp_path)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_code_is_never_executed(broken, tmp_path):
    torch.save({'model': OrderedDict(), 'arch': Malice(str(tmp_path / 'executed'))}, broken / 'teacher.pth')
    edit_probe(broken)
    with pytest.raises(SFTeacherError, match='UnpicklingError'):
        verify(broken)
    assert not (tmp_path / 'executed').exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(broken / 'teacher.pth', weights_only=True)
