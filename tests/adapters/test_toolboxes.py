"""timm's own distillation, mdistiller and RepDistiller take an exported teacher; what cannot work says so by name."""
import inspect
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from sf_teacher.adapters.mdistiller import MDistillerTeacher, teacher_entry
from sf_teacher.adapters.repdistiller import RepDistillerTeacher, add_teacher
from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask
from torch import nn

from sf_teacher import SFTeacherError, StudentFriendlyTask
from sf_teacher.exporting.exporter import export

from ..helpers import jitter
from .torchdistill_runs import SIZE

ROOT = Path(__file__).parents[2]
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = jitter(timm.create_model('test_resnet', num_classes=10))
    return str(export(model, tmp_path_factory.mktemp('exported') / 'test-resnet-sft', input_size=SIZE, mean=MEAN,
                      std=STD))


@pytest.fixture
def plain(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


@pytest.mark.parametrize('kind', [LogitDistillationTask, FeatureDistillationTask])
def test_timms_tasks_renormalise_for_the_teacher(folder, plain, kind):
    """Student and teacher with other mean and std: the teacher sees the pixels it was trained on."""
    student = timm.create_model('test_efficientnet', num_classes=10)
    task = kind(student, f'local-dir:{folder}', verbose=False)
    seen = []
    task.teacher.model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    pixels, config = torch.rand(4, *SIZE), student.pretrained_cfg
    assert config['mean'] != MEAN and config['std'] != STD

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    losses = task(normalised(config['mean'], config['std']), torch.arange(4))
    assert losses['loss'].requires_grad and not task.teacher.model.training
    torch.testing.assert_close(seen[-1], normalised(MEAN, STD), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(task.teacher.model(seen[-1]), plain(normalised(MEAN, STD)), rtol=1e-4, atol=1e-4)


def test_our_task_takes_what_timms_train_script_gives_its_own():
    """The diff in docs/toolboxes/timm.md adds arguments and takes none away; it is at most ten lines."""
    theirs, ours = (set(inspect.signature(cls).parameters) for cls in (ClassificationTask, StudentFriendlyTask))
    assert {'model', 'criterion', 'device', 'dtype', 'verbose'} <= theirs & ours
    diff, = re.findall(r'```diff\n(.*?)```', (ROOT / 'docs/toolboxes/timm.md').read_text(), re.S)
    changed = [line for line in diff.splitlines() if re.match(r'[+-](?![+-])', line)]
    assert 0 < len(changed) <= 10
    given = set(re.findall(r'^[+ ]\s+(\w+)=', diff, re.M))
    assert given <= ours and {'students', 'input_size'} <= given


class TestMDistiller:
    def test_interface(self, folder, plain):
        constructor, checkpoint = teacher_entry(folder, stages=[0, 1, 2, 3])
        teacher = constructor(num_classes=10)
        teacher.load_state_dict(torch.load(checkpoint, weights_only=True)['model'])     # as its tools/train.py does
        x = torch.randn(2, *SIZE)
        logits, features = teacher(x)
        assert torch.equal(logits, plain(x)) and set(features) == {'feats', 'preact_feats', 'pooled_feat'}
        assert torch.equal(features['feats'][2], plain.forward_intermediates(x, intermediates_only=True)[2])
        assert torch.equal(plain.fc(features['pooled_feat']), logits)
        assert teacher.get_stage_channels() == [f.shape[1] for f in features['feats']]

    def test_stays_in_eval_mode(self, folder):
        distiller = nn.ModuleList([MDistillerTeacher(folder)]).train()
        assert not distiller[0].model.training

    def test_refuses_by_name(self, folder):
        teacher = MDistillerTeacher(folder)
        with pytest.raises(SFTeacherError, match=r'OFD and ReviewKD compare features before the activation'):
            teacher(torch.randn(2, *SIZE))[1]['preact_feats']
        with pytest.raises(SFTeacherError, match=r'OFD and ReviewKD'):
            teacher.get_bn_before_relu()

    @pytest.mark.parametrize(('stages', 'classes', 'message'), [
        ([1, 0], 10, r'stages=\[1, 0\] of .*test-resnet-sft: give increasing indices in 0..'),
        ([0, 9], 10, r'stages=\[0, 9\]'), ([], 10, r'stages=\[\]'), (None, 100, r'the teacher has 10 classes, not')])
    def test_refuses_wrong_arguments(self, folder, stages, classes, message):
        with pytest.raises(SFTeacherError, match=message):
            MDistillerTeacher(folder, stages, num_classes=classes)


class TestRepDistiller:
    def test_interface(self, folder, plain):
        model_dict = {}
        add_teacher(model_dict, folder)
        add_teacher(model_dict, folder)     # again is no collision
        checkpoint = f'{folder}/teacher.pth'
        name = checkpoint.split('/')[-2].split('_')[0]      # as its train_student.py parses it
        teacher = model_dict[name](num_classes=10)
        teacher.load_state_dict(torch.load(checkpoint, weights_only=True)['model'])
        x = torch.randn(2, *SIZE)
        features, logits = teacher.train()(x, is_feat=True, preact=False)
        assert torch.equal(logits, plain(x)) and torch.equal(teacher(x), logits)
        assert torch.equal(plain.fc(features[-1]), logits) and all(f.ndim == 4 for f in features[:-1])

    def test_distils(self, folder):
        teacher, student = RepDistillerTeacher(folder), timm.create_model('test_efficientnet', num_classes=10)
        x = torch.randn(8, *SIZE)
        with torch.no_grad():
            _, logits = teacher(x, is_feat=True)
        F.kl_div(F.log_softmax(student(x), 1), F.softmax(logits, 1), reduction='batchmean').backward()
        assert all(p.grad is not None for p in student.parameters())
        assert all(p.grad is None for p in teacher.parameters())

    def test_simkd_gets_the_classifier(self, folder, plain):
        """As its helper/loops.py does: the last of the feature modules, on the pooled second last feature."""
        teacher = RepDistillerTeacher(folder)
        x = torch.randn(2, *SIZE)
        features, logits = teacher(x, is_feat=True)
        classifier = teacher.get_feat_modules()[-1]
        torch.testing.assert_close(classifier(features[-2].mean((2, 3))), logits)

    def test_simkd_is_refused_where_layers_lie_between(self, folder, tmp_path):
        with pytest.raises(SFTeacherError, match=r'simkd and srrl .*, stages\[-1\]=1, .*Name its last stage'):
            RepDistillerTeacher(folder, stages=[0, 1]).get_feat_modules()
        between = export(jitter(timm.create_model('test_efficientnet', num_classes=10)), tmp_path / 'teacher')
        with pytest.raises(SFTeacherError, match=r'this EfficientNet computes something else between the two'):
            RepDistillerTeacher(str(between)).get_feat_modules()

    def test_refuses_by_name(self, folder):
        with pytest.raises(SFTeacherError, match=r'abound compares features before the activation.*Use kd, hint'):
            RepDistillerTeacher(folder)(torch.randn(2, *SIZE), is_feat=True, preact=True)

    @pytest.mark.parametrize(('name', 'key'), [('resnet50_sft', 'resnet50'), ('wrn_40_2_sft', 'wrn_40_2')])
    def test_refuses_a_name_that_is_parsed_as_another_model(self, name, key):
        with pytest.raises(SFTeacherError, match=rf"architecture '{key}' from the folder name '{name}'.*rename the f"):
            add_teacher({key: object()}, f'exported/{name}')


@pytest.mark.parametrize('module', ['mdistiller', 'repdistiller'])
def test_adapters_are_short_and_need_no_toolbox(module):
    assert len((ROOT / 'adapters' / f'{module}.py').read_text().splitlines()) <= 60
    source = inspect.getsource(sys.modules[f'sf_teacher.adapters.{module}'])
    assert not re.search(r'^(import|from) (mdistiller|models)', source, re.M)
