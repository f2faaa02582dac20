"""A folder that is not what was exported is refused by whoever loads it, and the message says what differs."""
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sf_teacher.adapters._timm import build_model, build_teacher

import sf_teacher
from sf_teacher import SFTeacherError, cli
from sf_teacher.exporting.exported import load_teacher
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.verify import verify
from tests.exporting.folders import edit_config, edit_probe
from tests.helpers import build

LOADERS = {
    'load_teacher': lambda folder: load_teacher(str(folder)),
    'wrap': lambda folder: sf_teacher.wrap(f'local-dir:{folder}', 'test_resnet').teacher,
    'torchdistill': lambda folder: build_teacher(f'local-dir:{folder}'),
    'student': lambda folder: build_model(f'local-dir:{folder}', pretrained=True),
}


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    return export(build(act_layer='gelu'), tmp_path_factory.mktemp('module') / 'teacher', input_size=(3, 64, 64))


@pytest.fixture
def folder(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / 'teacher'))


def flip_a_bit(folder):
    data = bytearray((folder / 'model.safetensors').read_bytes())
    data[-7] ^= 1
    (folder / 'model.safetensors').write_bytes(data)


def make_nan(folder):
    state = safetensors.torch.load_file(folder / 'model.safetensors')
    state['fc.weight'][0, 0] = float('nan')
    safetensors.torch.save_file(state, folder / 'model.safetensors')


@pytest.mark.parametrize('loader', LOADERS)
def test_a_folder_as_it_was_exported_is_loaded_without_a_warning(loader, folder, caplog):
    model = LOADERS[loader](folder).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), build(act_layer='gelu').eval()(x))
    assert 'checksum' not in caplog.text and 'be checked' not in caplog.text


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('damage', [flip_a_bit, make_nan])
def test_changed_weights_are_refused(damage, loader, folder):
    damage(folder)
    with pytest.raises(SFTeacherError, match=r'teacher: model.safetensors is truncated or changed: its SHA-256'):
        LOADERS[loader](folder)


FIELDS = [     # every field of config.json that changes a result, and what somebody may make of it
    ('pretrained_cfg.interpolation', 'nearest', "interpolation nearest, exported was bilinear"),
    ('pretrained_cfg.crop_pct', 0.5, r'crop_pct 0.5, exported was 0.95'),
    ('pretrained_cfg.crop_mode', 'squash', 'crop_mode squash, exported was center'),
    ('pretrained_cfg.mean', [0.4, 0.5, 0.5], r'mean \[0.4, 0.5, 0.5\], exported was \[0.5'),
    ('pretrained_cfg.std', [0.4, 0.5, 0.5], r'std \[0.4, 0.5, 0.5\], exported was \[0.5'),
    ('pretrained_cfg.input_size', [3, 32, 32], r'input_size \[3, 32, 32\], exported was \[3, 64, 64\]'),
    ('pretrained_cfg.test_input_size', [3, 32, 32], r'test_input_size \[3, 32, 32\], exported was nothing'),
    ('pretrained_cfg.fixed_input_size', True, 'fixed_input_size True, exported was False'),
    ('pretrained_cfg.label_offset', 1, 'label_offset 1, exported was nothing'),
    ('pretrained_cfg.pool_size', [9, 9], r'pool_size \[9, 9\], exported was'),
    ('num_classes', 6, 'num_classes 6, exported was 7'),
    ('global_pool', 'max', 'global_pool max, exported was avg'),
    ('model_args.global_pool', 'max', 'global_pool max, exported was avg'),
    ('model_args.act_layer', 'relu', 'act_layer relu, exported was gelu'),
    ('model_args.in_chans', 1, 'in_chans 1, exported was 3'),
    ('model_args.output_stride', 16, 'output_stride 16, exported was nothing'),
    ('label_names', ['dog'], r"label_names \['dog'\], exported was nothing"),
    ('architecture', 'test_resnet2', 'architecture test_resnet2|does not build'),
]


def edit(folder, field, value):
    def change(config):
        *path, leaf = field.split('.')
        for key in path:
            config = config[key]
        config[leaf] = value
    return edit_config(folder, change)


@pytest.mark.parametrize('field, value, message', FIELDS)
def test_every_field_that_changes_results_is_compared(field, value, message, folder):
    assert edit(folder, field, value)
    for refused in (verify, *LOADERS.values()):
        with pytest.raises(SFTeacherError, match=f'config.json (gives|asks for the) {message}'):
            refused(folder)


def test_what_was_edited_is_put_back_or_exported_anew(folder):
    before = (folder / 'config.json').read_bytes()
    edit(folder, 'pretrained_cfg.crop_pct', 0.5)
    with pytest.raises(SFTeacherError, match='Put that back, or export the teacher anew as you want it'):
        verify(folder)
    (folder / 'config.json').write_bytes(before)
    assert verify(folder)['bit_equal']


def test_metadata_is_covered_by_the_checksum(folder):
    edit(folder, 'sf_teacher.version', '9.9')
    for refused in (verify, *LOADERS.values()):
        with pytest.raises(SFTeacherError, match=r'config.json is truncated or changed: its SHA-256'):
            refused(folder)


def test_a_folder_of_an_earlier_version_is_loaded_and_a_warning_says_what_is_not_checked(folder, caplog, capsys):
    def as_before(facts):
        facts.pop('config')
        facts['sha256'].pop('config.json')
        facts['sf_teacher_version'] = '0.1'
    edit_probe(folder, as_before, consistent=False)
    for loader in LOADERS.values():
        caplog.clear()
        loader(folder)
        assert 'exported by sf_teacher 0.1, which kept no checksum of config.json' in caplog.text
    assert cli.main(['verify', str(folder)]) == 0
    assert 'note: it was exported by sf_teacher 0.1' in capsys.readouterr().out
    flip_a_bit(folder)
    for loader in LOADERS.values():
        with pytest.raises(SFTeacherError, match=r'model.safetensors is truncated or changed'):
            loader(folder)


def test_a_folder_that_somebody_else_wrote(folder, caplog):
    (folder / 'probe.safetensors').unlink()
    for loader in LOADERS.values():
        caplog.clear()
        loader(folder)
        assert 'sf_teacher did not export it: whether it is complete and unchanged cannot be checked' in caplog.text
    make_nan(folder)
    for loader in LOADERS.values():
        with pytest.raises(SFTeacherError, match=r'fc.weight in model.safetensors is not finite'):
            loader(folder)
    weights = folder / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    for loader in LOADERS.values():
        with pytest.raises(SFTeacherError, match=r'model.safetensors cannot be read, it is truncated'):
            loader(folder)


def test_teacher_pth_under_a_timm_name(folder, tmp_path):
    arguments = {'num_classes': 7, 'act_layer': 'gelu'}
    build_teacher('test_resnet', str(folder / 'teacher.pth'), **arguments)
    state = torch.load(folder / 'teacher.pth', weights_only=True)
    state['model']['fc.weight'][0, 0] = float('nan')
    torch.save(state, folder / 'teacher.pth')
    with pytest.raises(SFTeacherError, match=r'teacher.pth is truncated or changed: its SHA-256'):
        build_teacher('test_resnet', str(folder / 'teacher.pth'), **arguments)
    shutil.move(folder / 'teacher.pth', tmp_path / 'alone.pth')
    with pytest.raises(SFTeacherError, match=r'fc.weight of teacher .test_resnet. .*alone.pth. is not finite'):
        build_teacher('test_resnet', str(tmp_path / 'alone.pth'), **arguments)
