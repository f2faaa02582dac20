"""Names of boundaries, and batches that are given to a task."""
import copy
from functools import partial

import torch

import sf_teacher
from sf_teacher import BoundaryError
from sf_teacher.training.settings import parse_boundaries
from tests.split.own_models import SIZE, net
from tests.split.test_places import StagesReturnPairs

from .row import rows

NAMES = {
    ('layer1', 'layer1:0'): r"'layer1' of StagesReturnPairs .* it returns 2 tensors.* as in 'layer1:0'",
    ('layer1:2', 'layer1:0'): r"'layer1:2' .* does not return so many tensors",
    ('layer1:0', 'layer1:2'): r"'layer1' returns 2 tensors, counted from 0, and there is none at position 2",
    ('layer1:0', 'layer1:1'): r'the image also reaches the logits around it',
    ('layer1:x', 'layer1:0'): r"'layer1:x' does not name a boundary .* as in 'layer1:0', 'stages.2:NHWC'",
    ('layer1:0', 'layer1:0:0'): r"'layer1:0:0' does not name a boundary",
    ('layer9:0', 'layer1:0'): r"no module 'layer9': it has stem, layer1",
}
WORDS = {text: (partial(parse_boundaries, [text]), r"TEACHER=STUDENT.*'layer1:0=layer2:0'")
         for text in ('a:0:b:0', 'a=b=c', '=b', 'a:', '=')}


def named(pair):
    return sf_teacher.wrap(StagesReturnPairs(), StagesReturnPairs(), boundaries=[pair], input_size=SIZE)


def step(images, labels):
    """A step that is refused leaves the task as it was."""
    task = sf_teacher.wrap(net(), net(), input_size=SIZE)
    state = copy.deepcopy(task.state_dict())
    try:
        task(images, labels)
    finally:
        assert all(torch.equal(v, state[k]) for k, v in task.state_dict().items())


BATCHES = {
    'channels': (torch.zeros(2, 1, 32, 32), torch.tensor([0, 1]), r'batch \[B, 3, H, W\]; got shape \(2, 1, 32, 32\)'),
    'one image': (torch.zeros(3, 32, 32), torch.tensor([0]), r'got shape \(3, 32, 32\)'),
    'empty': (torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.long), r'got shape \(0, 3, 32, 32\)'),
    'label too large': (torch.zeros(2, *SIZE), torch.tensor([0, 10]), r'must lie in 0..9; got 0..10.*num_classes'),
    'label negative': (torch.zeros(2, *SIZE), torch.tensor([-1, 1]), r'must lie in 0..9; got -1..1'),
    'labels of another batch': (torch.zeros(2, *SIZE), torch.tensor([1]), r'labels must be \[B\] = \[2\]; got \(1,\)'),
    'labels of few bits': (torch.zeros(2, *SIZE), torch.tensor([0, 1], dtype=torch.int32),
                           r'labels must be torch.int64; got torch.int32: .*targets.long\(\)'),
    'pixels': (torch.zeros(2, *SIZE, dtype=torch.uint8), torch.tensor([0, 1]),
               r'images must be floating point, .*; got torch.uint8: scale them to 0..1'),
    'soft targets': (torch.zeros(2, *SIZE), torch.zeros(2, 7), r'\[B, K\] = \[2, 10\]; got \(2, 7\)'),
}
ROWS = [
    *rows('wrap', {f'boundaries={pair}': (partial(named, pair), message) for pair, message in NAMES.items()},
          BoundaryError),
    *rows('--boundaries', WORDS),
    *rows('task', {name: (partial(step, images, labels), message)
                   for name, (images, labels, message) in BATCHES.items()}),
]
