"""Whatever trained in place of the plain model comes home as the plain model, or is refused in words."""
import argparse
import copy
import json
import re
import shutil
import sys

import pytest
import safetensors.torch
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from sf_teacher import SFTeacherError, cli, wrap
from sf_teacher.exporting.checkpoint import load_checkpoint, read_file
from sf_teacher.exporting.exporter import export
from tests.exporting.folders import SIZE
from tests.helpers import build, jitter
from tests.training import training_runs as runs


def prefixed(model, prefix):
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def averaged(model):
    """AveragedModel of one model is that model; the model itself has gone on."""
    swa = torch.optim.swa_utils.AveragedModel(model)
    swa.update_parameters(model)
    return swa


def task_with_ema(model):
    task = wrap(jitter(copy.deepcopy(model)), 'test_resnet', input_size=(3, 64, 64))
    task.setup_ema()
    for name, tensor in task.trainable_module_ema.module.model.state_dict().items():
        tensor.copy_(model.state_dict()[name])
    return task.state_dict()


def checkpointed(model):
    """As FSDP, activation checkpointing and torch.compile of a part leave names."""
    return {f'module.{name}'.replace('layer1.', 'layer1._orig_mod.').replace('layer2.', '_fsdp_wrapped_module.layer2.')
            .replace('layer3.0.', 'layer3.0._checkpoint_wrapped_module.'): t for name, t in model.state_dict().items()}


FORMS = {
    'bare': lambda m: m.state_dict(),
    'timm': lambda m: {'state_dict': m.state_dict(), 'arch': 'test_resnet', 'args': argparse.Namespace(lr=0.1)},
    'timm, EMA': lambda m: {'state_dict': jitter(copy.deepcopy(m)).state_dict(), 'state_dict_ema': m.state_dict()},
    'ModelEmaV3': lambda m: ModelEmaV3(m).state_dict(),
    'Lightning': lambda m: {'state_dict': {**prefixed(m, 'model.'), 'criterion.weight': torch.ones(7)},
                            'pytorch-lightning_version': '2.5', 'callbacks': {}, 'hyper_parameters': {'lr': 0.1}},
    'Lightning, other name': lambda m: {'state_dict': prefixed(m, 'net.backbone.')},
    'Lightning, with EMA': lambda m: {'state_dict': {**prefixed(jitter(copy.deepcopy(m)), 'model.'),
                                                     **prefixed(m, 'ema_model.module.')}},
    'AveragedModel': lambda m: averaged(m).state_dict(),
    "torchvision's references": lambda m: {'model': prefixed(jitter(copy.deepcopy(m)), ''),
                                           'model_ema': averaged(m).state_dict()},
    'under ema': lambda m: {'model': jitter(copy.deepcopy(m)).state_dict(), 'ema': m.state_dict()},
    'averaged weights not there yet': lambda m: {'model': m.state_dict(), 'model_ema': {}},
    'net beside a description': lambda m: {'model': {'name': 'test_resnet'}, 'net': m.state_dict()},
    'task': lambda m: wrap(copy.deepcopy(m), 'test_resnet', input_size=(3, 64, 64)).state_dict(),
    'task with EMA': task_with_ema,
    'compiled DDP': lambda m: prefixed(m, '_orig_mod.module.'),
    'wrapped inside': checkpointed,
    'without counters': lambda m: {k: v for k, v in m.state_dict().items() if not k.endswith('num_batches_tracked')},
    'half precision': lambda m: {k: v.half() if v.is_floating_point() else v for k, v in m.half().state_dict().items()},
}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_gives_the_plain_model(form, tmp_path):
    model = build()
    torch.save(FORMS[form](model), tmp_path / 'checkpoint.pth')
    found = timm.create_model('test_resnet', num_classes=7)
    load_checkpoint(found, read_file(tmp_path / 'checkpoint.pth'), tmp_path / 'checkpoint.pth')
    for name, tensor in model.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(found.state_dict()[name], tensor.to(found.state_dict()[name].dtype)), name


def test_from_the_command_line(tmp_path, capsys):
    safetensors.torch.save_file({k: v.contiguous() for k, v in prefixed(build(), 'model.').items()},
                                tmp_path / 'lightning.safetensors')
    assert cli.main(['export', str(tmp_path / 'lightning.safetensors'), str(tmp_path / 'teacher'),
                     '--model', 'test_resnet', '--num-classes', '7']) == 0
    loaded = timm.create_model(f'local-dir:{tmp_path}/teacher', pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), build().state_dict().values(),
                                                 strict=True))


def test_of_several_models_one_is_named(tmp_path, capsys):
    state = {**prefixed(build(), 'teacher.'), **prefixed(jitter(build()), 'student.')}
    torch.save({'state_dict': state}, tmp_path / 'both.ckpt')
    command = ['export', str(tmp_path / 'both.ckpt'), str(tmp_path / 'teacher'), '--model', 'test_resnet',
               '--num-classes', '7']
    assert cli.main(command) == 1
    assert "holds 2 such models, under 'student.', 'teacher.': say which one by prefix" in capsys.readouterr().err
    assert cli.main([*command, '--prefix', 'teach.']) == 1
    assert "begins with prefix='teach.'; its names are teacher.conv1" in capsys.readouterr().err
    assert cli.main([*command, '--prefix', 'teacher.']) == 0
    loaded = timm.create_model(f'local-dir:{tmp_path}/teacher', pretrained=True)
    assert torch.equal(loaded.fc.weight, build().fc.weight)


@pytest.mark.parametrize('state, message', [
    (lambda: build('test_efficientnet').state_dict(),
     r'(?s)does not hold the weights of this ResNet, which has 92 tensors: \d+ missing .*\d+ of no use'),
    (lambda: prefixed(build('test_efficientnet'), 'model.'), r'(?s)under .model\..: .*\n.*trained as another model'),
    (lambda: build(num_classes=9).state_dict(),
     r'1?2? of another shape \(size mismatch for fc.weight: \(9, \d+\), in the model \(7, \d+\)\)'),
])
def test_another_model_is_told_in_three_lines(state, message, tmp_path):
    torch.save(state(), tmp_path / 'other.pth')
    model = build()
    with pytest.raises(SFTeacherError, match=message) as caught:
        load_checkpoint(model, read_file(tmp_path / 'other.pth'), tmp_path / 'other.pth')
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(len(line) < 500 for line in lines)
    assert 'Was it trained as another model, with other classes or arguments?' in lines[2]
    assert torch.equal(model.fc.weight, build().fc.weight)


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_shards_are_refused_by_name(one_rank, tmp_path):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (1,))
    model = fully_shard(build(), mesh=mesh)
    assert isinstance(model.fc.weight, DTensor)
    with pytest.raises(SFTeacherError, match=r'conv1.0.weight is a DTensor, a part .*get_model_state_dict\(model'):
        export(model, tmp_path / 'teacher')
    torch.save(model.state_dict(), tmp_path / 'sharded.pth')
    with pytest.raises(SFTeacherError, match=r'DTensor.*get_model_state_dict\(model'):
        load_checkpoint(build(), read_file(tmp_path / 'sharded.pth'), tmp_path / 'sharded.pth')


def test_a_quantised_model_is_refused_by_name(tmp_path):
    quantization = pytest.importorskip('torchao.quantization')
    model = build('test_vit')
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(SFTeacherError, match=r'blocks.0.attn.qkv.weight is quantised \(a torchao.*float weights'):
        export(model, tmp_path / 'teacher')
    model = build()
    model.fc.weight = nn.Parameter(model.fc.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(SFTeacherError, match=r'fc.weight is quantised .*float8'):
        export(model, tmp_path / 'teacher')


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_frozen_batch_norm_is_refused_with_the_remedy(name, tmp_path):
    model = build(name).eval()
    frozen = timm.layers.freeze_batch_norm_2d(copy.deepcopy(model)).eval()
    with pytest.raises(SFTeacherError, match=r'is a FrozenBatchNorm.*timm.layers.unfreeze_batch_norm_2d\(copy'):
        export(frozen, tmp_path / 'teacher')
    folder = export(timm.layers.unfreeze_batch_norm_2d(copy.deepcopy(frozen)), tmp_path / 'teacher')
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(x), frozen(x))
    torch.save(frozen.state_dict(), tmp_path / 'frozen.pth')
    load_checkpoint(build(name), read_file(tmp_path / 'frozen.pth'), tmp_path / 'frozen.pth')


def test_semantic_is_not_the_name_of_an_average(tmp_path):
    torch.save({**prefixed(build(), 'rgb.'), **prefixed(jitter(build()), 'semantic.')}, tmp_path / 'both.ckpt')
    with pytest.raises(SFTeacherError, match=r"holds 2 such models, under 'rgb\.', 'semantic\.': say which one"):
        load_checkpoint(build(), read_file(tmp_path / 'both.ckpt'), tmp_path / 'both.ckpt')


def test_a_checkpoint_of_a_run_is_exported_with_the_images_and_classes_of_the_run(tmp_path):
    data = runs.folder(tmp_path / 'data')
    command = ['train', 'test_resnet', '--method', 'none', '--data', str(data), '--input-size', '3', '16', '16',
               '--mean', '0.3', '--std', '0.2', '--in-memory', '--batch-size', '8', '--epochs', '1', '--device', 'cpu',
               '--output', str(tmp_path / 'run')]
    assert cli.main(command) == 0
    export_it = ['export', str(tmp_path / 'run/checkpoint-00001.pt')]
    assert cli.main([*export_it, str(tmp_path / 'again')]) == 0
    own, again = (json.loads((folder / 'config.json').read_text()) for folder in (
        tmp_path / 'run/teacher', tmp_path / 'again'))
    for name in ('input_size', 'mean', 'std', 'crop_pct', 'crop_mode', 'interpolation'):
        assert own['pretrained_cfg'][name] == again['pretrained_cfg'][name], name
    assert own['label_names'] == again['label_names'] and again['pretrained_cfg']['crop_pct'] == 1.
    other = ['export', str(tmp_path / 'run/mine.pth'), '--model', 'test_resnet', '--num-classes', '7']
    torch.save(build().state_dict(), other[1])      # something else that lies in the run's folder
    assert cli.main([*other, str(tmp_path / 'other')]) == 0
    usual = timm.create_model('test_resnet').pretrained_cfg
    assert tuple(exported_config(tmp_path / 'other')['pretrained_cfg']['mean']) == usual['mean']
    shutil.rmtree(tmp_path / 'run/teacher')     # a run that is not at its end
    assert cli.main([*export_it, str(tmp_path / 'early')]) == 0
    early = exported_config(tmp_path / 'early')
    assert early['pretrained_cfg'] == {k: v for k, v in again['pretrained_cfg'].items() if k != 'label_names'}
    assert cli.main([*export_it, str(tmp_path / 'told'), '--mean', '0.4', '--std', '0.1']) == 0
    assert json.loads((tmp_path / 'told/config.json').read_text())['pretrained_cfg']['mean'] == [0.4] * 3


def test_a_run_that_started_from_a_folder_and_has_not_exported_is_of_that_folders_model(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    export(timm.create_model('test_vit3', num_classes=4, img_size=32, patch_size=8), 'mine', input_size=(3, 32, 32))
    data = runs.folder(tmp_path / 'data')
    assert cli.main(['train', 'local-dir:mine', '--method', 'none', '--data', str(data), '--in-memory', '--mean', '0.3',
                     '--batch-size', '8', '--epochs', '1', '--device', 'cpu', '--output', 'run']) == 0
    own = exported_config(tmp_path / 'run/teacher')
    shutil.rmtree('run/teacher')
    assert cli.main(['export', 'run/checkpoint-00001.pt', 'early']) == 0
    early = exported_config(tmp_path / 'early')
    assert early['model_args'] == own['model_args'] and early['pretrained_cfg']['mean'] == [0.3] * 3
    shutil.copy('run/checkpoint-00001.pt', 'copied.pt')
    assert cli.main(['export', 'copied.pt', 'late']) == 2
    assert 'what the run that wrote the checkpoint says of its model and its images is not known' in caplog.text


def test_settings_of_something_else_beside_weights_are_not_read(tmp_path):
    (tmp_path / 'config.yaml').write_text('input_size: 224\nmean: 1\nstd: 1\nnum_classes: 5\ndata: {root: /data}\n')
    export(build(), tmp_path / 'teacher', input_size=SIZE, mean=0.1)
    net = timm.create_model('test_efficientnet', num_classes=4)
    torch.save(net.state_dict(), tmp_path / 'other.pth')
    command = ['export', str(tmp_path / 'other.pth'), str(tmp_path / 'a'), '--model', 'test_efficientnet']
    assert cli.main([*command, '--num-classes', '4']) == 0
    assert exported_config(tmp_path / 'a')['pretrained_cfg']['mean'] == list(net.pretrained_cfg['mean'])
    safetensors.torch.save_file(net.state_dict(), tmp_path / 'teacher/model.safetensors')     # put into a folder
    command[1:3] = [str(tmp_path / 'teacher/model.safetensors'), str(tmp_path / 'b')]
    assert cli.main([*command, '--num-classes', '4']) == 0
    assert exported_config(tmp_path / 'b')['pretrained_cfg']['mean'] == list(net.pretrained_cfg['mean'])


def test_a_config_that_asks_for_more_than_a_model_is_left_out_with_a_warning(tmp_path, caplog):
    export(build(), tmp_path / 'teacher', input_size=SIZE)
    config = exported_config(tmp_path / 'teacher')
    (tmp_path / 'teacher/config.json').write_text(json.dumps({**config, 'model_args': {'checkpoint_path': '/x'}}))
    assert cli.main(['export', str(tmp_path / 'teacher/model.safetensors'), str(tmp_path / 'a')]) == 2
    assert re.search("checkpoint_path='/x'.* Nothing is taken from there", caplog.text)


def test_class_names_by_index_in_timms_config(tmp_path):
    names = {str(i): name for i, name in enumerate('abcdefg')}
    timm.models.save_for_hf(build(), str(tmp_path / 'hf'), model_args={'num_classes': 7}, safe_serialization=True,
                            model_config={'label_names': names})
    assert exported_config(tmp_path / 'hf')['label_names'] == names
    assert cli.main(['export', str(tmp_path / 'hf/model.safetensors'), str(tmp_path / 'a')]) == 0
    assert exported_config(tmp_path / 'a')['label_names'] == list('abcdefg')


def test_a_factory_has_no_preprocessing_of_timms(tmp_path, monkeypatch, capsys):
    (tmp_path / 'nets_of_mine.py').write_text('import torch\n\n\ndef net():\n    return torch.nn.Sequential('
                                              'torch.nn.Flatten(), torch.nn.Linear(192, 4))\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    path = of_train_script(tmp_path / 'x.pth.tar', net, model='nets_of_mine', num_classes=4, crop_pct=0.9,
                           interpolation='bicubic')
    command = ['export', path, 'a', '--factory', 'nets_of_mine:net']
    assert cli.main(command) == 1
    assert 'does not say what it was trained on: pass input_size, mean, std' in capsys.readouterr().err
    assert cli.main([*command, '--input-size', '3', '8', '8', '--mean', '0.5', '--std', '0.2']) == 0
    monkeypatch.setattr(sys, 'path', [path for path in sys.path if path not in ('', str(tmp_path))])
    for name in ('nets_of_mine',):
        sys.modules.pop(name)
    assert cli.main(['verify', 'a', '--factory', 'nets_of_mine:net']) == 0
    assert cli.main(['push', 'a', 'me/net', '--dry-run', '--factory', 'nets_of_mine:net']) == 0


def of_train_script(path, net, **args):
    """A checkpoint as timm's train script writes it, of the arguments that matter here."""
    args = {'num_classes': None, 'model_kwargs': {}, 'crop_pct': None, 'mean': None, 'std': None, 'gp': None,
            'img_size': None, 'input_size': None, 'in_chans': None, 'interpolation': '', 'bn_momentum': None,
            'bn_eps': None, 'lr': 0.1, **args}
    torch.save({'epoch': 3, 'arch': args['model'], 'state_dict': net.state_dict(),
                'args': argparse.Namespace(**args)}, path)
    return str(path)


def exported_config(folder):
    return json.loads((folder / 'config.json').read_text())


def test_the_arguments_of_timms_train_script_say_the_model_and_its_images(tmp_path):
    model = jitter(timm.create_model('test_efficientnet', num_classes=5, in_chans=1, global_pool='max', bn_eps=0.1))
    path = of_train_script(tmp_path / 'model_best.pth.tar', model, model='test_efficientnet.r160_in1k', num_classes=5,
                           gp='max', in_chans=1, bn_eps=0.1, img_size=48, mean=[0.3], std=[0.2], crop_pct=0.7,
                           interpolation='bilinear')
    assert cli.main(['export', path, str(tmp_path / 'a')]) == 0
    loaded = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    images = torch.randn(4, 1, 48, 48)
    assert torch.equal(loaded(images), model.eval()(images))
    said = exported_config(tmp_path / 'a')['pretrained_cfg']
    assert said['input_size'] == [1, 48, 48] and said['mean'] == [0.3] and said['std'] == [0.2]
    assert said['crop_pct'] == 0.7 and said['interpolation'] == 'bilinear'
    told = ['--crop-pct', '0.9', '--interpolation', 'bicubic', '--std', '0.1', '--input-size', '1', '32', '32']
    assert cli.main(['export', path, str(tmp_path / 'b'), *told]) == 0
    said = exported_config(tmp_path / 'b')['pretrained_cfg']
    assert [said[n] for n in ('crop_pct', 'interpolation', 'std', 'mean', 'input_size')] == [
        0.9, 'bicubic', [0.1], [0.3], [1, 32, 32]]


@pytest.mark.parametrize('changes', [{'in_chans': 1}, {'model': 'test_resnet.of_a_later_timm', 'in_chans': 1}])
def test_channels_alone_do_not_say_a_size(changes, tmp_path):
    path = of_train_script(tmp_path / 'x.pth.tar', timm.create_model('test_resnet', num_classes=7, in_chans=1),
                           **{'model': 'test_resnet', 'num_classes': 7, **changes})
    assert cli.main(['export', path, str(tmp_path / 'a')]) == 0
    assert exported_config(tmp_path / 'a')['pretrained_cfg']['input_size'] == [1, 160, 160]


def test_a_crop_is_the_one_that_timms_validation_uses(tmp_path):
    name = 'resnet10t'
    assert timm.get_pretrained_cfg(name).test_crop_pct
    path = of_train_script(tmp_path / 'x.pth.tar', timm.create_model(name, num_classes=4), model=name, num_classes=4,
                           crop_pct=0.7, img_size=32)
    assert cli.main(['export', path, str(tmp_path / 'a')]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    assert timm.data.resolve_data_config({}, model=model, use_test_size=True)['crop_pct'] == 0.7


def test_a_size_is_built_in_only_where_the_checkpoint_does_not_say_how_it_was_built(tmp_path):
    fixed = timm.create_model('test_vit3', num_classes=4, img_size=32)
    torch.save(fixed.state_dict(), tmp_path / 'fixed.pth')
    command = ['--model', 'test_vit3', '--num-classes', '4', '--input-size', '3', '32', '32']
    assert cli.main(['export', str(tmp_path / 'fixed.pth'), str(tmp_path / 'a'), *command]) == 0
    dynamic = timm.create_model('test_vit3', num_classes=4, dynamic_img_size=True)      # its table is of 160 pixels
    path = of_train_script(tmp_path / 'dynamic.pth.tar', dynamic, model='test_vit3', num_classes=4, img_size=32,
                           model_kwargs={'dynamic_img_size': True})
    assert cli.main(['export', path, str(tmp_path / 'b')]) == 0
    assert exported_config(tmp_path / 'b')['pretrained_cfg']['input_size'] == [3, 32, 32]


@pytest.mark.parametrize('changes', [
    {'model': 'hf-hub:somebody/model'}, {'model_kwargs': {'checkpoint_path': '/etc/passwd'}},
    {'model_kwargs': {'pretrained_cfg': {'url': 'https://example.org'}}}])
def test_the_arguments_in_a_checkpoint_cannot_ask_for_more_than_a_model(changes, tmp_path, capsys, caplog):
    path = of_train_script(tmp_path / 'x.pth.tar', build(), **{'model': 'test_resnet', 'num_classes': 7, **changes})
    assert cli.main(['export', path, str(tmp_path / 'a')]) == 2
    assert 'Its model is not taken from there' in caplog.text
    assert 'give --model with --num-classes' in capsys.readouterr().err
    assert not (tmp_path / 'a').exists()
    assert cli.main(['export', path, str(tmp_path / 'a'), '--model', 'test_resnet', '--num-classes', '7']) == 0


@pytest.mark.parametrize('changes', [{'model_kwargs': 'test_resnet'}, {'img_size': '48'}, {'mean': [0.5, 0.5]}])
def test_arguments_that_timm_never_got_are_not_taken(changes, tmp_path, caplog):
    path = of_train_script(tmp_path / 'x.pth.tar', build(), **{'model': 'test_resnet', 'num_classes': 7, **changes})
    assert cli.main(['export', path, str(tmp_path / 'a')]) == 2
    assert "x.pth.tar are none that timm's train script takes" in caplog.text


def test_weights_beside_a_config_of_timm_or_alone_say_what_they_are(tmp_path):
    names = ['ant', 'bee', 'cat', 'dog']
    model = jitter(timm.create_model('test_resnet', num_classes=4, global_pool='max'))
    model.pretrained_cfg = {**model.pretrained_cfg, 'crop_pct': 0.6}
    export(model, tmp_path / 'first', input_size=SIZE, mean=0.3, std=0.2, class_names=names)
    of_first = exported_config(tmp_path / 'first')
    for file in ('model.safetensors', 'teacher.pth'):
        assert cli.main(['export', str(tmp_path / 'first' / file), str(tmp_path / file)]) == 0
        again = exported_config(tmp_path / file)
        assert again['pretrained_cfg'] == of_first['pretrained_cfg'] and again['label_names'] == names
        assert again['model_args'] == of_first['model_args'] == {'global_pool': 'max'} | of_first['model_args']
    (tmp_path / 'alone').mkdir()
    shutil.copy(tmp_path / 'first/teacher.pth', tmp_path / 'alone')
    assert cli.main(['export', str(tmp_path / 'alone/teacher.pth'), str(tmp_path / 'of-alone')]) == 0
    again = exported_config(tmp_path / 'of-alone')
    assert again['pretrained_cfg']['mean'] == [0.3] * 3 and again['label_names'] == names
    (tmp_path / 'alone/config.json').write_text('{"architectures": ["ResNetForImageClassification"]}')   # another's
    assert cli.main(['export', str(tmp_path / 'alone/teacher.pth'), str(tmp_path / 'beside-another')]) == 0


@pytest.mark.parametrize(('options', 'message'), [
    ((), 'weights.pth does not say which model it holds: give --model with --num-classes for one that timm builds'),
    (('--model', 'test_resnet'), 'weights.pth does not say which model it holds: give --model with --num-classes'),
    (('--num-classes', '7', '--crop-pct', '0.9', '--factory', 'timm:create_model'),
     'export takes --num-classes, --crop-pct for a model that timm builds by name, or --factory'),
    (('--model', 'test_resnet', '--factory', 'timm:create_model'), 'export takes --model for .* and not both'),
])
def test_a_checkpoint_that_says_nothing_needs_to_be_told(options, message, tmp_path, capsys):
    torch.save(build().state_dict(), tmp_path / 'weights.pth')
    assert cli.main(['export', str(tmp_path / 'weights.pth'), str(tmp_path / 'a'), *options]) == 2
    assert re.search(message, ' '.join(capsys.readouterr().err.split()))
