import pytest
import timm
import torch
from torch import nn

from sf_teacher.split.clones import ShapesOnly, clone_on_meta


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_convnext', 'test_efficientnet'])
@pytest.mark.parametrize('training', [False, True])
def test_shapes_on_meta_are_those_of_the_forward(name, training):
    model = timm.create_model(name)
    images = torch.randn(2, 3, 64, 64) if name != 'test_vit' else torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        _, maps = model.eval().forward_intermediates(images)
        with ShapesOnly():
            _, on_meta = clone_on_meta(model).train(training).forward_intermediates(images.to('meta'))
    assert [(m.shape, m.dtype) for m in on_meta] == [(m.shape, m.dtype) for m in maps]
    assert all(m.is_meta for m in on_meta)


@pytest.mark.parametrize('norm, shape, message', [
    (nn.BatchNorm2d(4), (1, 4, 1, 1), 'more than 1 value per channel'),
    (nn.BatchNorm2d(4), (2, 5, 8, 8), None),
    (nn.LayerNorm([4, 8, 8]), (2, 4, 8, 9), 'normalized_shape'),
])
def test_errors_on_meta_stay_those_of_the_forward(norm, shape, message):
    with pytest.raises((RuntimeError, ValueError), match=message), ShapesOnly():
        norm.to('meta')(torch.empty(shape, device='meta'))
