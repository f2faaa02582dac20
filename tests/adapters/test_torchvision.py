"""Which teachers torchvision builds too is found by comparing; the committed list is what the comparison gives."""
import pytest
import timm
import torch
import torchvision
import yaml
from sf_teacher.adapters import torchdistill as adapter
from torchdistill.common.main_util import load_ckpt
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model

from sf_teacher import SFTeacherError, cli
from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.torchvision_format import is_same, relation, shared_names, to_torchvision
from sf_teacher.exporting.torchvision_names import MAPPED, SAME

from ..helpers import jitter
from .torchdistill_runs import HALF, SIZE


@pytest.mark.parametrize(('name', 'expected'), [
    ('resnet18', 'same'), ('densenet121', 'same'), ('resnext50_32x4d', 'same'),
    ('vgg11_bn', 'mapped'), ('convnext_tiny', 'mapped'), ('efficientnet_b0', 'mapped'),
    ('efficientnet_b5', 'different'), ('inception_v3', 'different')])
def test_a_share_of_the_list_is_regenerated(name, expected):
    assert relation(name) == expected
    assert (name in SAME, name in MAPPED) == (expected == 'same', expected == 'mapped')


@pytest.mark.slow
def test_keys_and_shapes_of_all_shared_names():
    """The whole list, short of the outputs: on the meta device it costs seconds."""
    found = []
    for name in shared_names():
        with torch.device('meta'):
            ours = timm.create_model(name, num_classes=7).state_dict()
            theirs = torchvision.models.get_model(name, weights=None, num_classes=7).state_dict()
        if {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}:
            found.append(name)
    assert tuple(found) == SAME and len(SAME) == 14


def model(name, **kwargs):
    torch.manual_seed(0)
    return jitter(timm.create_model(name, num_classes=10, **kwargs))


def blocks(folder):
    """The block under our key, and the one in comments under torchvision's."""
    text = (folder / 'torchdistill.yaml').read_text()
    other = text[text.index('# models:'):].replace('# ', '') if '# models:' in text else 'null'
    return yaml.safe_load(text), yaml.safe_load(other)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'format', 'file'), [
    ('resnet18', 'timm', 'teacher.pth'), ('vgg11', 'torchvision', 'torchvision.pth'),
    ('efficientnet_b0', 'torchvision', 'torchvision.pth'), ('efficientnet_b0', 'timm', None),
    ('test_resnet', 'timm', None)])
def test_the_snippet_says_which_path_applies(tmp_path, monkeypatch, name, format, file):
    monkeypatch.chdir(tmp_path)
    teacher = model(name)
    folder = export(teacher, tmp_path / 'teacher', input_size=SIZE, mean=HALF, std=HALF, format=format)
    ours, theirs = blocks(folder)
    assert ours['models']['teacher_model']['key'] == 'sf_teacher.timm_teacher'
    if file is None:
        text = (folder / 'torchdistill.yaml').read_text()
        assert theirs is None and "torchvision's keys do not apply" in text
        assert ('format="torchvision"' in text) == (name in MAPPED)
        return
    config = theirs['models']['teacher_model']
    assert config['src_ckpt'] == f'./teacher/{file}'
    twin = get_image_classification_model(config)
    load_ckpt(config['src_ckpt'], model=twin)
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(twin.eval()(x), teacher.eval()(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(('name', 'message'), [
    ('test_resnet', r'test_resnet cannot be exported .* no model of this name.*vgg19.*key \'sf_teacher.timm_teacher\''),
    ('resnet26', r'no model of this name; like it: resnet'),
    ('efficientnet_b5', r'gives other logits on the same weights'),
])
def test_every_other_architecture_is_refused(tmp_path, name, message):
    with pytest.raises(SFTeacherError, match=message):
        export(model(name), tmp_path / 'teacher', input_size=SIZE, format='torchvision')
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(SFTeacherError, match=r"format is one of 'timm', 'torchvision', got 'onnx'"):
        export(model('test_resnet'), tmp_path / 'teacher', format='onnx')


def test_a_model_that_only_looks_the_same_is_none():
    """Same name, keys and shapes, another activation: the logits tell."""
    teacher = model('resnet18', act_layer='gelu').eval()
    x = torch.randn(2, *SIZE)
    with torch.inference_mode():
        logits = teacher(x)
    assert not is_same('resnet18', teacher.state_dict(), x, logits)
    with pytest.raises(SFTeacherError, match=r"torchvision's model gives other logits on the same weights"):
        to_torchvision('resnet18', teacher.state_dict(), x, logits)


def test_the_command_line_prints_the_lines_to_paste(tmp_path, capsys):
    torch.save(model('resnet18').state_dict(), tmp_path / 'resnet18.pth')
    arguments = [str(tmp_path / 'resnet18.pth'), str(tmp_path / 'teacher'), '--model', 'resnet18',
                 '--num-classes', '10', '--input-size', '3', '32', '32', '--format', 'torchvision']
    assert cli.main(['export', *arguments]) == 0
    printed = capsys.readouterr().out
    assert "key: 'sf_teacher.timm_teacher'" in printed and "key: 'resnet18'" in printed
    assert f"src_ckpt: '{tmp_path}/teacher/teacher.pth'" in printed and 'in train mode' in printed


class TestTeacherKey:
    def test_inception_v3_is_torchvisions_without_its_auxiliary_classifier(self, tmp_path):
        teacher = model('inception_v3').eval()
        folder = export(teacher, tmp_path / 'teacher', input_size=(3, 75, 75), mean=HALF, std=HALF)
        found = get_model('sf_teacher.torchvision_teacher', model_name=f'local-dir:{folder}')
        assert isinstance(found, torchvision.models.Inception3) and not any(m.training for m in found.modules())
        x = torch.randn(2, 3, 75, 75)
        torch.testing.assert_close(found(x), teacher(x), rtol=0, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize('name', ['resnet18', 'vgg11', 'efficientnet_b0'])
    def test_gives_torchvisions_module_in_eval_mode(self, tmp_path, name):
        teacher = model(name).eval()
        folder = export(teacher, tmp_path / 'teacher', input_size=SIZE, mean=HALF, std=HALF)
        found = get_model('sf_teacher.torchvision_teacher', model_name=f'local-dir:{folder}', num_classes=10)
        twin = torchvision.models.get_model(name, num_classes=10)
        assert type(found) is type(twin) and list(found.state_dict()) == list(twin.state_dict())
        assert not any(m.training for m in found.modules())
        x = torch.randn(2, *SIZE)
        torch.testing.assert_close(found(x), teacher(x), rtol=0, atol=1e-4)

    @pytest.mark.parametrize(('kwargs', 'message'), [
        ({'model_name': 'resnet18'}, r"model_name 'resnet18': give 'local-dir:FOLDER', a folder that"),
        ({'model_name': 'local-dir:nowhere'}, r"'local-dir:nowhere': /.*/nowhere does not exist. Give the folder"),
        ({'model_name': 'local-dir:{root}', 'num_classes': 7}, r'the teacher has 10 classes, not num_classes=7'),
        ({'model_name': 'local-dir:{root}'},
         r"no model that computes what this test_resnet computes. Use the key 'sf_teacher.timm_teacher', and name its "
         r"modules as `sf-teacher inspect test_resnet --hooks`"),
    ])
    def test_refuses_what_torchvision_does_not_have(self, tmp_path, kwargs, message):
        folder = export(model('test_resnet'), tmp_path / 'teacher', input_size=SIZE, mean=HALF, std=HALF)
        kwargs = {**kwargs, 'model_name': kwargs['model_name'].format(root=folder)}
        with pytest.raises(SFTeacherError, match=message):
            adapter.torchvision_teacher(**kwargs)
