"""A method is a config and a branch set: a toy fifth one needs no change elsewhere; bad input is refused by name."""
from dataclasses import dataclass

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import sf_teacher
from sf_teacher import GTN, SFTN, TESKD, SFTeacherError
from sf_teacher.methods import METHODS
from sf_teacher.methods._branch_method import BranchMethod
from sf_teacher.methods._branches import BranchOutput, BranchSet
from sf_teacher.methods.base import Context
from sf_teacher.split.pairing import default_boundaries
from sf_teacher.validation import option

from ..adapters.torchdistill_runs import quick_check
from ..split.family_checks import check_step

SIZE = (3, 64, 64)


# The fifth method: a linear probe at each boundary, and a penalty on what the probes weigh

class Probes(BranchSet):
    def __init__(self, context: Context, penalty: float) -> None:
        super().__init__()
        self.boundaries = list(context.selection.chosen or default_boundaries(context.selection.teacher))
        self.probes = nn.ModuleList(nn.Linear(b.layouts[0].channels, context.num_classes) for b in self.boundaries)
        self.penalty = penalty

    def forward(self, maps: list[torch.Tensor], teacher_logits: torch.Tensor) -> BranchOutput:
        logits = {b.name: probe(x.mean((2, 3)))
                  for b, probe, x in zip(self.boundaries, self.probes, maps, strict=True)}
        return BranchOutput(logits, {'penalty': self.penalty * sum(p.weight.square().sum() for p in self.probes)})

    def describe(self) -> list[str]:
        return [f'{b.name}: pooled -> Linear' for b in self.boundaries]


@dataclass(frozen=True)
class LinearProbing(BranchMethod):
    """A toy."""
    key = 'linear_probing'
    own_terms = ('penalty',)

    kl_weight: float = 0.5
    penalty: float = option(0.01, 'weight of the squared weights of the probes', low=0)

    def build(self, context: Context) -> BranchSet:
        return Probes(context, self.penalty)


def make(method, students=None, teacher='test_resnet', **kwargs):
    torch.manual_seed(0)
    return sf_teacher.wrap(teacher, students, method=method, num_classes=10, input_size=SIZE, **kwargs)


def batch(n=4):
    return torch.randn(n, *SIZE), torch.arange(n) % 10


def test_a_fifth_method_is_one_config_and_one_branch_set():
    task = make(LinearProbing())
    check_step(task, SIZE)
    images, labels = batch()
    losses = task(images, labels)
    z, probes = losses['output'], losses['branch_output']
    kl = [(z.softmax(1) * (z.log_softmax(1) - p.log_softmax(1))).sum(1).mean() for p in probes.values()]
    expected = F.cross_entropy(z, labels) + sum(F.cross_entropy(p, labels) for p in probes.values()) / 3 \
        + 0.5 * sum(kl) / 3 + 0.01 * sum(p.weight.square().sum() for p in task.branches.probes)
    torch.testing.assert_close(losses['loss'], expected)
    assert list(probes) == ['layer1', 'layer2', 'layer3'] and 'penalty' in losses
    text = repr(task)
    assert 'LinearProbing(' in text and 'penalty=0.01' in text and 'layer1: pooled -> Linear' in text
    state = task.get_checkpoint_state()
    make(LinearProbing()).load_checkpoint_state(state['state_dict'], state['task_state'])
    with pytest.raises(SFTeacherError, match=r'LinearProbing\(penalty=-1\): penalty must be a finite number >= 0'):
        LinearProbing(penalty=-1)


CASES = {'sftn': 'test_resnet', 'teskd': None, 'gtn': ['test_resnet', 'test_efficientnet'], LinearProbing(): None}


def test_no_method_is_missing_here():
    assert set(METHODS.of_phase('teacher')) == {m for m in CASES if isinstance(m, str)}
    assert [METHODS[m].takes_students for m in ('sftn', 'teskd', 'gtn')] == [True, False, True]


@pytest.mark.parametrize('method', CASES, ids=str)
def test_every_method_exports_the_same_plain_teacher(method, tmp_path, monkeypatch):
    quick_check(monkeypatch)
    task = make(method, CASES[method])
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        task.train()(*batch())['loss'].backward()
        optimizer.step()
    folder = task.export(tmp_path / 'teacher', mean=(0.5,) * 3, std=(0.5,) * 3)
    plain = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images, _ = batch()
    assert torch.equal(plain(images), task.teacher.eval()(images))
    assert plain.state_dict().keys() == timm.create_model('test_resnet', num_classes=10).state_dict().keys()
    assert type(task.method).__name__ in (folder / 'README.md').read_text()


@pytest.mark.parametrize('method', CASES, ids=str)
def test_the_teachers_logits_are_its_own(method):
    task = make(method, CASES[method])
    images, labels = batch()
    for mode in (True, False):
        task.train(mode)
        state = {k: v.clone() for k, v in task.teacher.state_dict().items()}
        expected = task.teacher(images)
        task.teacher.load_state_dict(state)
        assert torch.equal(task(images, labels)['output'], expected)


@pytest.mark.parametrize('call,message', [
    (lambda: make('sftn'), r'SFTN needs a student'),
    (lambda: make('gtn'), r'GTN needs a pool of students'),
    (lambda: make('teskd', 'test_resnet'), r'TESKD takes no students, got ResNet: leave students out'),
    (lambda: make('skd', 'test_resnet'), r"unknown method 'skd'.*: give one of 'gtn', 'sftn', 'teskd' or a co"),
    (lambda: TESKD(width=0), r'TESKD\(width=0\): width must be a whole number >= 1 or None'),
    (lambda: TESKD(temperature=0.), r'TESKD\(temperature=0.0\): temperature must be a finite number > 0'),
    (lambda: GTN(sampler=''), r"GTN\(sampler=''\): sampler must be one of uniform, learned"),
    (lambda: SFTN(reduction='max'), r"SFTN\(reduction='max'\): reduction must be one of mean, sum"),
    (lambda: make('gtn', [timm.create_model('test_resnet', num_classes=7)]), r'has 7 classes and the teacher 10'),
    (lambda: make('teskd', boundaries=['layer4']), r'TESKD needs at least 2 stages of the teacher and has layer4'),
    (lambda: make('teskd', boundaries=['layer9', 'layer4']), r"has no module 'layer9'"),
])
def test_bad_input(call, message):
    with pytest.raises(SFTeacherError, match=message):
        call()
