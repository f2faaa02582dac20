"""Boundaries by name: one output of a module, the layout where a shape fits two, and what the names mean."""
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import sf_teacher
from sf_teacher import BoundaryError
from sf_teacher.split.boundaries import Place, find_place
from sf_teacher.split.split_points import student_boundaries
from sf_teacher.split.tapping import forward_with_maps
from sf_teacher.split.teacher_taps import teacher_boundaries
from sf_teacher.training.settings import parse_boundaries
from tests.split.family_checks import check_own_logits, check_step, check_tail, unchanged

SIZE = (3, 32, 32)


class Block(nn.Module):
    """A residual block; the last of a stage returns its sum before the ReLU as well."""

    def __init__(self, inputs, width, stride=1, last=False):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.last = last

    def forward(self, x):
        before = self.conv(self.bn(x))
        before += self.shortcut(x)
        return (before.relu(), before) if self.last else before.relu()


class StagesReturnPairs(nn.Module):
    """As RepDistiller's nets: the stages return (feature, feature before the ReLU), the model logits."""

    def __init__(self, width=8, blocks=2, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        for i in (1, 2, 3):
            inputs, outputs = width * max(i - 1, 1), width * i
            self.add_module(f'layer{i}', nn.Sequential(*(
                Block(inputs if j == 0 else outputs, outputs, 1 if i == 1 or j else 2, last=j == blocks - 1)
                for j in range(blocks))))
        self.head = nn.Linear(3 * width, classes)

    def run(self, x):
        x = self.stem(x)
        features = []
        for layer in (self.layer1, self.layer2, self.layer3):
            x, before = layer(x)
            features.append(before)
        return self.head(x.mean((2, 3))), features

    def forward(self, x):
        return self.run(x)[0]


class ModelReturnsFeatures(StagesReturnPairs):
    """As mdistiller's: logits and a dictionary, for which a norm inside a later stage is called once more."""

    def forward(self, x):
        logits, features = self.run(x)
        again = [self.layer2[0].bn(features[0]), self.layer3[0].bn(features[1])]
        return logits, {'feats': features, 'preact_feats': again}


PAIRS = [('layer1:0', 'layer1:0'), ('layer2:0', 'layer2:0')]


@pytest.mark.parametrize('kind', [StagesReturnPairs, ModelReturnsFeatures])
def test_stages_that_return_several_tensors(kind):
    teacher, student = kind(16, 3), kind()
    with unchanged(teacher, student):
        task = sf_teacher.wrap(teacher, student, boundaries=PAIRS, input_size=SIZE)
    assert task.branches.names == ['layer1:0-layer1:0', 'layer2:0-layer2:0']
    images = torch.randn(2, *SIZE)
    logits, maps = forward_with_maps(teacher.eval(), task.branches.boundaries, images)
    features = []
    with torch.no_grad():
        x = teacher.stem(images)
        for layer in (teacher.layer1, teacher.layer2):
            x, _ = layer(x)
            features.append(x)
        assert torch.equal(logits, teacher.run(images)[0])
    assert all(torch.equal(a, b) for a, b in zip(maps, features, strict=True))
    check_own_logits(task, SIZE)
    check_step(task, SIZE)
    boundaries, trace = student_boundaries(student, SIZE, ['layer1:0', 'layer2:0', 'layer3:0', 'layer1'])
    for boundary in boundaries:
        check_tail(student, boundary, trace, SIZE)


def test_the_example_runs_on_a_repository_of_such_nets(tmp_path, monkeypatch, capsys):
    (tmp_path / 'models').mkdir()
    (tmp_path / 'models' / '__init__.py').write_text(
        'from tests.split.test_places import StagesReturnPairs\n'
        'model_dict = {"resnet32x4": lambda num_classes: StagesReturnPairs(classes=num_classes)}\n')
    monkeypatch.setattr(sys, 'path', [*sys.path])
    example = runpy.run_path(str(Path(__file__).parents[2] / 'examples' / 'zoo_nets.py'))
    example['PAIRS'][:] = [('resnet32x4', 'resnet32x4')]
    example['main'](tmp_path)
    assert 'layer2:0-layer2:0: 16x16x16 -> Conv2d1x1 -> 16x16x16 NCHW' in capsys.readouterr().out


def test_a_teacher_may_be_tapped_at_another_output():
    teacher = StagesReturnPairs()
    task = sf_teacher.wrap(teacher, StagesReturnPairs(), boundaries=[('layer1:1', 'layer1:0')], input_size=SIZE)
    images = torch.randn(2, *SIZE)
    _, (tapped,) = forward_with_maps(teacher.eval(), task.branches.boundaries, images)
    assert tapped.min() < 0 and torch.equal(tapped.relu(), teacher.layer1(teacher.stem(images))[0])


class ChannelsLast(nn.Module):
    """Maps [B, H, W, C] with as many channels as rows and columns, and a part that may only take one image size."""

    def __init__(self, fixed=False):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU())
        self.position = nn.Parameter(torch.randn(1, 8, 8, 8)) if fixed else 0.
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.mlp(self.patch(x).permute(0, 2, 3, 1) + self.position).mean((1, 2)))


def test_a_cubic_map_is_told_by_a_wider_image():
    for name, kind in (('mlp', 'NHWC'), ('patch', 'NCHW')):
        (teacher,), _ = teacher_boundaries(ChannelsLast(), SIZE, [name])
        (student,), trace = student_boundaries(ChannelsLast(), SIZE, [name])
        assert teacher.layouts[0].kind == student.layouts[0].kind == kind
        check_tail(ChannelsLast(), student, trace, SIZE)


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_the_layout_of_a_cubic_map_is_asked_for_where_it_cannot_be_told(role):
    model, other = ChannelsLast(fixed=True), timm.create_model('test_resnet', num_classes=10)

    def wrapped(name):
        if role == 'teacher':
            return sf_teacher.wrap(model, other, boundaries=[(name, 'layer1')], input_size=SIZE)
        return sf_teacher.wrap(other, model, boundaries=[('layer1', name)], input_size=SIZE)

    with pytest.raises(BoundaryError, match=r"'mlp' of ChannelsLast .*\(1, 8, 8, 8\).* say which by :NCHW or :NHWC"):
        wrapped('mlp')
    task = wrapped('mlp:NHWC')
    branch = task.branches.branches[0]
    assert (branch.source if role == 'teacher' else branch.student).layouts[0].kind == 'NHWC'
    check_step(task, SIZE)
    with pytest.raises(BoundaryError, match=r'not a map in NHWC'):
        sf_teacher.wrap(other, model, boundaries=[('layer1', 'head:NHWC')], input_size=SIZE)


def test_what_names_mean():
    model = StagesReturnPairs()
    assert find_place(model, 'layer1') == Place('layer1', 'layer1')
    assert find_place(model, 'layer1.1:1:NHWC') == Place('layer1.1:1:NHWC', 'layer1.1', 1, 'NHWC')
    model.add_module('odd:0', nn.Identity())
    assert find_place(model, 'odd:0').output is None


def test_boundaries_on_the_command_line():
    assert parse_boundaries(None) is None
    assert parse_boundaries(['2', 'layer1', '3:3', 'layer2:layer3', '1=layer1', 'a:0=b:1:NHWC', 'a:0=']) == [
        2, 'layer1', (3, 3), ('layer2', 'layer3'), (1, 'layer1'), ('a:0', 'b:1:NHWC'), 'a:0']
