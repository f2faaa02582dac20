"""Make the nets of RepDistiller or mdistiller student-friendly: each pair of a CIFAR-100 benchmark takes one step.

    git clone https://github.com/HobbitLong/RepDistiller
    python examples/zoo_nets.py RepDistiller
    git clone https://github.com/megvii-research/mdistiller
    python examples/zoo_nets.py mdistiller

The nets are the repositories' own, unchanged. Their stages return several tensors, so a boundary names one of them
(`layer1:0`). `wrap` checks every tail against its student before it returns. To train, give the task to a loop such as
that of train_teacher.py.
"""
import importlib
import sys
from pathlib import Path

import torch

import sf_teacher

PAIRS = [
    ('resnet32x4', 'resnet8x4'), ('wrn_40_2', 'wrn_16_2'), ('wrn_40_2', 'wrn_40_1'), ('vgg13', 'vgg8'),
    ('ResNet50', 'vgg8'), ('resnet32x4', 'ShuffleV2'), ('vgg13', 'MobileNetV2'), ('ResNet50', 'MobileNetV2'),
]
# the ends of two stages of each architecture, at 16x16 and 8x8 where it has them
BOUNDARIES = {
    'resnet': ['layer1:0', 'layer2:0'], 'ResNet': ['layer2:0', 'layer3:0'], 'wrn': ['block1', 'block2'],
    'vgg': ['block1', 'block2'], 'ShuffleV2': ['layer1:0', 'layer2:0'], 'MobileNetV2': ['blocks.1', 'blocks.2'],
}


def nets(repository: Path) -> dict:
    """The repository's builders by name."""
    if (repository / 'mdistiller').is_dir():    # its package imports its data and loops: the models alone are enough
        sys.path.insert(0, str(repository / 'mdistiller'))
        return {name: build for name, (build, _) in importlib.import_module('models.cifar').cifar_model_dict.items()}
    sys.path.insert(0, str(repository))
    return importlib.import_module('models').model_dict


def boundaries(name: str) -> list[str]:
    return next(found for start, found in BOUNDARIES.items() if name.startswith(start))


def main(repository: str) -> None:
    builders = nets(Path(repository))
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    for teacher, student in PAIRS:
        torch.manual_seed(0)
        task = sf_teacher.wrap(
            builders[teacher](num_classes=100), builders[student](num_classes=100), input_size=(3, 32, 32),
            boundaries=list(zip(boundaries(teacher), boundaries(student), strict=True)))
        losses = task(images, labels)
        losses['loss'].backward()
        print(f'{teacher} for {student}: loss {losses["loss"]:.3f}\n{task}\n')


if __name__ == '__main__':
    main(*sys.argv[1:])
