"""The CIFAR networks of the distillation benchmarks, which timm does not have: WRN-d-k, ResNet-d, ResNet-dx4.

Plain modules, as any user has them: they are wrapped by module paths and exported through `build` as the factory.
"""
from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)      # of CIFAR-100's training images
BOUNDARIES = ('layer1', 'layer2')       # layer3 is the last: behind it are only norm and head


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, norm after each (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential() if stride == 1 and inputs == width else nn.Sequential(
            nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class WideBlock(nn.Module):
    """The same with norm before each convolution (Zagoruyko and Komodakis 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == width else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


class CifarNet(nn.Module):
    """Stem, three stages, pooling, classifier.

    Args:
        block: Kind of block.
        depth: Blocks in a stage.
        widths: Channels of the stem and of the three stages.
        num_classes: K.
    """

    def __init__(self, block: type[nn.Module], depth: int, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        wide = block is WideBlock
        self.num_classes, self.in_chans = num_classes, 3            # what timm.task asks of a student
        self.pretrained_cfg = {'mean': MEAN, 'std': STD}
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.stem_norm = nn.Identity() if wide else nn.Sequential(nn.BatchNorm2d(widths[0]), nn.ReLU())
        for i in (1, 2, 3):
            strides = [1 if i == 1 else 2] + [1] * (depth - 1)
            inputs = [widths[i - 1]] + [widths[i]] * (depth - 1)
            self.add_module(f'layer{i}', nn.Sequential(
                *(block(c, widths[i], s) for c, s in zip(inputs, strides, strict=True))))
        self.norm = nn.Sequential(nn.BatchNorm2d(widths[3]), nn.ReLU()) if wide else nn.Identity()
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem_norm(self.stem(x)))))
        return self.fc(self.norm(x).mean((2, 3)))


def build(name: str, num_classes: int) -> CifarNet:
    """A network by its usual name: wrn_40_2, resnet20, resnet32x4."""
    if match := re.fullmatch(r'wrn_(\d+)_(\d+)', name):
        depth, k = int(match[1]), int(match[2])
        block, depth, widths = WideBlock, (depth - 4) // 6, (16, 16 * k, 32 * k, 64 * k)
    elif match := re.fullmatch(r'resnet(\d+)(x4)?', name):
        block, depth = BasicBlock, (int(match[1]) - 2) // 6
        widths = (32, 64, 128, 256) if match[2] else (16, 16, 32, 64)
    else:
        raise ValueError(f'{name!r} is not of the form wrn_40_2, resnet20 or resnet32x4')
    return CifarNet(block, depth, widths, num_classes)
