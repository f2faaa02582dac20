"""An exported teacher is a plain timm folder, bit for bit; whatever cannot be one is refused and leaves nothing."""
import copy
import json
import os
import pickle
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import yaml
from timm.utils import ModelEmaV3
from torch import nn

from sf_teacher import SFTeacherError, cli
from sf_teacher.exporting import normalise, reload
from sf_teacher.exporting.exported import load_teacher
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.verify import verify
from tests.exporting.folders import edit_probe
from tests.helpers import build, jitter

MEAN, STD, SIZE = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (3, 64, 64)
METADATA = {
    'method': {'name': 'sftn', 'weight': 0.5},
    'students': ['test_efficientnet'],
    'data': 'digits',
    'seed': 3,
    'metrics': {'top1': 0.875},
}


def logits_of(model, size=SIZE):
    with torch.inference_mode():
        return model.eval()(torch.randn(2, *size, generator=torch.Generator().manual_seed(5)))


def load(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True)


def leftovers(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """One folder; tests copy it before they break it."""
    path = tmp_path_factory.mktemp('module') / 'teacher'
    return export(build(), path, input_size=SIZE, mean=MEAN, std=STD, metadata=METADATA)


@pytest.fixture
def broken(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / 'teacher'))


# --- the folder -------------------------------------------------------------------------------------------------------

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
    assert leftovers(folder) == [
        'README.md', 'config.json', 'model.safetensors', 'probe.safetensors', 'teacher.pth', 'torchdistill.yaml',
    ]
    assert leftovers(folder.parent) == ['teacher']


@pytest.mark.fresh_check     # in this process it draws random numbers
def test_model_comes_back_as_it_was(tmp_path):
    model = build().train()
    model.layer1.eval()
    calls = []
    model.layer2.register_forward_hook(lambda module, args, output: calls.append(output) or output * 2)
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
    assert len(model.layer2._forward_hooks) == 1 and len(model.fc._forward_pre_hooks) == 1 and not calls
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert torch.equal(logits_of(load(path)), logits_of(build()))     # without the hook, which doubles a stage


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
    assert not leftovers(tmp_path)
    path = export(model, tmp_path / 'teacher', model_args={'stem_type': ''})
    assert torch.equal(logits_of(load(path)), logits_of(model))


@pytest.mark.parametrize('wrap', [
    ModelEmaV3, torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model)),
], ids=['ema', 'compile', 'parallel', 'compiled-parallel'])
def test_wrapped_models(wrap, tmp_path):
    path = export(wrap(build()), tmp_path / 'teacher')
    assert load(path).state_dict().keys() == build().state_dict().keys()
    assert torch.equal(logits_of(load(path)), logits_of(build()))


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
    assert leftovers(tmp_path) == ['teacher']


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


class Own(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


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


# --- a teacher that timm cannot build ---------------------------------------------------------------------------------

OWN = {'input_size': (1, 8, 8), 'mean': (0.5,), 'std': (0.25,)}
MODULE = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.conv(x).{activation}().mean((2, 3)))

def needs_us():
    import sf_teacher
    return Own()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, importable because it lies beside a script."""
    source = tmp_path / 'source'
    source.mkdir()
    (source / 'own_models.py').write_text(MODULE.format(activation='relu'))
    (source / 'changed_models.py').write_text(MODULE.format(activation='sigmoid'))
    monkeypatch.syspath_prepend(str(source))
    return source


@pytest.mark.fresh_check
def test_factory(own, tmp_path):
    from own_models import Own
    model = Own(width=6)
    path = export(model, tmp_path / 'teacher', factory=Own, model_args={'width': 6}, metadata=METADATA, **OWN)
    assert leftovers(path) == ['README.md', 'config.json', 'probe.safetensors', 'teacher.pth']
    config = json.loads((path / 'config.json').read_text())
    assert config['factory'] == 'own_models:Own' and config['num_classes'] == 5 and 'architecture' not in config
    with pytest.raises(KeyError):
        load(path)      # no timm folder, and none that pretends
    again = Own(width=6)
    again.load_state_dict(torch.load(path / 'teacher.pth', weights_only=True)['model'])
    assert torch.equal(logits_of(again, (1, 8, 8)), logits_of(model, (1, 8, 8)))
    card = (path / 'README.md').read_text()
    assert 'from own_models import Own\n\nteacher = Own(width=6)' in card
    assert '    sf-teacher verify teacher --factory own_models:Own\n' in card
    with pytest.raises(SFTeacherError, match=r'model.safetensors missing\).*with factory there is only teacher.pth'):
        load_teacher(str(path))
    assert verify(path, factory='own_models:Own')['bit_equal']
    with pytest.raises(SFTeacherError, match=r"built by 'own_models:Own'.*pass factory='own_models:Own'"):
        verify(path)


def test_a_folder_does_not_choose_what_code_runs(own, tmp_path):
    from own_models import Own
    path = export(Own(), tmp_path / 'teacher', factory=Own, **OWN)
    edit_probe(path, lambda facts: facts.update(factory='os:mkdir', model_args={'path': str(tmp_path / 'executed')}))
    with pytest.raises(SFTeacherError, match='to let that code run here'):
        verify(path)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.fresh_check
def test_the_fresh_process_has_no_sf_teacher(own, tmp_path):
    from own_models import Own
    with pytest.raises(SFTeacherError, match='sf_teacher is blocked: an exported teacher must load without'):
        export(Own(), tmp_path / 'teacher', factory='own_models:needs_us', **OWN)
    assert leftovers(tmp_path) == ['source']


@pytest.mark.parametrize('factory, message', [
    ('changed_models:Own', 'changed_models:Own builds another model than the one given'),
    ('own_models:missing', "has no attribute 'missing'"),
    ('no_such_module:f', "No module named 'no_such_module'"),
])
def test_factory_that_does_not_give_the_teacher(factory, message, own, tmp_path):
    from own_models import Own
    with pytest.raises(SFTeacherError, match=message):
        export(Own(), tmp_path / 'teacher', factory=factory, **OWN)
    assert leftovers(tmp_path) == ['source']


# --- all or nothing ---------------------------------------------------------------------------------------------------

def fail(error):
    def function(*args, **kwargs):
        raise error
    return function


@pytest.mark.parametrize('where', ['timm.models.save_for_hf', 'torch.save', 'safetensors.torch.save_file', 'os.fsync'])
@pytest.mark.parametrize('error, raised, message', [
    (OSError('disk full'), SFTeacherError, 'cannot write .*teacher: disk full'),
    (KeyboardInterrupt('stop'), KeyboardInterrupt, 'stop'),
])
def test_a_crash_leaves_nothing(where, error, raised, message, monkeypatch, tmp_path):
    monkeypatch.setattr(where, fail(error))
    with pytest.raises(raised, match=message):
        export(build(), tmp_path / 'new' / 'teacher')
    assert not leftovers(tmp_path)


def test_a_crash_leaves_the_old_folder(broken, monkeypatch):
    before = {path.name: path.read_bytes() for path in broken.iterdir()}
    replace, calls = os.replace, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError('no')
        replace(source, target)
    monkeypatch.setattr('os.replace', second_fails)
    with pytest.raises(SFTeacherError, match=r'cannot write .*: no'):
        export(build('test_efficientnet'), broken, overwrite=True)
    assert len(calls) == 3      # away, the failure, and back
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == before
    assert leftovers(broken.parent) == ['teacher']


def test_overwrite(broken):
    with pytest.raises(SFTeacherError, match='exists and is not empty; pass overwrite=True'):
        export(build('test_efficientnet'), broken)
    assert load(broken).pretrained_cfg['architecture'] == 'test_resnet'
    with pytest.raises(SFTeacherError, match='no classifier'):
        export(build(num_classes=0), broken, overwrite=True)
    assert torch.equal(logits_of(load(broken)), logits_of(build()))
    export(build('test_efficientnet'), broken, overwrite=True)
    assert load(broken).pretrained_cfg['architecture'] == 'test_efficientnet'
    assert leftovers(broken.parent) == ['teacher']


def test_overwrite_spares_what_is_no_export(tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.tex').write_text('years of work')
    with pytest.raises(SFTeacherError, match=r'is not an exported teacher .* leaves it alone'):
        export(build(), tmp_path / 'home', overwrite=True)
    assert (tmp_path / 'home' / 'thesis.tex').read_text() == 'years of work'


def test_empty_folder_is_used(tmp_path):
    (tmp_path / 'teacher').mkdir()
    assert load(export(build(), tmp_path / 'teacher')).num_classes == 7
    assert leftovers(tmp_path) == ['teacher']


def test_places_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr('sf_teacher.exporting.normalise.plain_copy', fail(AssertionError('work was done')))
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    for place, message in (
        ('link', 'link is a link: give the folder that it points to, .*elsewhere'),
        ('loop', 'loop'),
        ('nul\0', 'cannot write .*null byte'),
        ('long' * 100, 'cannot write .*too long'),
        ('/', 'exists and is not empty'),
    ):
        with pytest.raises(SFTeacherError, match=message):
            export(build(), tmp_path / place)
    (tmp_path / 'file').write_text('')
    with pytest.raises(SFTeacherError, match='file exists and is not a folder'):
        export(build(), tmp_path / 'file')
    with pytest.raises(SFTeacherError, match='file is not a folder that can be written to'):
        export(build(), tmp_path / 'file' / 'teacher')
    monkeypatch.setattr('os.access', lambda path, mode: False)      # root may write everywhere
    with pytest.raises(SFTeacherError, match='is not a folder that can be written to'):
        export(build(), tmp_path / 'teacher')


# --- verify -----------------------------------------------------------------------------------------------------------

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


# --- command line -----------------------------------------------------------------------------------------------------

def test_cli_export(folder, capsys, tmp_path):
    command = ['export', str(folder / 'teacher.pth'), str(tmp_path / 'again'), '--model', 'test_resnet']
    assert cli.main([
        *command, '--num-classes', '7', '--input-size', '3', '64', '64', '--mean', '0.5', '--metadata', '{"seed": 9}',
    ]) == 0
    assert 'exported and verified' in capsys.readouterr().out
    loaded = load(tmp_path / 'again')
    assert torch.equal(logits_of(loaded), logits_of(build()))
    assert list(loaded.pretrained_cfg['mean']) == [0.5] * 3 and tuple(loaded.pretrained_cfg['input_size']) == SIZE
    assert '**Seed**: 9' in (tmp_path / 'again' / 'README.md').read_text()


@pytest.mark.parametrize('changes, message', [
    ({'checkpoint': 'nowhere.pth'}, 'there is no checkpoint at nowhere.pth'),
    ({'--num-classes': '8'}, 'size mismatch for fc.weight'),
    ({'--model': 'test_resnot'}, 'Unknown model'),
])
def test_cli_export_errors(changes, message, folder, capsys, tmp_path):
    options = {'--model': 'test_resnet', '--num-classes': '7', **changes}
    checkpoint = options.pop('checkpoint', str(folder / 'teacher.pth'))
    arguments = [text for option in options.items() for text in option]
    assert cli.main(['export', checkpoint, str(tmp_path / 'again'), *arguments]) == 1
    assert message in capsys.readouterr().err and not leftovers(tmp_path)


def test_cli_export_of_a_model_of_ones_own(own, capsys, tmp_path, monkeypatch):
    from own_models import Own
    monkeypatch.chdir(own)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != str(own)])
    torch.save(Own(width=6).state_dict(), 'own.pth')
    command = ['export', 'own.pth', str(tmp_path / 'teacher'), '--factory', 'own_models:Own']
    assert cli.main([*command, '--model-args', '{"width": 6}', '--input-size', '1', '8', '8', '--mean', '0.5',
                     '--std', '0.5']) == 0
    assert 'exported and verified; its README.md says how to load it' in capsys.readouterr().out
    assert verify(tmp_path / 'teacher', factory='own_models:Own')['bit_equal']
    assert cli.main([*command, '--model', 'test_resnet']) == 2
    assert 'needs --model with --num-classes' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['efficientvit_m0', 'levit_128s'])
def test_what_an_evaluation_with_gradients_kept_is_no_obstacle(name, tmp_path):
    model = build(name).eval()
    model(torch.randn(2, 3, 224, 224))
    path = export(model, tmp_path / 'teacher')
    assert torch.equal(logits_of(load(path), (3, 224, 224)), logits_of(model, (3, 224, 224)))


def test_cli_usage(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(['export', 'a', 'b', '--model', 'test_resnet', '--num-classes', '7', '--metadata', '[1]'])
    assert exit_.value.code == 2 and 'expected an object' in capsys.readouterr().err
