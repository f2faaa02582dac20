"""Nets of RepDistiller's and mdistiller's kind: trained, exported, and loaded as those repositories load a teacher."""
import pytest
import torch

import sf_teacher
from sf_teacher import SFTeacherError, cli

NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        self.layer1 = nn.Conv2d(3, width, 3, 2, 1)
        self.layer2 = nn.Conv2d(width, width, 3, 2, 1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        first = self.layer1(x).relu()
        second = self.layer2(first).relu()
        logits = self.fc(second.mean((2, 3)))
        return {returned}


def resnet32x4(num_classes=10):
    return Net(8, num_classes)


def vgg13_bn(num_classes=10):
    return Net(12, num_classes)
'''
SAID = dict(input_size=(3, 16, 16), mean=0.5, std=0.25)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """Packages with the dictionaries of both repositories, in which an adapter has put a teacher ("mine")."""
    for name, returned, dictionary in (
            ('like_repdistiller', 'logits', 'model_dict = {"mine": partial(resnet32x4), '
             '"resnet32x4": resnet32x4, "vgg13": vgg13_bn}'),
            ('like_mdistiller', 'logits, {"feats": [first, second], "pooled_feat": second.mean((2, 3))}',
             'cifar_model_dict = {"mine": (partial(resnet32x4), "x"), "resnet32x4": (resnet32x4, "y"), '
             '"vgg13": (vgg13_bn, None)}')):
        (tmp_path / 'code' / name).mkdir(parents=True)
        (tmp_path / 'code' / name / 'nets.py').write_text(NETS.replace('{returned}', returned))
        (tmp_path / 'code' / name / '__init__.py').write_text(
            f'from functools import partial\nfrom .nets import resnet32x4, vgg13_bn\n{dictionary}\n')
    monkeypatch.syspath_prepend(str(tmp_path / 'code'))


def loaded_as_repdistiller(path):
    """Its `load_teacher`, which builds what the folder's name says."""
    from like_repdistiller import model_dict
    name = str(path).split('/')[-2].split('_')[0]
    model = model_dict[name](num_classes=7)
    model.load_state_dict(torch.load(path)['model'])
    return model


def loaded_as_mdistiller(path):
    """Its `load_checkpoint` on the net of its dictionary."""
    from like_mdistiller import cifar_model_dict
    model, _ = cifar_model_dict[path.parent.name.removesuffix('_vanilla')]
    model = model(num_classes=7)
    with open(path, 'rb') as f:
        model.load_state_dict(torch.load(f, map_location='cpu')['model'])
    return model


@pytest.mark.slow
@pytest.mark.parametrize('layout,load', [
    ('repdistiller', loaded_as_repdistiller), ('mdistiller', loaded_as_mdistiller)], ids=['repdistiller', 'mdistiller'])
def test_a_net_of_the_repository_goes_back_to_it(layout, load, nets, tmp_path):
    factory = __import__(f'like_{layout}').resnet32x4
    teacher = factory(num_classes=7)
    task = sf_teacher.wrap(teacher, factory(num_classes=7), boundaries=[('layer1', 'layer1')], input_size=(3, 16, 16))
    task(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]))['loss'].backward()
    torch.optim.SGD(task.parameters(), 0.1).step()
    arguments = {'factory': factory, 'model_args': {'num_classes': 7}, 'layout': layout, **SAID}
    task.check_export(tmp_path / 'resnet32x4_vanilla', **arguments)
    folder = task.export(tmp_path / 'resnet32x4_vanilla', **arguments)
    again, x = load(folder / 'ckpt_epoch_240.pth').eval(), torch.randn(2, 3, 16, 16)
    logits = [z if isinstance(z, torch.Tensor) else z[0] for z in (again(x), teacher.eval()(x))]
    assert torch.equal(*logits)
    (folder / 'ckpt_epoch_240.pth').write_bytes(b'')
    with pytest.raises(SFTeacherError, match=r'ckpt_epoch_240.pth is truncated or changed'):
        sf_teacher.verify(folder, factory=f'like_{layout}.nets:resnet32x4')


@pytest.mark.parametrize('layout,load', [
    ('repdistiller', loaded_as_repdistiller), ('mdistiller', loaded_as_mdistiller)], ids=['repdistiller', 'mdistiller'])
def test_a_checkpoint_goes_back_from_the_command_line(layout, load, nets, tmp_path, monkeypatch, capsys):
    """Of a net that was trained elsewhere, e.g. by Lightning; no adapter is needed to load it there."""
    net = __import__(f'like_{layout}').resnet32x4(num_classes=7)
    state = {f'model.{key}': value for key, value in net.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'net.ckpt')
    monkeypatch.chdir(tmp_path / 'code')
    folder = tmp_path / 'resnet32x4_vanilla'
    command = ['export', str(tmp_path / 'net.ckpt'), str(folder), '--factory', f'like_{layout}.nets:resnet32x4',
               '--model-args', '{"num_classes": 7}', '--input-size', '3', '16', '16', '--mean', '0.5', '--std', '0.25']
    assert cli.main([*command, '--layout', 'zoo']) == 1
    assert "layout is one of 'repdistiller', 'mdistiller', got 'zoo'" in capsys.readouterr().err
    assert cli.main(['export', *command[1:3], '--model', 'test_resnet', '--num-classes', '7', '--layout', layout]) == 1
    assert not folder.exists()
    assert cli.main([*command, '--layout', layout]) == 0
    assert f'{layout} loads {folder}/ckpt_epoch_240.pth as it is' in capsys.readouterr().out
    again = load(folder / 'ckpt_epoch_240.pth')
    assert list(again.state_dict()) == list(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize('folder,arguments,message', [
    ('resnet32x4_vanilla', {'layout': 'torchdistill'}, r"layout is one of 'repdistiller', 'mdistiller', got 'torchd"),
    ('resnet32x4_vanilla', {'factory': 'torch.nn:Linear'}, r"factory='torch.nn:Linear' is not in the cifar_model_dict"),
    ('vgg13_vanilla', {}, r"'vgg13_vanilla' does not say resnet32x4: export to a folder named resnet32x4_vanilla"),
    ('resnet32x4_sft', {}, r"'resnet32x4_sft' does not say .*in its download_ckpts/cifar_teachers"),
    ('teacher', {'layout': 'repdistiller', 'factory': 'like_repdistiller.nets:vgg13_bn'},
     r"'teacher' does not say vgg13: .* vgg13_vanilla, in its save/models"),
])
def test_what_the_repository_would_not_load_is_refused(folder, arguments, message, nets, tmp_path):
    from like_mdistiller import resnet32x4
    arguments = {'layout': 'mdistiller', 'factory': resnet32x4, **SAID, **arguments}
    with pytest.raises(SFTeacherError, match=message):
        sf_teacher.export(resnet32x4(), tmp_path / folder, **arguments)
    assert not (tmp_path / folder).exists()
