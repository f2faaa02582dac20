"""Which boundaries are used by default, and which of a teacher's goes with which of a student's."""
import pytest
import timm
import torch

import sf_teacher
from sf_teacher.split.boundaries import Boundary
from sf_teacher.split.layouts import Layout
from sf_teacher.split.pairing import default_boundaries, pair_boundaries
from sf_teacher.split.split_points import student_boundaries
from sf_teacher.split.teacher_taps import teacher_boundaries


def boundaries(*sizes, hierarchical=True):
    return [Boundary(f'{i}', i, (Layout('NCHW', 8, (size, size)),), (i + 1) / (len(sizes) + 1),
                     224 / size, hierarchical) for i, size in enumerate(sizes)]


def sizes(teacher, student, **kwargs):
    return [(t.size[0], s.size[0]) for t, s in pair_boundaries(teacher, student, **kwargs)]


@pytest.mark.parametrize('teacher,student,expected', [
    ((56, 28, 14), (56, 28, 14), [(56, 56), (28, 28), (14, 14)]),
    ((14, 7), (56, 28, 14), [(14, 14)]),                    # levit and mobilenetv3: 7 has nothing behind 14
    ((27, 14), (56, 28, 14), [(27, 28), (14, 14)]),         # pit
    ((56, 28, 14), (28, 14), [(28, 28), (14, 14)]),
    ((28, 14), (56, 14), [(28, 56), (14, 14)]),             # 28 fits in before the pair of one resolution
    ((48, 24, 12), (56, 28, 14), [(48, 56), (24, 28), (12, 14)]),
    ((7,), (56, 28, 14), [(7, 14)]),                        # no resolution in common: the nearest
    ((64, 32), (28, 14), [(32, 28)]),
])
def test_hierarchical_models_pair_by_resolution(teacher, student, expected):
    assert sizes(boundaries(*teacher), boundaries(*student), every=False) == expected
    assert sizes(boundaries(*student), boundaries(*teacher), every=False) == [(s, t) for t, s in expected]


def test_of_two_streams_the_widest_counts():
    """CrossViT returns features of two patch sizes at each depth; it has one resolution in each stream."""
    with torch.device('meta'):
        found, _ = teacher_boundaries(timm.create_model('crossvit_18_240').eval(), (3, 240, 240))
    assert {b.hierarchical for b in found} == {False} and {b.size for b in found} == {(20, 20), (14, 14)}
    assert [(b.name, b.size, b.layouts[0].channels) for b in default_boundaries(found)] == [
        ('blocks.0', (14, 14), 448), ('blocks.1', (14, 14), 448)]


def test_named_boundaries_all_have_a_partner():
    assert sizes(boundaries(14, 7), boundaries(56, 28, 14)) == [(14, 28), (7, 14)]
    assert sizes(boundaries(14), boundaries(56, 28, 14)) == [(14, 14)]


def test_a_vit_pairs_by_depth():
    vit = boundaries(14, 14, 14, hierarchical=False)
    assert sizes(vit, boundaries(56, 28, 14), every=False) == [(14, 56), (14, 28), (14, 14)]
    assert [b.depth for _, b in pair_boundaries(vit[1:2], boundaries(56, 28, 14))] == [0.5]


@pytest.mark.parametrize('name,hierarchical', [('test_resnet', True), ('test_vit', False)])
def test_both_roles_say_whether_a_model_has_several_resolutions(name, hierarchical):
    model = timm.create_model(name, num_classes=10)
    for found in (teacher_boundaries(model, (3, 160, 160))[0], student_boundaries(model, (3, 160, 160))[0]):
        assert {b.hierarchical for b in found} == {hierarchical}


@pytest.mark.parametrize('name', ['levit_128', 'pit_s_224'])
def test_few_resolutions_and_many(name):
    with torch.device('meta'):
        teacher = timm.create_model(name)
        student = timm.create_model('mobilenetv3_large_100')
    found = [default_boundaries(teacher_boundaries(model.eval(), (3, 224, 224))[0]) for model in (teacher, student)]
    assert (14, 14) in sizes(*found, every=False)


def test_wrap_pairs_by_resolution():
    """By depth, EfficientViT's 4x4 after its first stage would go with EfficientNet's 8x8."""
    task = sf_teacher.wrap('efficientvit_m0', 'test_resnet', num_classes=10, input_size=(3, 64, 64))
    assert [(b.source.size, b.student.size) for b in task.branches.branches] == [((4, 4), (4, 4))]
    named = sf_teacher.wrap('efficientvit_m0', 'test_resnet', num_classes=10, input_size=(3, 64, 64), boundaries=[0, 1])
    assert len(named.branches.branches) == 2
