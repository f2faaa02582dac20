"""What comes from a folder, a checkpoint or a YAML decides what is computed, never what is run, fetched or written."""
import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from sf_teacher.adapters._timm import FeatureTeacher, build_model, build_teacher

import sf_teacher
from sf_teacher import SFTeacherError
from sf_teacher.data.opening import _open_files
from sf_teacher.exporting import reload
from sf_teacher.exporting.exported import load_teacher
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.verify import verify
from tests.exporting.folders import edit_config, edit_probe
from tests.helpers import build
from tests.split.families import FAMILIES

ROOT = Path(__file__).parents[1]
WATCHED: list[tuple] | None = None
CHANGES = {'os.mkdir', 'os.rename', 'os.remove', 'os.symlink', 'os.system', 'subprocess.Popen'}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch(event, args):
    """Network, processes and writing, as the interpreter itself reports them; cannot be taken off once it is on."""
    if WATCHED is None:
        return
    writes = event in CHANGES or (event == 'open' and args[2] & WRITES)
    if writes or event.startswith('socket.'):
        WATCHED.append((event, *args))
        if event.startswith('socket.'):
            raise OSError(f'{event}{args}: there is no network in a test')


sys.addaudithook(_watch)


@pytest.fixture
def watched(monkeypatch):
    """What was fetched, started or written since the test asked for this."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    globals()['WATCHED'] = seen = []
    yield seen
    globals()['WATCHED'] = None


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    return export(build(), tmp_path_factory.mktemp('module') / 'teacher', input_size=(3, 64, 64))


@pytest.fixture
def folder(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / 'teacher'))


CONSUMERS = {
    'verify': verify,
    'load_teacher': lambda folder: load_teacher(str(folder)),
    'wrap teacher': lambda folder: sf_teacher.wrap(f'local-dir:{folder}', 'test_resnet'),
    'wrap student': lambda folder: sf_teacher.wrap('test_resnet', f'Local-Dir:{folder}', num_classes=7),
    'build_teacher': lambda folder: build_teacher(f'local-dir:{folder}'),
    'build_model': lambda folder: build_model(f'local-dir:{folder}'),
    'FeatureTeacher': lambda folder: FeatureTeacher(str(folder)),
}
HOSTILE = {
    'pretrained': True,
    'pretrained_cfg': {'url': 'http://localhost:9/weights.pth'},
    'pretrained_cfg_overlay': {'file': '/etc/passwd'},
    'cache_dir': 'made-by-the-folder',
    'checkpoint_path': '/etc/passwd',
    'url': 'http://localhost:9/weights.pth',
    'hf_hub_id': 'somebody/else',
    'features_only': True,
    'scriptable': True,
    'pruned': True,
    'pretrained_filter_fn': 'os.system',
    'device': 'cuda',
    'model_name': 'hf-hub:somebody/else',
}


@pytest.mark.parametrize('consumer', CONSUMERS)
@pytest.mark.parametrize('name', HOSTILE)
def test_arguments_that_load_fetch_or_write_are_refused(name, consumer, folder, watched):
    edit_config(folder, lambda config: config['model_args'].update({name: HOSTILE[name]}))
    edit_probe(folder)
    watched.clear()
    with pytest.raises(SFTeacherError, match=rf'config.json gives {name}=.*, no argument that test_resnet'):
        CONSUMERS[consumer](folder)
    assert watched == []


@pytest.mark.parametrize('name', HOSTILE)
def test_verify_refuses_them_in_the_probe(name, folder, watched):
    edit_probe(folder, lambda facts: facts['model_args'].update({name: HOSTILE[name]}))
    watched.clear()
    with pytest.raises(SFTeacherError, match=rf'probe.safetensors gives {name}=.*, no argument that'):
        verify(folder)
    assert watched == []


@pytest.mark.parametrize('consumer', CONSUMERS)
@pytest.mark.parametrize('change, message', [
    (lambda config: config['pretrained_cfg'].update(url='http://localhost:9/'), 'gives url=.*weights .* are its own'),
    (lambda config: config.update(hf_hub_id='somebody/else'), 'gives hf_hub_id='),
    (lambda config: config['pretrained_cfg'].update(custom_load=True), 'gives custom_load='),
    (lambda config: config.update(architecture='hf-hub:somebody/else'), 'architecture .*hf-hub.*does not build'),
    (lambda config: config.update(architecture=['resnet18']), 'architecture .*does not build'),
    (lambda config: config.update(model_args=['pretrained']), 'no mapping of names to values'),
    (lambda config: config.update(pretrained_cfg='http://localhost:9'), "no model's configuration"),
])
def test_weights_and_architecture_are_the_folders_own(change, message, consumer, folder, watched):
    edit_config(folder, change)
    edit_probe(folder)
    watched.clear()
    with pytest.raises(SFTeacherError, match=message):
        CONSUMERS[consumer](folder)
    assert watched == []


def test_architecture_of_the_probe(folder, watched):
    edit_probe(folder, lambda facts: facts.update(arch='hf-hub:somebody/else'))
    watched.clear()
    with pytest.raises(SFTeacherError, match=r'probe.safetensors asks for the architecture .hf-hub:somebody/else.'):
        verify(folder)
    assert watched == []


def test_files_of_the_probe(folder):
    edit_probe(folder, lambda facts: facts['sha256'].update({'/dev/zero': ''}))
    with pytest.raises(SFTeacherError, match=r'speaks of ./dev/zero., which no export holds'):
        verify(folder)


def test_sizes_are_compared_before_memory_is_spent(folder):
    edit_config(folder, lambda config: config['model_args'].update(in_chans=10 ** 7))
    edit_probe(folder, lambda facts: facts['model_args'].update(in_chans=10 ** 7))
    with pytest.raises(SFTeacherError, match=r'conv1.0.weight is .* in model.safetensors, .*10000000'):
        verify(folder)


def test_a_factory_is_not_told_what_to_load(tmp_path):
    with pytest.raises(SFTeacherError, match=r'model_args gives cache_dir=.*write them into the factory'):
        export(build(), tmp_path / 'teacher', factory='timm:create_model', model_args={'cache_dir': 'elsewhere'})
    assert not list(tmp_path.iterdir())


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_class_map_is_not_executed(tmp_path):
    (tmp_path / 'data' / 'train' / 'cat').mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(tmp_path / 'data' / 'train' / 'cat' / 'a.png')
    (tmp_path / 'map.pkl').write_bytes(pickle.dumps({'cat': Malice(tmp_path / 'executed')}))
    config = SimpleNamespace(class_map=str(tmp_path / 'map.pkl'))
    with pytest.raises(SFTeacherError, match=r'no images can be read from it .*mkdir is not permitted in a class map'):
        _open_files(config, tmp_path / 'data' / 'train', None, 'RGB')
    assert not (tmp_path / 'executed').exists()


def test_every_line_of_the_page_has_its_test():
    page = (ROOT / 'docs' / 'security.md').read_text(encoding='utf-8')
    rows = [row for row in re.findall(r'^\| (.+?) \| (.+?) \|$', page, re.M) if row[0] != 'What holds']
    tests = {name for path in (ROOT / 'tests').rglob('test_*.py')
             for name in re.findall(r'^ *def (test_\w+)\(', path.read_text(encoding='utf-8'), re.M)}
    assert len(rows) >= 20
    for claim, names in rows:
        named = re.findall(r'`(test_\w+)`', names)
        assert named and set(named) <= tests, claim


def test_an_ordinary_folder_is_read_without_network_and_without_writing(folder, watched):
    """`verify` in this process, where it can be watched; the fresh one is given a temporary folder to answer in."""
    watched.clear()
    for consumer in CONSUMERS.values():
        consumer(folder)
    assert watched == []


@pytest.mark.parametrize('name', FAMILIES.values())
def test_what_timm_records_is_what_a_constructor_takes(name):
    """Of every module of timm: nothing that it records of its own is refused, and nothing that loads is taken."""
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=10)
    assert timm.models.get_model_args(model).keys() <= reload.constructor_arguments(name)
    assert not reload.constructor_arguments(name) & {*HOSTILE, 'cfg_overlay', 'pretrained_strict'}
