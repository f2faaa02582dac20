"""torchdistill takes exported teachers and trains them inside a YAML; the loss, the teacher and the errors are ours."""
import copy
import difflib
import itertools
import logging
import math
import pickle
import re
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from sf_teacher.adapters import torchdistill as adapter
from torch import nn
from torch.utils.data import TensorDataset
from torchdistill.common import yaml_util
from torchdistill.common.main_util import load_ckpt
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT, get_model

import sf_teacher
from sf_teacher import SFTeacherError
from sf_teacher.methods import METHODS

from .torchdistill_runs import (
    EXAMPLES,
    SIZE,
    batches,
    box_losses,
    environment,
    export_teacher,
    jitter,
    kd,
    loader_config,
    quick_check,
    run_script,
    sgd,
    teacher_stage,
    weighted,
)

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Folders with a teacher of timm's own and one that torchvision builds too."""
    root = tmp_path_factory.mktemp('exported')
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_check(monkeypatch)
        export_teacher('test_resnet', root / 'test_resnet')
        export_teacher('resnet18', root / 'resnet18')
    return root


@pytest.fixture
def quick(monkeypatch):
    quick_check(monkeypatch)


def models(teacher='test_resnet', student='test_efficientnet'):
    torch.manual_seed(0)
    return (timm.create_model(teacher, num_classes=10), timm.create_model(student, num_classes=10))


def distillation_box(train, teacher=None, student=None, distributed=False, data=None):
    made = models()
    data = {'train': data or batches()}
    if distributed:
        train['train_data_loader']['sampler']['kwargs'] = {'shuffle': False}
    return get_distillation_box(teacher or made[0], student or made[1], data, train, CPU, None, distributed, 1)


def kd_stage(**teacher):
    return {
        'num_epochs': 1,
        'train_data_loader': loader_config('train'),
        'teacher': {'forward_proc': 'forward_batch_only', 'requires_grad': False, **teacher},
        'student': {'forward_proc': 'forward_batch_only', 'requires_grad': True},
        'optimizer': sgd(),
        'criterion': kd(),
    }


def training_box(model, distributed=False, **wrapper):
    """Way (B)."""
    stage = teacher_stage(loss={'is_from_teacher': False, **wrapper.pop('loss', {})}, **wrapper)
    stage['model'] = stage.pop('teacher')
    stage.pop('student')
    if distributed:
        stage['train_data_loader']['sampler']['kwargs'] = {'shuffle': False}
    return get_training_box(model, {'train': batches()}, stage, CPU, None, distributed, 1)


class TestRegistration:
    def test_every_method_has_a_wrapper_and_a_loss(self):
        for cls in METHODS.values():
            wrapper = AUXILIARY_MODEL_WRAPPER_DICT[f'Teacher4{cls.__name__}']
            assert wrapper.method_class is cls and pickle.loads(pickle.dumps(wrapper)) is wrapper
            if cls.phase == 'teacher':
                loss = MIDDLE_LEVEL_LOSS_DICT[f'{cls.__name__}Loss']
                assert loss.method_class is cls and getattr(adapter, loss.__name__) is loss

    def test_no_key_is_one_of_torchvision(self):
        ours = {key for key, value in MODEL_DICT.items() if value.__module__.startswith('sf_teacher')}
        assert ours == {'sf_teacher.timm_teacher', 'sf_teacher.torchvision_teacher', 'sf_teacher.timm_model'}
        assert not ours & set(torchvision.models.__dict__)

    def test_a_key_taken_by_someone_else_is_an_error(self):
        registry = {'SFTNLoss': nn.CrossEntropyLoss}
        with pytest.raises(SFTeacherError, match=r"key 'SFTNLoss' is taken by torch.*CrossEntropyLoss: register that"):
            adapter._register(registry, lambda key: pytest.fail, [('SFTNLoss', adapter.SFTNLoss)])

    def test_registering_again_is_none(self):
        adapter._register(MODEL_DICT, adapter.register_model, [('sf_teacher.timm_model', adapter.timm_model)])

    def test_docstrings_show_captioned_yaml(self):
        for documented in (adapter.timm_teacher, adapter.torchvision_teacher, adapter.timm_model,
                           adapter.Teacher4SFTN, adapter.SFTNLoss):
            assert '.. code-block:: YAML\n' in documented.__doc__ and ':caption:' in documented.__doc__


class TestTeacherKey:
    def test_gives_the_exported_teacher_in_eval_mode(self, exported):
        teacher = get_model('sf_teacher.timm_teacher', model_name=f'local-dir:{exported}/test_resnet')
        same = get_model('sf_teacher.timm_teacher', model_name='test_resnet', num_classes=10,
                         checkpoint_path=f'{exported}/test_resnet/teacher.pth')
        plain = timm.create_model(f'local-dir:{exported}/test_resnet', pretrained=True).eval()
        x = torch.randn(2, *SIZE)
        assert not any(m.training for m in itertools.chain(teacher.modules(), same.modules()))
        assert torch.equal(teacher(x), plain(x)) and torch.equal(same(x), plain(x))
        assert type(teacher) is type(plain)

    @pytest.mark.parametrize(('kwargs', 'message'), [
        ({'model_name': 'local-dir:nowhere'}, r"'local-dir:nowhere': /.*/nowhere does not exist. Give the folder"),
        ({'model_name': 'local-dir:{root}'}, r'holds no config.json, so it is no exported teacher'),
        ({'model_name': 'local-dir:{root}/test_resnet', 'num_classes': 7},
         r'test_resnet/config.json: the teacher has 10 classes, not num_classes=7.*Leave num_classes out'),
        ({'model_name': 'local-dir:{root}/test_resnet', 'checkpoint_path': 'x.pth'}, r'second source: give one of'),
        ({'model_name': 'test_resnet'}, r"teacher 'test_resnet' would have random weights: give model_name"),
        ({'model_name': 'test_resnet', 'checkpoint_path': 'x.pth'}, r"checkpoint_path 'x.pth' .* does not exist"),
        ({'model_name': 'test_resnet', 'num_classes': 7, 'checkpoint_path': '{root}/test_resnet/teacher.pth'},
         r'test_resnet/teacher.pth.*another architecture or class count: give the model_name and num_classes'),
        ({'model_name': 'resnet18', 'num_classes': 10, 'checkpoint_path': '{root}/test_resnet/teacher.pth'},
         r'test_resnet/teacher.pth.*another architecture or class count'),
        ({'model_name': 'test_resnet', 'pretrained': True, 'num_classes': 7},
         r"pretrained weights of teacher 'test_resnet' have 1000 classes, num_classes=7: .*random classifier.*leave"),
        ({'model_name': 'vit_small_patch16_dinov3', 'pretrained': True, 'num_classes': 7},
         r'have no classifier, num_classes=7.*Fine-tune it on your classes first.*checkpoint_path$'),
        ({'model_name': 'vit_small_patch16_dinov3', 'pretrained': True}, r'have no classifier, num_classes=None'),
        ({'model_name': 'resnet18.no_tag', 'pretrained': True}, r"timm does not build 'resnet18.no_tag'"),
        ({'model_name': 'resnet_18', 'pretrained': True}, r"timm does not build 'resnet_18'.*correct model_name"),
    ])
    def test_refuses_whatever_is_not_this_teacher(self, exported, kwargs, message):
        kwargs = {k: v.format(root=exported) if isinstance(v, str) else v for k, v in kwargs.items()}
        with pytest.raises(SFTeacherError, match=f'(?s){message}'):
            get_model('sf_teacher.timm_teacher', **kwargs)

    def test_hub_weights_with_other_classes_are_refused(self, monkeypatch):
        """Their class count is known once they are here."""
        def create_model(name, pretrained, num_classes, **kwargs):
            return create(name.removeprefix('hf-hub:'), num_classes=num_classes)
        create = timm.create_model
        monkeypatch.setattr('timm.create_model', create_model)
        with pytest.raises(SFTeacherError, match=r"teacher 'hf-hub:test_resnet' have 1000 classes, num_classes=7"):
            adapter.timm_teacher('hf-hub:test_resnet', num_classes=7)

    def test_refuses_a_folder_that_a_factory_builds(self, tmp_path):
        (tmp_path / 'config.json').write_text('{"factory": "package.module:function", "num_classes": 3}')
        with pytest.raises(SFTeacherError, match=r"timm cannot build this teacher by name, .*'package.module:f"):
            adapter.timm_teacher(f'local-dir:{tmp_path}')

    def test_nothing_drifts_during_distillation(self, exported):
        teacher = get_model('sf_teacher.timm_teacher', model_name=f'local-dir:{exported}/resnet18')
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        x = torch.randn(8, *SIZE)
        logits = teacher(x)
        box = distillation_box(kd_stage(), teacher)
        for _ in range(5):
            box_losses(box)     # 20 steps
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
        assert torch.equal(teacher(x), logits)

    def test_under_torchvisions_key_statistics_drift(self, exported):
        """What the page of torchdistill warns of; if this fails, torchdistill can do it and the warning can go."""
        teacher = torchvision.models.resnet18(num_classes=10)
        load_ckpt(f'{exported}/resnet18/teacher.pth', model=teacher)
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        box_losses(distillation_box(kd_stage(), teacher))
        drifted = {k.rpartition('.')[2] for k, v in teacher.state_dict().items() if not torch.equal(v, before[k])}
        assert drifted == {'running_mean', 'running_var', 'num_batches_tracked'}

    def test_torchvisions_key_loads_the_same_teacher(self, exported):
        theirs = torchvision.models.resnet18(num_classes=10)
        load_ckpt(f'{exported}/resnet18/teacher.pth', model=theirs)
        ours = adapter.timm_teacher(f'local-dir:{exported}/resnet18')
        x = torch.randn(2, *SIZE)
        torch.testing.assert_close(theirs.eval()(x), ours(x), rtol=0, atol=1e-5)

    def test_feature_methods_hook_timms_modules(self, exported):
        """FitNets, AT, CRD-like: stage outputs and the pooled feature of the frozen teacher, by timm's names."""
        hooks = {'input': ['fc'], 'output': ['layer2', 'layer3']}
        stage = kd_stage(forward_hook=hooks)
        stage['student']['forward_hook'] = hooks
        pairs = {layer: {side: {'io': 'output', 'path': layer} for side in ('teacher', 'student')} | {'weight': 1.0}
                 for layer in ('layer2', 'layer3')}
        stage['criterion'] = weighted('ATLoss', at_pairs=pairs, mode='code')
        pooled = {'input': {'is_from_teacher': False, 'module_path': 'fc', 'io': 'input'},
                  'target': {'is_from_teacher': True, 'module_path': 'fc', 'io': 'input'}}
        stage['criterion']['kwargs']['sub_terms']['hint'] = {
            'criterion': {'key': 'MSELoss', 'kwargs': {}}, 'weight': 1.0,
            'criterion_wrapper': {'key': 'SimpleLossWrapper', 'kwargs': pooled}}
        teacher = adapter.timm_teacher(f'local-dir:{exported}/test_resnet')
        box = distillation_box(stage, teacher, jitter(models()[0], seed=3))
        first = sum(box_losses(box))
        box_losses(box)
        assert sum(box_losses(box)) < first


class TestLabelNames:
    NAMES = ('bus', 'cat', 'dog')

    @pytest.fixture(scope='class')
    def folder(self, tmp_path_factory):
        with pytest.MonkeyPatch.context() as monkeypatch:
            quick_check(monkeypatch)
            torch.manual_seed(0)
            model = jitter(timm.create_model('resnet18', num_classes=3))
            return sf_teacher.export(model, tmp_path_factory.mktemp('named') / 'teacher', input_size=SIZE,
                                     class_names=self.NAMES)

    @pytest.mark.parametrize('key', ['sf_teacher.timm_teacher', 'sf_teacher.torchvision_teacher'])
    def test_names_as_a_list_a_file_or_an_image_folder(self, folder, tmp_path, key):
        (tmp_path / 'names.txt').write_text('\n'.join(self.NAMES) + '\n')
        for name in reversed(self.NAMES):
            (tmp_path / 'train' / name).mkdir(parents=True)
        for names in (list(self.NAMES), str(tmp_path / 'names.txt'), str(tmp_path / 'train')):
            assert get_model(key, model_name=f'local-dir:{folder}', label_names=names) is not None
        (tmp_path / 'train' / 'fish').mkdir()
        with pytest.raises(SFTeacherError, match=r"other classes: 3, .* against 4, among them \['fish'\]"):
            get_model(key, model_name=f'local-dir:{folder}', label_names=str(tmp_path / 'train'))
        with pytest.raises(SFTeacherError, match=r"label_names 'nowhere' does not exist"):
            get_model(key, model_name=f'local-dir:{folder}', label_names='nowhere')

    @pytest.mark.parametrize('key', ['sf_teacher.timm_teacher', 'sf_teacher.torchvision_teacher'])
    def test_logits_follow_the_data(self, folder, key, caplog):
        """For any hook too: a row of the classifier moves with its class."""
        plain, names = get_model(key, model_name=f'local-dir:{folder}'), ['cat', 'dog', 'bus']
        mapped = get_model(key, model_name=f'local-dir:{folder}', label_names=names)
        x = torch.randn(4, *SIZE)
        order = [self.NAMES.index(name) for name in names]
        torch.testing.assert_close(mapped(x), plain(x)[:, order])
        assert torch.equal(mapped.fc.weight, plain.fc.weight[order]) and not torch.equal(mapped(x), plain(x))
        assert torch.equal(mapped.conv1.weight, plain.conv1.weight)

    def test_a_student_learns_the_datas_classes(self, folder):
        """The losses are those of the same data, and of the same student, in the teacher's order."""
        names = ['dog', 'bus', 'cat']
        order = [self.NAMES.index(name) for name in names]
        images = torch.randn(32, *SIZE, generator=torch.Generator().manual_seed(3))
        labels = adapter.timm_teacher(f'local-dir:{folder}')(images).argmax(1)
        in_data = torch.tensor([order.index(label) for label in labels.tolist()])
        losses = []
        for targets, label_names in ((labels, None), (in_data, names), (in_data, None)):
            torch.manual_seed(0)
            student = jitter(timm.create_model('test_resnet', num_classes=3), seed=4)
            if targets is in_data:
                for parameter in student.fc.parameters():
                    parameter.data = parameter.data[order]
            teacher = adapter.timm_teacher(f'local-dir:{folder}', label_names=label_names)
            losses.append(box_losses(distillation_box(kd_stage(), teacher, student,
                                                      data=TensorDataset(images, targets))))
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        assert losses[2][0] > losses[0][0]      # the teacher contradicts the labels

    @pytest.mark.parametrize('arch', ['deit_tiny_distilled_patch16_224', 'test_vit', 'test_convnext', 'test_mambaout'])
    def test_every_kind_of_classifier(self, arch, tmp_path, monkeypatch):
        quick_check(monkeypatch)
        model = jitter(timm.create_model(arch, num_classes=3)).eval()
        folder = sf_teacher.export(model, tmp_path / 'teacher', class_names=self.NAMES)
        x = torch.randn(2, *timm.data.resolve_model_data_config(model)['input_size'])
        mapped = adapter.timm_teacher(f'local-dir:{folder}', label_names=['dog', 'cat', 'bus'])
        torch.testing.assert_close(mapped(x), model(x)[:, [2, 1, 0]], rtol=1e-4, atol=1e-5)

    def test_a_classifier_without_a_row_for_each_class_is_refused(self, folder, monkeypatch):
        monkeypatch.setattr('timm.models.resnet.ResNet.get_classifier', lambda self: torch.nn.Identity())
        with pytest.raises(SFTeacherError, match=r'classifier \(Identity\) has no row for each class.*order of the te'):
            adapter.timm_teacher(f'local-dir:{folder}', label_names=['dog', 'cat', 'bus'])

    def test_without_names_the_log_says_that_nothing_was_compared(self, folder, exported, caplog):
        caplog.set_level('INFO')
        adapter.timm_teacher(f'local-dir:{folder}')
        assert "of the data's labels cannot be checked without label_names" in caplog.text
        adapter.timm_teacher(f'local-dir:{exported}/test_resnet')
        assert "cannot be checked without names of its classes" in caplog.text

    def test_a_teacher_without_names(self, exported):
        with pytest.raises(SFTeacherError, match=r'holds no names of its classes.*export it with class_names'):
            adapter.timm_teacher(f'local-dir:{exported}/test_resnet', label_names=['a'])


class TestModulePaths:
    @pytest.mark.parametrize(('path', 'message'), [
        ('avgpool', r"sf_teacher.timm_teacher 'local-dir:.*' has no 'avgpool': what torchvision's ResNets call so is "
                    r"the output of 'global_pool.pool' here; near it are .*'global_pool'"),
        ('layer4.-1.relu', r"has no 'layer4.-1.relu': .*is the input of 'layer4.1.act2' here"),
        ('layer5', r"has no 'layer5': near it are 'layer4'.*`sf-teacher inspect MODEL --hooks` prints all"),
        ('layer4.1.conv9', r"near it are 'layer4.1.conv")])
    def test_a_path_that_does_not_exist_is_an_error(self, exported, path, message):
        teacher = adapter.timm_teacher(f'local-dir:{exported}/resnet18')
        with pytest.raises(SFTeacherError, match=message):
            distillation_box(kd_stage(forward_hook={'input': [], 'output': [path]}), teacher)

    def test_so_it_is_under_a_wrapper_in_frozen_modules_and_for_the_student(self, exported):
        teacher = adapter.timm_teacher(f'local-dir:{exported}/resnet18')
        hooked = kd_stage(forward_hook={'input': [], 'output': ['teacher_model.layer9']},
                          auxiliary_model_wrapper={'key': 'Teacher4FactorTransfer', 'kwargs': {
                              'input_module_path': 'teacher_model.layer4', 'minimal': None,
                              'paraphraser_ckpt': 'none', 'uses_decoder': False,
                              'paraphraser_kwargs': {'k': 0.5, 'num_input_channels': 512}}})
        with pytest.raises(SFTeacherError, match=r"names the module 'teacher_model.layer9', and .* has no 'layer9'"):
            distillation_box(hooked, teacher)
        with pytest.raises(SFTeacherError, match=r"has no 'layer0'"):
            distillation_box(kd_stage(sequential=['conv1', 'layer0']), teacher)
        stage = kd_stage()
        stage['student']['frozen_modules'] = ['stem']
        with pytest.raises(SFTeacherError, match=r"sf_teacher.timm_model 'test_efficientnet' has no 'stem'"):
            distillation_box(stage, teacher, adapter.timm_model('test_efficientnet', num_classes=10))

    def test_other_models_are_left_to_torchdistill(self):
        with pytest.raises(AttributeError, match='NoneType'):
            distillation_box(kd_stage(forward_hook={'input': [], 'output': ['layer9']}))


def plain_losses(method=None):
    """The reference: `sf_teacher.wrap` in a plain loop on the same batches."""
    teacher, _ = models()
    task = sf_teacher.wrap(teacher, 'test_efficientnet', input_size=SIZE, method=method or 'sftn').train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for images, targets in torch.utils.data.DataLoader(batches(), batch_size=16):
        loss = task(images, targets)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, task.teacher.state_dict()


class TestTeacherTraining:
    @pytest.mark.parametrize('options', [{}, {'kl_weight': 1.5, 'temperature': 2.0, 'detach_teacher_logits': True}])
    def test_both_ways_give_the_losses_of_wrap(self, options):
        """Within 1e-6 of the loss: the optimizer groups the same parameters in another order."""
        expected, state = plain_losses(sf_teacher.SFTN(**options))
        shared = {'method': options}
        teacher, _ = models()
        in_stage = distillation_box(teacher_stage(**shared, loss=shared), teacher)
        assert box_losses(in_stage) == pytest.approx(expected, rel=1e-6)
        model, _ = models()
        alone = training_box(model, **shared, loss=shared)
        assert box_losses(alone) == pytest.approx(expected, rel=1e-6)
        for found in (teacher, model):
            for key, value in found.state_dict().items():
                torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-6)

    def test_without_weights_the_branches_do_not_run(self):
        off = {'method': {'ce_weight': 0, 'kl_weight': 0}}
        teacher, _ = models()
        box = distillation_box(teacher_stage(**off, loss=off), teacher)
        assert box_losses(box) == pytest.approx(plain_losses(sf_teacher.SFTN(ce_weight=0, kl_weight=0))[0], rel=1e-6)

    def test_the_next_stage_finds_the_plain_teacher_in_eval_mode(self, caplog):
        teacher, student = models()
        untrained = {k: v.clone() for k, v in student.state_dict().items()}
        second = kd_stage()
        second.pop('train_data_loader')
        box = distillation_box({'stage1': teacher_stage(2), 'stage2': second}, teacher, student)
        wrapper = box.teacher_model
        box_losses(box)
        wrapper(torch.randn(4, *SIZE))
        assert teacher.training     # the epoch after: train mode again, though nobody asked for it
        box_losses(box)
        assert all(torch.equal(v, untrained[k]) for k, v in student.state_dict().items())
        assert box.stage_number == 2 and box.teacher_model is teacher and not teacher.training
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        box_losses(box)
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())

    def test_checkpoints_hold_the_plain_teacher(self, tmp_path):
        model, _ = models()
        config = dict(ckpt_file_path=str(tmp_path / 'branches.pt'))
        box = training_box(model, **config)
        box_losses(box)
        assert list(box.model.state_dict()) == list(model.state_dict())
        resumed = training_box(models()[0], **config)
        resumed.model.load_state_dict(box.model.state_dict())
        for name, value in box.model.model.state_dict().items():
            assert torch.equal(value, resumed.model.model.state_dict()[name])
        with pytest.raises(SFTeacherError, match=r'(?s)branches.pt does not hold the branches.*Delete the file'):
            training_box(models()[0], **config, students='test_resnet')

    def test_a_resumed_run_counts_on_and_a_second_one_is_told(self, tmp_path, quick, caplog):
        def made(**kwargs):
            return adapter.Teacher4SFTN(CPU, students='test_efficientnet', student_model=models()[0], num_epochs=2,
                                        ckpt_file_path=str(tmp_path / 'branches.pt'), **kwargs)
        made().post_epoch_process()
        resumed = made(export={'folder': str(tmp_path / 'teacher'), 'mean': 0.5, 'std': 0.5}, input_size=list(SIZE))
        assert 'after epoch 1: for a new run, with another teacher or seed, delete the file' in caplog.text
        assert not (tmp_path / 'teacher').exists()
        resumed.post_epoch_process()
        assert (tmp_path / 'teacher' / 'config.json').exists()
        with pytest.raises(SFTeacherError, match=r'have been trained for all of num_epochs=2. Delete the file'):
            made()

    def test_frozen_modules_stay(self):
        teacher, _ = models()
        before = {k: v.clone() for k, v in teacher.named_parameters()}
        stage = teacher_stage()
        stage['teacher']['frozen_modules'] = ['teacher.conv1', 'teacher.layer1']
        box_losses(distillation_box(stage, teacher))
        moved = {k for k, v in teacher.named_parameters() if not torch.equal(v, before[k])}
        assert moved and not [k for k in moved if k.startswith(('conv1', 'layer1'))]

    def test_exports_when_the_best_checkpoint_was_written(self, tmp_path, quick):
        best = tmp_path / 'best.pt'
        model, _ = models()
        config = dict(export={'folder': str(tmp_path / 'teacher')}, best_ckpt=str(best))
        box = training_box(model, **config)
        for name in ('first', None, 'second'):
            before = {k: v.clone() for k, v in model.state_dict().items()}
            if name:
                best.write_text(name)
            box.model.post_epoch_process()
            folder = timm.create_model(f'local-dir:{tmp_path}/teacher', pretrained=True).state_dict()
            assert all(torch.equal(v, before[k]) for k, v in folder.items()) is (name is not None)
            box.model.train()(torch.randn(4, *SIZE)).sum().backward()
            with torch.no_grad():
                model.fc.weight += 1

    def test_an_argument_that_export_does_not_have_is_refused_at_once(self, tmp_path):
        with pytest.raises(SFTeacherError, match=r"Teacher4SFTN, `export`: .*unexpected keyword argument 'men'"):
            distillation_box(teacher_stage(export={'folder': str(tmp_path / 'teacher'), 'men': 0.5}))

    def test_exports_after_so_many_epochs(self, tmp_path, quick):
        stage = teacher_stage(2, export={'folder': str(tmp_path / 'teacher')})
        stage['teacher']['auxiliary_model_wrapper']['kwargs']['num_epochs'] = 2
        box = distillation_box(stage)
        box.teacher_model.post_epoch_process()
        assert not list(tmp_path.iterdir())
        box.teacher_model.post_epoch_process()
        assert (tmp_path / 'teacher' / 'model.safetensors').is_file()
        assert "SFTN" in (tmp_path / 'teacher' / 'README.md').read_text()

    def test_torchvisions_teacher_is_wrapped_by_module_paths(self):
        torch.manual_seed(0)
        stage = teacher_stage(boundaries=[['layer2', 'layer2'], ['layer3', 'layer3']], num_classes=10,
                              students='test_resnet')
        box = distillation_box(stage, torchvision.models.resnet18(num_classes=10))
        before = copy.deepcopy(box.teacher_model.state_dict())
        assert all(map(math.isfinite, box_losses(box)))
        assert any(not torch.equal(v, before[k]) for k, v in box.teacher_model.state_dict().items() if 'conv1' in k)

    def test_is_picklable_and_logs_its_config(self, caplog):
        with caplog.at_level(logging.INFO):
            box = distillation_box(teacher_stage())
        assert 'SFTN(teacher_weight=1.0' in caplog.text and '1.0 * SFTNLoss(' in caplog.text
        again = pickle.loads(pickle.dumps(box.criterion))
        assert str(again) == str(box.criterion)

    @pytest.mark.parametrize(('change', 'message'), [
        ({'method': {'kl': 3}}, r"SFTN has no setting 'kl'; there are teacher_weight"),
        ({'students': 'resnet_18'}, r"timm has no model 'resnet_18' \(given as student\)"),
        ({'input_size': [32, 32]}, r'input_size is \[channels, height, width\], got \[32, 32\]'),
        ({'export': {'mean': [0.5]}}, r'`export`: `folder` is missing, got mean'),
        ({'export': {'folder': '{tmp}'}}, r'Teacher4SFTN, `export`: .* exists and is not empty'),
        ({'export': {'folder': '{tmp}/new', 'std': [0.5, 0.5]}}, r'`export`: the preprocessing does not fit'),
    ])
    def test_refuses_before_the_first_step(self, tmp_path, change, message):
        (tmp_path / 'file').touch()
        for key, value in change.get('export', {}).items():
            change['export'][key] = value.format(tmp=tmp_path) if isinstance(value, str) else value
        with pytest.raises(SFTeacherError, match=message):
            distillation_box(teacher_stage(**change))

    def test_refuses_a_teacher_that_cannot_be_exported(self, tmp_path):
        teacher, _ = models()
        teacher.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        with pytest.raises(SFTeacherError, match=r'Teacher4SFTN, `export`: this test_resnet is not the one'):
            distillation_box(teacher_stage(export={'folder': str(tmp_path / 'teacher')}), teacher)

    def test_refuses_data_parallel(self):
        wrapper = distillation_box(teacher_stage()).teacher_model
        wrapper._is_replica = True
        with pytest.raises(SFTeacherError, match=r'runs in DataParallel on several devices.*start one process per'):
            wrapper(torch.randn(2, *SIZE))

    def test_labels_out_of_range_are_refused(self):
        torch.manual_seed(0)
        with pytest.raises(SFTeacherError, match=r'labels must lie in 0..4; got .*right num_classes'):
            box_losses(distillation_box(teacher_stage(), timm.create_model('test_resnet', num_classes=5)))

    def test_the_loss_says_what_it_needs(self):
        with pytest.raises(SFTeacherError, match=r"no output of 'branch_output' on the teacher's side.*'Teacher4SFTN'"):
            box_losses(distillation_box(teacher_stage(hooks=())))
        with pytest.raises(SFTeacherError, match=r"no output of '.' on the student's side"):
            box_losses(distillation_box(teacher_stage(loss={'is_from_teacher': False})))
        with pytest.raises(SFTeacherError, match=r'the branches run, but by its `method` they should be left out'):
            box_losses(distillation_box(teacher_stage(loss={'method': {'ce_weight': 0, 'kl_weight': 0}})))
        with pytest.raises(SFTeacherError, match=r"'teacher.layer1' is not the branch_output of Teacher4SFTN.*Tensor"):
            box_losses(training_box(models()[0], hooks=('teacher.layer1',), loss={'branches_path': 'teacher.layer1'}))


DISTRIBUTED = """
import os, sys, torch
from torch import distributed, multiprocessing
sys.path.insert(0, {tests!r})
from tests.adapters.test_torchdistill import CPU, distillation_box, models, teacher_stage, training_box
from torch.nn.parallel import DistributedDataParallel
from torchdistill.common.module_util import check_if_wrapped

def epoch(box):
    box.pre_epoch_process(epoch=0)
    for images, targets, extra in box.train_data_loader:
        box.post_forward_process(loss=box.forward_process(images, targets, extra))
    box.post_epoch_process()

def agree(wrapper):     # branches and teacher, on both ranks
    assert check_if_wrapped(wrapper._parallel[0])
    for p in wrapper.model.parameters():
        other = p.detach().clone()
        distributed.broadcast(other, 0)
        assert torch.equal(other, p)

def work(rank, file):
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{{file}}', rank=rank, world_size=2)
    teacher, _ = models()
    stage = teacher_stage()
    stage['teacher']['frozen_modules'] = ['teacher.conv1']
    box = distillation_box(stage, teacher, distributed=True)
    epoch(box)
    agree(box.teacher_model)
    box = training_box(models()[0], distributed=True)
    epoch(box)
    with torch.inference_mode():    # torchdistill's script wraps once more to validate
        DistributedDataParallel(box.model).eval()(torch.randn(4, 3, 32, 32))
    epoch(box)
    agree(box.model)
    print('agreed', flush=True)
    distributed.barrier()
    os._exit(0)     # gloo's threads can abort the interpreter's own exit

if __name__ == '__main__':
    multiprocessing.start_processes(work, (sys.argv[1],), 2, start_method='fork')
"""


def test_distributed_data_parallel(tmp_path):
    """Two processes, different data, a frozen module: torchdistill's DDP wrapping keeps teacher and branches equal."""
    script = tmp_path / 'script.py'
    script.write_text(DISTRIBUTED.format(tests=str(EXAMPLES.parents[1])))
    done = subprocess.run([sys.executable, script, tmp_path / 'store'], capture_output=True, text=True,
                          env=environment(), timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('agreed') == 2


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A working directory with the digits and the teachers that the configs name."""
    path = tmp_path_factory.mktemp('work')
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_check(monkeypatch)
        monkeypatch.chdir(path)
        run_script(monkeypatch, 'make_digits', '--train', 160, '--total', 260)
        export_teacher('resnet34', path / 'exported/digits/resnet34-sft')
    return path


@pytest.fixture
def in_work(work, monkeypatch, quick):
    monkeypatch.chdir(work)
    return work


def config(name, *changes):
    """An example's text with some strings replaced; each must occur."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def changed_lines(left, right):
    lines = list(difflib.unified_diff(config(left).splitlines(), config(right).splitlines(), n=0, lineterm=''))[2:]
    return [line[1:].strip() for line in lines if line[0] == '-'], [line[1:] for line in lines if line[0] == '+']


def stage_of(method, **wrapper):
    """The teacher's stage with another method."""
    stage = teacher_stage(**wrapper)
    stage['teacher']['auxiliary_model_wrapper']['key'] = f'Teacher4{method}'
    stage['criterion'] = weighted(f'{method}Loss')
    return stage


class TestOtherMethods:
    """Both boxes with the methods that have no branches or take a trained student."""

    @pytest.mark.parametrize(('method', 'students'), [
        ('MCMI', None), ('LoT', 'test_efficientnet'), ('AID', 'exported')])
    def test_both_boxes(self, exported, method, students):
        students = f'local-dir:{exported}/test_resnet' if students == 'exported' else students
        losses = []
        for alone in (False, True):
            stage, model = stage_of(method, students=students), jitter(models()[0])
            if alone:
                stage['model'] = stage.pop('teacher')
                stage.pop('student')
                stage['criterion']['kwargs']['sub_terms']['term']['criterion']['kwargs'] = {'is_from_teacher': False}
                box = get_training_box(model, {'train': batches()}, stage, CPU, None, False, 1)
            else:
                box = distillation_box(stage, model)
            before = {k: v.clone() for k, v in model.named_parameters()}
            losses.append(box_losses(box))
            assert any(not torch.equal(v, before[k]) for k, v in model.named_parameters())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5) and all(map(math.isfinite, losses[0]))

    def test_a_method_that_needs_the_images_numbers_is_refused(self):
        with pytest.raises(SFTeacherError, match=r'Teacher4SoTeacher: SoTeacher needs to know which images of the'):
            distillation_box(stage_of('SoTeacher', students=None))


class TestExamples:
    def test_under_torchvisions_key_one_line_differs(self):
        old, new = changed_lines('digits/ordinary_kd/resnet18_from_resnet34.yaml',
                                 'digits/kd/resnet18_from_resnet34.yaml')
        assert old == ["src_ckpt: './ckpt/digits/resnet34.pt'"]
        assert new == ["    src_ckpt: './exported/digits/resnet34-sft/teacher.pth'"]

    @pytest.mark.parametrize(('dataset', 'ours'), [
        ('digits', 'resnet18_from_resnet34-eval_mode'), ('ilsvrc2012', 'resnet18_from_resnet34')])
    def test_otherwise_the_model_block_and_dependencies_differ(self, dataset, ours):
        old, new = changed_lines(f'{dataset}/ordinary_kd/resnet18_from_resnet34.yaml', f'{dataset}/kd/{ours}.yaml')
        assert new == [
            'dependencies:', "  - name: 'sf_teacher.adapters.torchdistill'", '',
            "    key: 'sf_teacher.timm_teacher'",
            f"      model_name: 'local-dir:./exported/{dataset}/resnet34-sft'"]
        assert old[0] == "key: 'resnet34'" and len(old) <= 4
        text = config(f'{dataset}/ordinary_kd/resnet18_from_resnet34.yaml')
        block = text[text.index('  teacher_model:'):text.index('  student_model:')]
        assert all(line in block for line in old)

    def test_readme_shows_the_whole_diffs(self):
        text = (EXAMPLES / 'README.md').read_text()
        commands = re.findall(r'`diff (\S+\.yaml) (\S+\.yaml)`', text)
        shown = [block.splitlines() for block in re.findall(r'```diff\n(.*?)```', text, re.S)]
        assert len(commands) == len(shown) == 3
        for (left, right), lines in zip(commands, shown, strict=True):
            old, new = changed_lines(left, right)
            assert [line[1:].strip() for line in lines if line[0] == '-'] == old
            assert [line[1:] for line in lines if line[0] == '+'] == new

    def test_readme_names_every_config(self):
        text = (EXAMPLES / 'README.md').read_text().replace('`, `at`, `ft/', '').replace('ilsvrc2012/kd', '')
        for path in EXAMPLES.rglob('*.yaml'):
            name = str(path.relative_to(EXAMPLES))
            assert name in text or name.startswith('ilsvrc2012/'), name

    @pytest.mark.slow
    @pytest.mark.parametrize('name', [
        'digits/sftn/test_resnet.yaml', 'digits/sftn/test_efficientnet_from_test_resnet.yaml',
        'digits/sftn/resnet34.yaml', 'digits/kd/resnet18_from_resnet34.yaml',
        'digits/kd/resnet18_from_resnet34-eval_mode.yaml', 'digits/kd/resnet18_from_resnet34-unlabelled.yaml',
        'digits/teskd/test_resnet.yaml',
        'digits/gtn/test_resnet.yaml', 'digits/student_friendly_kd/resnet18_from_resnet34.yaml'])
    def test_digits_run_as_they_stand(self, in_work, monkeypatch, caplog, name):
        with caplog.at_level(logging.INFO):
            run_script(monkeypatch, 'run', '--config', EXAMPLES / name, '--device', 'cpu', '--seed', 0, '-log_config')
        assert 'model: top-1' in caplog.text
        if (trains := any(f'/{method}/' in name for method in METHODS.of_phase('teacher'))):
            folder = re.search(r"folder: './(.*)'", config(name))[1]
            sf_teacher_free = timm.create_model(f'local-dir:{folder}', pretrained=True)
            assert sf_teacher_free.num_classes == 10
        if trains and 'from' not in name:   # the best epoch is what was exported
            best = torch.load(re.search(r"dst_ckpt '(.*)'", config(name))[1], weights_only=True)['model']
            assert all(torch.equal(v, best[k]) for k, v in sf_teacher_free.state_dict().items())

    def test_without_labels_the_loss_is_the_distillation_loss(self, in_work, monkeypatch):
        text = config('digits/kd/resnet18_from_resnet34-unlabelled.yaml')
        (in_work / 'config.yaml').write_text(text)
        loaded = yaml_util.load_yaml_file(str(in_work / 'config.yaml'))
        data = loaded['datasets'][loaded['train']['train_data_loader']['dataset_id']]
        assert len(data) == 160 and data.classes == ['images']
        teacher = get_model(**loaded['models']['teacher_model']['kwargs'], key='sf_teacher.timm_teacher')
        student = adapter.timm_model('resnet18', num_classes=10)
        box = get_distillation_box(teacher, student, loaded['datasets'], loaded['train'], CPU, None, False, 1)
        images = torch.stack([data[i][0] for i in range(8)])
        box.pre_epoch_process(epoch=0)
        first, second = (box.forward_process(images, torch.full((8,), label), {}).item() for label in (0, 7))
        log_p, p = (student(images) / 4).log_softmax(1), (teacher(images) / 4).softmax(1)
        assert first == second == pytest.approx(16 * F.kl_div(log_p, p, reduction='batchmean').item(), rel=1e-4)

    def test_test_only_gives_the_teachers_accuracy_of_the_run(self, in_work, monkeypatch, caplog):
        name, found = EXAMPLES / 'digits/kd/resnet18_from_resnet34-eval_mode.yaml', []
        for extra in ((), ('-test_only',)):
            caplog.clear()
            with caplog.at_level(logging.INFO):
                run_script(monkeypatch, 'run', '--config', name, '--device', 'cpu', '--seed', 0, *extra)
            found.append([line for line in caplog.messages if line.startswith('teacher: top-1')])
        assert found[0] == found[1] and found[0]

    @pytest.mark.parametrize('name', ['at', 'ft', 'kd'])
    def test_ilsvrc2012_runs_on_two_images(self, tmp_path, monkeypatch, quick, name):
        monkeypatch.chdir(tmp_path)
        for split in ('train', 'val'):
            for label in ('n0', 'n1'):
                folder = tmp_path / 'data/ilsvrc2012' / split / label
                folder.mkdir(parents=True)
                torchvision.io.write_png(torch.randint(255, (3, 64, 64), dtype=torch.uint8), str(folder / '0.png'))
        torch.manual_seed(0)
        model = jitter(timm.create_model('resnet34', num_classes=1000))
        sf_teacher.export(model, tmp_path / 'exported/ilsvrc2012/resnet34-sft', input_size=(3, 64, 64))
        text = config(f'ilsvrc2012/{name}/resnet18_from_resnet34.yaml', ('size: 224', 'size: 64'),
                      ('batch_size: 256', 'batch_size: 2'), ('num_workers: 16', 'num_workers: 0'),
                      ('num_epochs: 100', 'num_epochs: 1'))
        (tmp_path / 'config.yaml').write_text(text)
        run_script(monkeypatch, 'run', '--config', tmp_path / 'config.yaml', '--device', 'cpu', '--seed', 0)

    @pytest.mark.parametrize('name', ['sftn/resnet50', 'sftn/resnet18_from_resnet50', 'kd/resnet18_from_resnet50'])
    def test_cifar100_configs_build(self, monkeypatch, name):
        """They need a download and a GPU; here everything but the data is built."""
        import yaml
        from torchdistill.common.main_util import import_dependencies

        text = config(f'cifar100/{name}.yaml')
        body = yaml.safe_load(text[text.index('models:'):].replace('!import_get', '').replace('*train', 'train')
                              .replace('*val', 'val'))
        import_dependencies([{'name': 'sf_teacher.adapters.torchdistill'}])
        assert body['test']['test_data_loader']['dataset_id'] == 'val'
        stage = body['train'].get('stage1', body['train'])
        holder = stage.get('model', stage.get('teacher', {}))
        if 'auxiliary_model_wrapper' in holder:
            kwargs = {**holder['auxiliary_model_wrapper']['kwargs'], 'export': None, 'ckpt_file_path': None}
            model = get_model('sf_teacher.timm_model', model_name='resnet50', num_classes=100)
            wrapper = adapter.Teacher4SFTN(device=CPU, teacher_model=model, **kwargs)
            assert wrapper(torch.randn(2, *SIZE)).shape == (2, 100)

    @pytest.mark.parametrize(('name', 'change', 'message'), [
        ('digits/kd/resnet18_from_resnet34.yaml', ('resnet34-sft/', 'nowhere/'),
         r'config.yaml: models.teacher_model.src_ckpt: ./exported/digits/nowhere/teacher.pth does not exist.*random'),
        ('digits/kd/resnet18_from_resnet34.yaml', ("key: 'resnet34'", "key: 'resnet50'"),
         r"src_ckpt: .*resnet34-sft/teacher.pth is of another model than key 'resnet50'.*Correct the key"),
        ('digits/kd/resnet18_from_resnet34.yaml', ('num_classes: 10', 'num_classes: 9'),
         r"src_ckpt: .*is of another model than key 'resnet34' with \{'num_classes': 9\}"),
        ('digits/student_friendly_kd/resnet18_from_resnet34.yaml', (
            "    key: 'sf_teacher.timm_teacher'\n    kwargs:\n"
            "      model_name: 'local-dir:./exported/digits/resnet34-sft'\n",
            "    key: 'resnet34'\n    kwargs:\n      num_classes: 10\n    src_ckpt: './nowhere.pth'\n"),
         r'src_ckpt: ./nowhere.pth does not exist.*random'),
        ('digits/kd/resnet18_from_resnet34-eval_mode.yaml', ('resnet34-sft', 'nowhere'),
         r"models.teacher_model.key 'sf_teacher.timm_teacher': .*nowhere does not exist. Give the folder"),
        ('digits/sftn/test_resnet.yaml', ("key: 'Teacher4SFTN'", "key: 'Teacher4Nobody'"),
         r'config.yaml: train: No auxiliary model wrapper `Teacher4Nobody`'),
    ])
    def test_errors_name_file_key_and_remedy(self, in_work, monkeypatch, name, change, message):
        (in_work / 'config.yaml').write_text(config(name, change))
        with pytest.raises(SystemExit, match=f'(?s){message}'):
            run_script(monkeypatch, 'run', '--config', 'config.yaml', '--device', 'cpu')

    def test_a_missing_dependencies_line(self, in_work):
        """In a process of its own, where nothing has imported the adapter; the exit code says it too."""
        name = 'digits/kd/resnet18_from_resnet34-eval_mode.yaml'
        dependency = "dependencies:\n  - name: 'sf_teacher.adapters.torchdistill'\n"
        (in_work / 'config.yaml').write_text(config(name, (dependency, '')))
        done = subprocess.run([sys.executable, EXAMPLES / 'run.py', '--config', 'config.yaml', '--device', 'cpu'],
                              capture_output=True, text=True, env=environment())
        assert done.returncode == 1
        assert "config.yaml: models.teacher_model.key 'sf_teacher.timm_teacher'" in done.stderr
        assert dependency.strip() in done.stderr
