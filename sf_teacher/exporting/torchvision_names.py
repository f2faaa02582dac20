"""Written by `python -m sf_teacher.exporting.torchvision_format` with timm 1.0.31 and torchvision 0.29.2.

Do not edit."""

# keys, shapes and logits agree
SAME = (
    'densenet121',
    'densenet161',
    'densenet169',
    'densenet201',
    'resnet18',
    'resnet34',
    'resnet50',
    'resnet101',
    'resnet152',
    'resnext50_32x4d',
    'resnext101_32x8d',
    'resnext101_64x4d',
    'wide_resnet50_2',
    'wide_resnet101_2',
)

# logits agree, keys do not
MAPPED = (
    'convnext_base',
    'convnext_large',
    'convnext_small',
    'convnext_tiny',
    'efficientnet_b0',
    'efficientnet_b1',
    'efficientnet_b2',
    'efficientnet_b3',
    'efficientnet_b4',
    'vgg11',
    'vgg11_bn',
    'vgg13',
    'vgg13_bn',
    'vgg16',
    'vgg16_bn',
    'vgg19',
    'vgg19_bn',
)
