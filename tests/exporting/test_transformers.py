"""transformers takes an exported folder as it is, and computes what timm computes; config.json is timm's own."""
import copy
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from sf_teacher.exporting.exporter import export
from tests.helpers import build

MODELS = [
    ('test_resnet', {}),
    ('test_resnet', {'in_chans': 1, 'global_pool': 'max'}),
    ('test_resnet', {'num_classes': 1000}),
    ('test_vit', {}),
    ('test_vit', {'img_size': 64}),
    ('test_vit', {'in_chans': 1, 'global_pool': 'avg', 'img_size': 96}),
    ('test_byobnet', {'act_layer': 'gelu'}),
]


@pytest.mark.parametrize('name, kwargs', MODELS)
def test_transformers_gives_the_teacher_back(name, kwargs, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = export(build(name, **kwargs), tmp_path / 'teacher', mean=0.4, std=0.3)
    ours = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    # copied, because the mapped file's tensors lie at odd addresses, where some kernels round otherwise
    theirs = copy.deepcopy(AutoModelForImageClassification.from_pretrained(folder).eval())
    data = timm.data.resolve_model_data_config(ours)
    assert theirs.config.num_labels == ours.num_classes == kwargs.get('num_classes', 7)
    x = torch.randn(2, *data['input_size'])
    with torch.inference_mode():
        assert torch.equal(theirs(x).logits, ours(x)) and torch.equal(ours(x), build(name, **kwargs).eval()(x))

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    image = image.convert('L') if data['input_size'][0] == 1 else image
    transform = timm.data.create_transform(**data, is_training=False)
    processor = AutoImageProcessor.from_pretrained(folder)
    if data['input_size'][0] == 3:
        assert torch.equal(processor(image)['pixel_values'][0], transform(image))
    assert json.dumps(processor.data_config) == json.dumps(data)    # tuples for lists


@pytest.mark.parametrize('name, kwargs', MODELS)
def test_config_is_what_timm_writes(name, kwargs, tmp_path):
    """Key by key, but for num_classes among the arguments, which transformers takes for a second one."""
    model = build(name, **kwargs)
    config = json.loads((export(model, tmp_path / 'teacher', mean=0.4, std=0.3) / 'config.json').read_text())
    timm.models.save_for_hf(model, tmp_path / 'timm', safe_serialization=True, data_config={
        'input_size': config['pretrained_cfg']['input_size'],
        'mean': config['pretrained_cfg']['mean'], 'std': config['pretrained_cfg']['std']})
    expected = json.loads((tmp_path / 'timm' / 'config.json').read_text())
    assert expected['model_args'].pop('num_classes') == config['num_classes']
    assert config.pop('sf_teacher')
    assert list(config) == list(expected) and config == expected
