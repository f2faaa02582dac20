"""Models as users write them, shared by tests."""
import timm
from torch import nn

from sf_teacher.split.split_points import student_boundaries
from tests.split.family_checks import check_tail

SIZE = (3, 32, 32)


class Plain(nn.Module):
    """A network as a user writes one: a shared activation, in-place addition and a functional pool."""

    def __init__(self, classes=10, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        x = self.relu(self.stem(x))
        y = self.first(x)
        y += x
        x = self.relu(self.second(self.relu(y)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class OnlyInTraining(Plain):
    """In train mode it returns something else, as `returned` says."""
    returned = staticmethod(lambda logits: (logits, logits))

    def forward(self, x):
        logits = super().forward(x)
        return self.returned(logits) if self.training else logits


def net(name='test_resnet', **kwargs):
    return timm.create_model(name, **{'num_classes': 10, **kwargs})


def tails_of(student, names, size=SIZE):
    boundaries, trace = student_boundaries(student, size, names)
    for boundary in boundaries:
        check_tail(student, boundary, trace, size)
    return boundaries
