"""`sf-teacher inspect --hooks`: torchvision's paths are found here by what the modules compute."""
import json

import pytest
import timm
import torch

from sf_teacher.analysis.hooks import find_hooks, hooks, nearest, torchvision_paths
from sf_teacher.cli import main

SIZE = (3, 64, 64)
IMAGE = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1))


def captured(model, hook):
    got = []
    module = model.get_submodule(hook['path'])
    with module.register_forward_hook(lambda m, args, output: got.append(args[0] if hook['io'] == 'input' else output)):
        logits = model.eval()(IMAGE)
    return got[-1], logits


def named(result):
    return {(h['torchvision'], h['io']): h for h in result['hooks']}


@pytest.mark.parametrize(('name', 'expected'), [
    ('resnet18', {'layer1': 'layer1', 'layer4': 'layer4', 'avgpool': 'global_pool.pool', 'fc': 'fc'}),
    ('test_vit', {'layer1': 'blocks.1', 'layer4': 'blocks.5', 'avgpool': 'fc_norm', 'fc': 'head'}),
    ('test_efficientnet', {'avgpool': 'global_pool.pool', 'fc': 'classifier'}),
    ('test_convnext', {'layer1': 'stages.0', 'layer4': 'stages.3', 'fc': 'head.fc'}),
])
def test_each_place_is_what_its_counterpart_is(name, expected):
    size = (3, 160, 160) if name == 'test_vit' else SIZE
    result = hooks(name, num_classes=10, input_size=size)
    found = named(result)
    assert {word: found[word, 'output']['path'] for word in expected} == expected
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **({'img_size': 160} if name == 'test_vit' else {}))
    if name != 'test_vit':
        for hook in result['hooks']:
            value, logits = captured(model, hook)
            assert tuple(value.shape[1:]) == tuple(hook['shape'])
            if hook['torchvision'] == 'avgpool':
                assert torch.equal(model.get_classifier()(value.flatten(1)), logits)


def test_the_input_of_the_last_activation_of_a_stage():
    found = named(hooks('resnet50', num_classes=10, input_size=SIZE))
    assert found['layer4.-1.relu', 'input']['path'] == 'layer4.2.act3'
    without = named(hooks('test_convnext', num_classes=10, input_size=SIZE))
    assert without['layer4.-1.relu', 'output']['path'] == 'stages.3'
    assert 'does not end with an activation' in without['layer4.-1.relu', 'output']['use']


def test_every_path_of_torchvisions_model_of_the_same_name():
    def found(name):
        return {h['torchvision']: h['path'] for h in hooks(name, num_classes=10, input_size=SIZE)['torchvision']}

    expected = {'relu': 'act1', 'avgpool': 'global_pool.pool', 'layer3.1': 'layer3.1', 'bn1': 'bn1'}
    assert expected.items() <= found('resnet18').items()
    expected = {'features.relu0': 'features.norm0', 'features.pool0': 'features.pool0', 'classifier': 'classifier'}
    assert expected.items() <= found('densenet121').items()
    assert torchvision_paths(timm.create_model('test_resnet').eval(), 'test_resnet', SIZE) == []


def test_the_model_is_left_as_it_was():
    model = timm.create_model('test_resnet').train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    find_hooks(model, SIZE)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nearest_names_what_exists():
    model = timm.create_model('test_resnet')
    assert "'layer4'" in nearest(model, 'layer5') and "'global_pool" in nearest(model, 'avgpool')
    assert nearest(torch.nn.Sequential(torch.nn.Linear(2, 2)), 'fc') == "near it are '0'"


def test_the_command_line(capsys):
    args = ['inspect', 'test_resnet', '--num-classes', '10', '--input-size', '3', '64', '64', '--hooks']
    assert main([*args, '--json']) == 0
    assert json.loads(capsys.readouterr().out)['hooks'][0]['torchvision'] == 'layer1'
    assert main(args) == 0
    text = capsys.readouterr().out
    assert 'layer4.-1.relu' in text and 'global_pool' in text and 'hooked by' in text
