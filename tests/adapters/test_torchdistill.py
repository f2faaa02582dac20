"""torchdistill takes exported teachers: its registries, the key of a teacher, and the modules that are hooked."""
import itertools
import pickle

import pytest
import timm
import torch
import torchvision
from sf_teacher.adapters import torchdistill as adapter
from torch import nn
from torchdistill.common.main_util import load_ckpt
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT, get_model

from sf_teacher import SFTeacherError
from sf_teacher.methods import METHODS

from ..helpers import jitter
from .torchdistill_runs import (
    SIZE,
    box_losses,
    distillation_box,
    kd_stage,
    models,
    weighted,
)


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


def test_a_model_of_a_folder_has_its_weights_unless_it_is_told_otherwise(exported):
    name = f'local-dir:{exported}/test_resnet'
    known = get_model('sf_teacher.timm_teacher', model_name=name).state_dict()
    model = get_model('sf_teacher.timm_model', model_name=name)
    assert model.training and all(torch.equal(v, known[k]) for k, v in model.state_dict().items())
    fresh = get_model('sf_teacher.timm_model', model_name=name, pretrained=False).state_dict()
    assert not torch.equal(fresh['fc.weight'], known['fc.weight'])


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
