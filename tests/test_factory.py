"""Models by name: weights that are on this machine need no network."""
import pytest
import safetensors.torch
import timm
import torch

from sf_teacher.factory import create_model
from tests.helpers import build


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
@pytest.mark.parametrize('name, ref', [('hf-hub:u/m', 'main'), ('hf-hub:u/m@v1', 'v1')])
def test_what_is_cached_is_loaded_offline(name, ref, file, tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    repository, model = tmp_path / 'models--u--m', build()
    snapshot = repository / 'snapshots' / ('a' * 40)
    snapshot.mkdir(parents=True)
    (repository / 'refs').mkdir()
    (repository / 'refs' / ref).write_text('a' * 40)
    timm.models.save_for_hf(model, str(snapshot), safe_serialization=file == 'model.safetensors')
    assert sorted(path.name for path in snapshot.iterdir()) == sorted(['config.json', file])
    assert torch.equal(create_model(name, 'teacher', None, None, {}).fc.weight, model.fc.weight)


def test_a_file_of_the_users_is_loaded_offline(tmp_path):
    model = build(num_classes=1000)
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'weights.safetensors')
    kwargs = {'pretrained': True, 'pretrained_cfg_overlay': {'file': str(tmp_path / 'weights.safetensors')}}
    assert torch.equal(create_model('test_resnet', 'teacher', None, None, kwargs).fc.weight, model.fc.weight)
