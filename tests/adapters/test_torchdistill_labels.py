"""A teacher in torchdistill whose classes are in another order than the data's."""

import pickle

import pytest
import timm
import torch
from sf_teacher.adapters import torchdistill as adapter
from torch.utils.data import TensorDataset
from torchdistill.common.main_util import load_ckpt
from torchdistill.models.registry import get_model

import sf_teacher
from sf_teacher import SFTeacherError

from ..helpers import jitter
from .torchdistill_runs import (
    SIZE,
    box_losses,
    distillation_box,
    kd_stage,
)


class TestLabelNames:
    NAMES = ('bus', 'cat', 'dog')

    @pytest.fixture(scope='class')
    @classmethod
    def folder(cls, tmp_path_factory):
        torch.manual_seed(0)
        model = jitter(timm.create_model('resnet18', num_classes=3))
        return sf_teacher.export(model, tmp_path_factory.mktemp('named') / 'teacher', input_size=SIZE,
                                 class_names=cls.NAMES)

    @pytest.mark.parametrize('key', ['sf_teacher.timm_teacher', 'sf_teacher.torchvision_teacher'])
    def test_names_as_a_list_a_file_or_an_image_folder(self, folder, tmp_path, key):
        (tmp_path / 'names.txt').write_text('\n'.join(self.NAMES) + '\n')
        for name in reversed(self.NAMES):
            (tmp_path / 'train' / name).mkdir(parents=True)
        for names in (list(self.NAMES), str(tmp_path / 'names.txt'), str(tmp_path / 'train')):
            assert get_model(key, model_name=f'local-dir:{folder}', label_names=names) is not None
        for text in ('\ufeff' + '\n'.join(self.NAMES), ' \r\n'.join(self.NAMES) + ' \r\n'):     # of other editors
            (tmp_path / 'names.txt').write_bytes(text.encode())
            assert get_model(key, model_name=f'local-dir:{folder}', label_names=str(tmp_path / 'names.txt')) is not None
        (tmp_path / 'names.txt').write_bytes(b'caf\xe9\n')
        with pytest.raises(SFTeacherError, match=r"other classes: 3, .* against 1, among them \['caf.udce9'\]"):
            get_model(key, model_name=f'local-dir:{folder}', label_names=str(tmp_path / 'names.txt'))
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

    @pytest.mark.parametrize('key', ['sf_teacher.timm_teacher', 'sf_teacher.torchvision_teacher'])
    def test_weights_in_the_old_order_are_not_loaded_into_the_new_one(self, folder, key, tmp_path):
        plain, mapped = (get_model(key, model_name=f'local-dir:{folder}', **more) for more in (
            {}, {'label_names': ['cat', 'dog', 'bus']}))
        torch.save({'model': plain.state_dict()}, tmp_path / 'teacher.pth')
        before = {name: value.clone() for name, value in mapped.state_dict().items()}
        with pytest.raises(SFTeacherError, match=r'put the classes of teacher .* back into the order that label_names '
                                                 r'changed: leave src_ckpt out'):
            load_ckpt(str(tmp_path / 'teacher.pth'), model=mapped, strict=True)
        assert all(torch.equal(value, before[name]) for name, value in mapped.state_dict().items())
        load_ckpt(str(tmp_path / 'teacher.pth'), model=plain, strict=True)
        mapped.load_state_dict(before)      # in the new order
        pickle.loads(pickle.dumps(mapped))

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
    def test_every_kind_of_classifier(self, arch, tmp_path):
        model = jitter(timm.create_model(arch, num_classes=3)).eval()
        folder = sf_teacher.export(model, tmp_path / 'teacher', class_names=self.NAMES)
        x = torch.randn(2, *timm.data.resolve_model_data_config(model)['input_size'])
        mapped = adapter.timm_teacher(f'local-dir:{folder}', label_names=['dog', 'cat', 'bus'])
        torch.testing.assert_close(mapped(x), model(x)[:, [2, 1, 0]], rtol=1e-4, atol=1e-5)

    def test_a_classifier_with_a_scale(self, folder, monkeypatch):
        class Scaled(torch.nn.Linear):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.scale = torch.nn.Parameter(torch.tensor(2.))

        head = Scaled(512, 3)
        monkeypatch.setattr('timm.models.resnet.ResNet.get_classifier', lambda self: head)
        monkeypatch.setattr('timm.models.resnet.ResNet.forward_head', lambda self, x: head(self.global_pool(x)))
        x = torch.randn(2, *SIZE)
        before = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(x)
        mapped = adapter.timm_teacher(f'local-dir:{folder}', label_names=['dog', 'cat', 'bus'])
        torch.testing.assert_close(mapped(x), before[:, [2, 1, 0]])

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
