"""An exported teacher is a plain timm folder, bit for bit."""
import copy
import json
import warnings

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import yaml
from timm.utils import ModelEmaV3
from torch import nn

from sf_teacher import SFTeacherError
from sf_teacher.exporting import normalise
from sf_teacher.exporting.exporter import export
from tests.exporting.folders import MEAN, METADATA, SIZE, STD, Own, listed, load, logits_of
from tests.helpers import build, jitter


def test_plain_timm_gives_the_teacher_back(folder):
    loaded, model = load(folder), build()
    assert list(loaded.state_dict()) == list(timm.create_model('test_resnet', num_classes=7).state_dict())
    assert torch.equal(logits_of(loaded), logits_of(model))
    forgotten = timm.create_model(f'local-dir:{folder}')     # without pretrained=True: random weights, not a word
    assert not torch.equal(logits_of(forgotten), logits_of(model))
    data = timm.data.resolve_model_data_config(loaded)
    assert (tuple(data['mean']), tuple(data['std']), tuple(data['input_size'])) == (MEAN, STD, SIZE)
    assert loaded.num_classes == loaded.pretrained_cfg['num_classes'] == 7


def test_teacher_pth_is_a_checkpoint_for_everybody(folder):
    checkpoint = torch.load(folder / 'teacher.pth', weights_only=True)
    stored = safetensors.torch.load_file(folder / 'model.safetensors')
    assert checkpoint['arch'] == 'test_resnet' and checkpoint['num_classes'] == 7
    assert checkpoint['model'].keys() == stored.keys()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in checkpoint['model'].items())
    model = timm.create_model('test_resnet', num_classes=7, checkpoint_path=str(folder / 'teacher.pth'))
    assert torch.equal(logits_of(model), logits_of(build()))


def test_card_and_config_say_what_was_trained(folder):
    card, config = (folder / 'README.md').read_text(), json.loads((folder / 'config.json').read_text())
    front = yaml.safe_load(card.split('---')[1])
    assert front['library_name'] == 'timm' and 'knowledge-distillation' in front['tags']
    for text in ('name: sftn', 'weight: 0.5', 'test_efficientnet', 'digits', '**Seed**: 3', 'top1: 0.875',
                 f'torch: {torch.__version__}', 'random weights', 'create_model("local-dir:teacher", pretrained=True)'):
        assert text in card
    assert {key: config['sf_teacher'][key] for key in METADATA} == METADATA
    snippet = yaml.safe_load((folder / 'torchdistill.yaml').read_text())
    assert snippet['dependencies'] == [{'name': 'sf_teacher.adapters.torchdistill'}]
    assert snippet['models']['teacher_model'] == {
        'key': 'sf_teacher.timm_teacher', 'kwargs': {'model_name': 'local-dir:./teacher', 'num_classes': 7},
    }


def test_files_are_readable_by_whoever_may_read_the_folder(folder):
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder / 'README.md').stat().st_mode}
    assert listed(folder) == [
        'README.md', 'config.json', 'model.safetensors', 'probe.safetensors', 'teacher.pth', 'torchdistill.yaml',
    ]
    assert listed(folder.parent) == ['teacher']


@pytest.mark.fresh_check     # in this process it draws random numbers
def test_model_comes_back_as_it_was(tmp_path):
    model = build().train()
    model.layer1.eval()
    calls = []
    model.layer2.register_forward_hook(lambda module, args, output: calls.append(module))
    model.fc.register_forward_pre_hook(lambda module, args: None)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    flags = [module.training for module in model.modules()]
    config, state = copy.deepcopy(model.pretrained_cfg), copy.deepcopy(model.state_dict())
    places, attributes = [tensor.data_ptr() for tensor in model.state_dict().values()], set(vars(model))
    random = torch.get_rng_state()

    path = export(model, tmp_path / 'a' / 'b' / 'teacher', mean=MEAN, input_size=SIZE)

    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == flags
    assert model.pretrained_cfg == config and model.pretrained_cfg['mean'] != MEAN and set(vars(model)) == attributes
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == places
    assert len(model.layer2._forward_hooks) == 1 and len(model.fc._forward_pre_hooks) == 1
    assert len(calls) == 1 and calls[0] is not model.layer2     # of a copy
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert torch.equal(logits_of(load(path)), logits_of(build()))


@pytest.mark.parametrize(('put', 'at'), [
    (lambda model: model.layer2.register_forward_hook(lambda module, args, output: output * 2), "'layer2'"),
    (lambda model: model.register_forward_pre_hook(lambda module, args: (args[0] - 0.5,)), "''"),
    (lambda model: model.fc.register_forward_hook(lambda module, args, output: output[:1]), "'fc'"),
], ids=['a stage', 'the images', 'a hook that fails'])
def test_hooks_that_change_the_logits_are_refused(put, at, tmp_path):
    model = build()
    put(model)
    with pytest.raises(SFTeacherError, match=rf'forward hooks of test_resnet \(at {at}\) change its logits.*factory='):
        export(model, tmp_path / 'teacher')
    assert listed(tmp_path) == []


def test_statistics_of_pixels_are_pointed_out(tmp_path, caplog):
    export(build(), tmp_path / 'a', input_size=SIZE, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    assert 'mean=(123.7, 116.3, 103.5) lies above 1' in caplog.text and 'divide mean and std by 255' in caplog.text


# --- what survives, and how -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', [
    'test_resnet', 'test_vit', 'test_vit4', 'test_vit_relpos', 'test_efficientnet', 'test_convnext', 'test_nfnet',
    'test_mambaout', 'test_maxvit', 'test_byobnet', 'coat_lite_tiny',
])
def test_families(name, tmp_path):
    model = build(name).to(memory_format=torch.channels_last)
    size = model.pretrained_cfg['input_size']
    loaded = load(export(model, tmp_path / name))
    assert torch.equal(logits_of(loaded, size), logits_of(build(name), size))
    assert tuple(loaded.pretrained_cfg['input_size']) == size


@pytest.mark.parametrize('name, kwargs, size', [
    ('test_vit_relpos', {'img_size': 96}, (3, 96, 96)),                 # a size fixed by the constructor
    ('test_vit', {'img_size': (64, 96), 'patch_size': 8}, (3, 64, 96)),
    ('test_resnet', {'stem_type': '', 'act_layer': 'gelu'}, (3, 160, 160)),
    ('test_resnet', {'in_chans': 1}, (1, 160, 160)),
    ('test_resnet', {'global_pool': 'max'}, (3, 160, 160)),
])
def test_constructor_arguments_survive(name, kwargs, size, tmp_path):
    model = build(name, **kwargs)
    loaded = load(export(model, tmp_path / 'teacher'))
    assert torch.equal(logits_of(loaded, size), logits_of(model, size))
    data = timm.data.resolve_model_data_config(loaded)
    assert tuple(data['input_size']) == size and len(data['mean']) == len(data['std']) == size[0]


def test_changes_that_timm_records_survive(tmp_path):
    model = build('vit_tiny_patch16_224')
    model.set_input_size(img_size=64)
    model.reset_classifier(5, 'avg')
    loaded = load(export(jitter(model), tmp_path / 'teacher'))
    assert torch.equal(logits_of(loaded), logits_of(model)) and loaded.num_classes == 5
    assert tuple(loaded.pretrained_cfg['input_size']) == (3, 64, 64)


def test_arguments_that_timm_did_not_record_are_asked_for(tmp_path):
    model = jitter(timm.models.resnet.test_resnet(num_classes=7, stem_type=''))
    with pytest.raises(SFTeacherError, match=r'conv1\.weight is in the model only.*pass model_args='):
        export(model, tmp_path / 'teacher')
    assert not listed(tmp_path)
    path = export(model, tmp_path / 'teacher', model_args={'stem_type': ''})
    assert torch.equal(logits_of(load(path)), logits_of(model))


@pytest.mark.parametrize('wrap', [
    ModelEmaV3, torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model)),
], ids=['ema', 'compile', 'parallel', 'compiled-parallel'])
def test_wrapped_models(wrap, tmp_path):
    path = export(wrap(build()), tmp_path / 'teacher')
    assert load(path).state_dict().keys() == build().state_dict().keys()
    assert torch.equal(logits_of(load(path)), logits_of(build()))


class Normalised(nn.Module):
    """A child of this name is a part of the model, not the model inside of a wrapper."""

    def __init__(self):
        super().__init__()
        self.module = build()

    def forward(self, x):
        return self.module(4 * x + 1)


def test_a_child_called_module_is_not_the_whole_model(tmp_path):
    size = {'input_size': SIZE, 'mean': MEAN, 'std': STD}
    with pytest.raises(SFTeacherError, match=r'Normalised is not a model that timm builds by name.*pass factory='):
        export(Normalised(), tmp_path / 'teacher', **size)
    path = export(nn.DataParallel(Normalised()), tmp_path / 'teacher', factory=Normalised, **size)
    model = Normalised()
    model.load_state_dict(torch.load(path / 'teacher.pth', weights_only=True)['model'])
    assert torch.equal(logits_of(model), logits_of(Normalised()))


class Reparametrised(Own):
    """Its weights are computed before each forward, by hooks of torch's own."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings(action='ignore', category=FutureWarning):     # the old forms
            nn.utils.weight_norm(self.fc)
            nn.utils.spectral_norm(self.conv)


def test_weights_that_hooks_of_torch_compute_are_not_stale(tmp_path):
    model = Reparametrised()
    before = logits_of(model, (1, 8, 8))
    with torch.no_grad():
        model.fc.weight_g *= 2
        model.conv.weight_orig += torch.randn_like(model.conv.weight_orig)
    path = export(model, tmp_path / 'teacher', factory=Reparametrised, input_size=(1, 8, 8), mean=0.5, std=0.5)
    again = Reparametrised()
    again.load_state_dict(torch.load(path / 'teacher.pth', weights_only=True)['model'])
    assert torch.equal(logits_of(again, (1, 8, 8)), logits_of(model, (1, 8, 8)))
    assert not torch.allclose(logits_of(model, (1, 8, 8)), before)


def test_tied_tensors(tmp_path):
    model = build()
    model.layer2[0].bn2.weight = model.layer2[0].bn1.weight
    path = export(model, tmp_path / 'teacher')
    assert torch.equal(logits_of(load(path)), logits_of(model))
    assert model.layer2[0].bn2.weight is model.layer2[0].bn1.weight


def test_sync_batch_norm(tmp_path):
    path = export(timm.layers.convert_sync_batchnorm(build()), tmp_path / 'teacher')
    assert torch.equal(logits_of(load(path)), logits_of(build()))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_exported_as_float32(dtype, tmp_path):
    name = 'eva02_tiny_patch14_224'     # computes its position table anew, in float32, when it is loaded
    model = build(name, img_size=56).to(dtype)
    loaded = load(export(model, tmp_path / 'teacher'))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert all(torch.equal(loaded.state_dict()[key], tensor.float()) for key, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}


def test_float64_only_if_no_value_changes(tmp_path):
    path = export(build().double(), tmp_path / 'teacher')
    assert torch.equal(logits_of(load(path)), logits_of(build()))
    with pytest.raises(SFTeacherError, match=r'conv1\S* is float64 and changes in float32.*export model\.float\(\)'):
        export(jitter(build().double()), tmp_path / 'other')
    assert listed(tmp_path) == ['teacher']


@pytest.mark.fresh_check
def test_callers_numeric_settings_do_not_count(tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision('medium')
        with torch.autocast('cpu', dtype=torch.bfloat16):
            path = export(build(), tmp_path / 'teacher')
        assert torch.get_float32_matmul_precision() == 'medium'
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(logits_of(load(path)), logits_of(build()))


@pytest.mark.parametrize('name', ['efficientvit_m0', 'levit_128s'])
def test_what_an_evaluation_with_gradients_kept_is_no_obstacle(name, tmp_path):
    model = build(name).eval()
    model(torch.randn(2, 3, 224, 224))
    path = export(model, tmp_path / 'teacher')
    assert torch.equal(logits_of(load(path), (3, 224, 224)), logits_of(model, (3, 224, 224)))


def test_probe_is_computed_in_full_precision():
    seen = []

    class Watch(Own):
        def forward(self, x):
            seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled('cpu'), x.dtype))
            return super().forward(x)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision('medium')
        torch.set_default_dtype(torch.float64)
        normalise.probe(Watch().float(), (1, 8, 8))
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_default_dtype(torch.float32)
    assert seen == [('highest', False, torch.float32)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.fresh_check
def test_model_on_a_gpu(tmp_path):
    model = build().cuda()
    path = export(model, tmp_path / 'teacher')
    assert torch.equal(logits_of(load(path)), logits_of(build()))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {'cuda'}
