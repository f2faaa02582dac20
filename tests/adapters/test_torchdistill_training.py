"""torchdistill trains teachers inside a YAML; the loss, the teacher and the errors are ours."""
import copy
import logging
import math
import pickle

import pytest
import timm
import torch
import torchvision
from sf_teacher.adapters import torchdistill as adapter
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchdistill.common.module_util import check_if_wrapped

import sf_teacher
from sf_teacher import SFTeacherError

from ..helpers import assert_ranks_agree, on_two_ranks
from .torchdistill_runs import (
    CPU,
    SIZE,
    batches,
    box_losses,
    distillation_box,
    kd_stage,
    models,
    teacher_stage,
    training_box,
)


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

    def test_a_resumed_run_counts_on_and_a_second_one_is_told(self, tmp_path, caplog):
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

    def test_a_resumed_run_draws_the_branches_that_come_next(self, tmp_path):
        def made():
            return adapter.Teacher4SFTN(CPU, students='test_efficientnet', student_model=models()[0], num_epochs=2,
                                        ckpt_file_path=str(tmp_path / 'branches.pt'), method={'sample_branch': True})

        def drawn(wrapper, steps=2):
            hooked = []
            handle = wrapper.branch_output.register_forward_hook(lambda module, args, out: hooked.append(args[0]))
            for _ in range(steps):
                wrapper(torch.randn(2, *SIZE))
                wrapper.secondary_forward()
            handle.remove()
            return [list(given['step'].output.logits) for given in hooked]

        wrapper = made()
        begun = drawn(wrapper)
        wrapper.post_epoch_process()
        assert drawn(made()) == drawn(wrapper) != begun
        assert sorted(tmp_path.iterdir()) == [tmp_path / 'branches.pt']

    def test_a_write_that_fails_leaves_the_branches_of_the_epoch_before(self, tmp_path, monkeypatch):
        def half(state, file):
            file.write(b'half')
            raise OSError('No space left on device')

        path = tmp_path / 'branches.pt'
        wrapper = adapter.Teacher4SFTN(CPU, students='test_efficientnet', student_model=models()[0],
                                       ckpt_file_path=str(path))
        wrapper.post_epoch_process()
        before = path.read_bytes()
        with monkeypatch.context() as full, pytest.raises(SFTeacherError, match='No space left on device'):
            full.setattr(torch, 'save', half)
            wrapper.post_epoch_process()
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
        state = torch.load(path, weights_only=True)
        torch.save({name: value for name, value in state.items() if name != 'step'}, path)
        with pytest.raises(SFTeacherError, match=r'branches.pt is of an earlier version.*the step.*Delete the file'):
            adapter.Teacher4SFTN(CPU, students='test_efficientnet', student_model=models()[0], ckpt_file_path=str(path))

    def test_frozen_modules_stay(self):
        teacher, _ = models()
        before = {k: v.clone() for k, v in teacher.named_parameters()}
        stage = teacher_stage()
        stage['teacher']['frozen_modules'] = ['teacher.conv1', 'teacher.layer1']
        box_losses(distillation_box(stage, teacher))
        moved = {k for k, v in teacher.named_parameters() if not torch.equal(v, before[k])}
        assert moved and not [k for k in moved if k.startswith(('conv1', 'layer1'))]

    @pytest.mark.parametrize('epochs', [None, 1])
    def test_exports_when_the_best_checkpoint_was_written(self, epochs, tmp_path):
        best = tmp_path / 'best.pt'
        model, _ = models()
        config = dict(export={'folder': str(tmp_path / 'teacher')}, best_ckpt=str(best), num_epochs=epochs)
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

    def test_exports_after_so_many_epochs(self, tmp_path):
        stage = teacher_stage(2, export={'folder': str(tmp_path / 'teacher')})
        stage['teacher']['auxiliary_model_wrapper']['kwargs']['num_epochs'] = 2
        box = distillation_box(stage)
        box.teacher_model.post_epoch_process()
        assert not list(tmp_path.iterdir())
        box.teacher_model.post_epoch_process()
        assert (tmp_path / 'teacher' / 'model.safetensors').is_file()
        assert "SFTN" in (tmp_path / 'teacher' / 'README.md').read_text()

    def test_the_card_has_metadata_of_the_yaml_beside_ours(self, tmp_path):
        box = distillation_box(teacher_stage(
            export={'folder': str(tmp_path / 'teacher'), 'metadata': {'data': 'digits', 'seed': 3}}))
        box.teacher_model.post_epoch_process()
        card = (tmp_path / 'teacher' / 'README.md').read_text()
        assert 'SFTN' in card and 'digits' in card and '**Seed**: 3' in card

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
        assert 'method: SFTN()' in caplog.text and '1.0 * SFTNLoss(' in caplog.text
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


def one_epoch(box):
    box.pre_epoch_process(epoch=0)
    for images, targets, extra in box.train_data_loader:
        box.post_forward_process(loss=box.forward_process(images, targets, extra))
    box.post_epoch_process()


def train_on_a_rank():
    """Both ways of torchdistill's to train; each rank has its own images."""
    stage = teacher_stage()
    stage['teacher']['frozen_modules'] = ['teacher.conv1']
    box = distillation_box(stage, models()[0], distributed=True)
    one_epoch(box)
    assert check_if_wrapped(box.teacher_model._parallel[0])
    assert_ranks_agree(box.teacher_model.model)
    box = training_box(models()[0], distributed=True)
    one_epoch(box)
    with torch.inference_mode():    # torchdistill's script wraps once more to validate
        DistributedDataParallel(box.model).eval()(torch.randn(4, *SIZE))
    one_epoch(box)
    assert check_if_wrapped(box.model._parallel[0])
    assert_ranks_agree(box.model.model)


def test_distributed_data_parallel(tmp_path):
    """Two processes, different data, a frozen module: torchdistill's DDP wrapping keeps teacher and branches equal."""
    on_two_ranks(tmp_path, train_on_a_rank)
