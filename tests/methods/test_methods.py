"""A method is a config and a branch set: a toy fifth one needs no change elsewhere; bad input is refused by name."""
import copy
import pickle
from dataclasses import dataclass, fields

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.task import ClassificationTask
from torch import nn

import sf_teacher
from sf_teacher import SFTeacherError
from sf_teacher.methods import METHODS
from sf_teacher.methods._branch_method import BranchMethod
from sf_teacher.methods._branches import BranchOutput, BranchSet
from sf_teacher.methods.base import Context
from sf_teacher.split.pairing import default_boundaries
from sf_teacher.validation import option

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
    if method in METHODS and (METHODS[method].trained_teacher or METHODS[method].trained_students):
        teacher = timm.create_model(teacher, num_classes=10)        # as if they were trained
        students = timm.create_model(students, num_classes=10) if students else None
    return sf_teacher.wrap(teacher, students, method=method, num_classes=10, input_size=SIZE, **kwargs)


def batch(n=4):
    return torch.randn(n, *SIZE), torch.arange(n) % 10


def batch_for(task, n=4):
    return (*batch(n), torch.arange(n)) if task.method.needs_index else batch(n)


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
    assert 'method: LinearProbing()\n' in text and 'layer1: pooled -> Linear' in text
    state = task.get_checkpoint_state()
    make(LinearProbing()).load_checkpoint_state(state['state_dict'], state['task_state'])
    with pytest.raises(SFTeacherError, match=r'LinearProbing\(penalty=-1\): penalty must be a finite number >= 0'):
        LinearProbing(penalty=-1)


CASES = {'sftn': 'test_resnet', 'teskd': None, 'gtn': ['test_resnet', 'test_efficientnet'], 'soteacher': None,
         'mcmi': None, 'aid': 'test_efficientnet', 'lot': 'test_efficientnet', LinearProbing(): None}
NAMES = [name for name in CASES if isinstance(name, str)]


def test_no_method_is_missing_here():
    assert set(METHODS.of_phase('teacher')) == set(NAMES)
    assert {m for m in NAMES if METHODS[m].takes_students} == {'sftn', 'gtn', 'aid', 'lot'}
    assert {m for m in NAMES if METHODS[m].uses_boundaries} == {'sftn', 'teskd', 'gtn'}
    assert {m for m in NAMES if METHODS[m].trained_teacher} == {'mcmi', 'aid'}
    assert {m for m in NAMES if METHODS[m].trained_students} == {'aid'}
    assert {m for m in NAMES if METHODS[m].needs_index} == {'soteacher'}


@pytest.mark.parametrize('method', CASES, ids=str)
def test_every_method_exports_the_same_plain_teacher(method, tmp_path):
    task = make(method, CASES[method])
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        task.set_epoch(0, 2)
        task.train()(*batch_for(task))['loss'].backward()
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
    images, *others = batch_for(task)
    task.set_epoch(0, 2)
    for mode in (True, False):
        task.train(mode)
        state = {k: v.clone() for k, v in task.teacher.state_dict().items()}
        expected = task.teacher(images)
        task.teacher.load_state_dict(state)
        assert torch.equal(task(images, *others)['output'], expected)


@pytest.mark.parametrize('method', NAMES)
def test_with_all_other_weights_zero_it_is_plain_training_bit_for_bit(method):
    made = METHODS[method]
    zeros = {f.name: 0. for f in fields(made) if f.name.endswith('_weight') and f.name != 'teacher_weight'}
    kwargs = dict(drop_path_rate=0.1, drop_rate=0.1)
    torch.manual_seed(0)
    task = sf_teacher.wrap(
        timm.create_model('test_resnet', num_classes=10, **kwargs),
        [timm.create_model(s, num_classes=10) for s in ([CASES[method]] if isinstance(CASES[method], str) else
                                                        CASES[method] or [])],
        method=made(**{**zeros, 'teacher_weight': 1.}), input_size=SIZE)
    torch.manual_seed(0)
    plain = ClassificationTask(timm.create_model('test_resnet', num_classes=10, **kwargs), verbose=False)
    assert not task.method.active
    task.set_epoch(0, 2)
    for t in (task, plain):
        optimizer = torch.optim.SGD(t.get_trainable_module().parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            t.train()(*batch_for(t) if t is task else batch())['loss'].backward()
            optimizer.step()
    state = plain.get_eval_model().state_dict()
    assert all(torch.equal(v, state[k]) for k, v in task.teacher.state_dict().items())


def steps(task, count, seed, epoch=0):
    task.set_epoch(epoch, 4)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    torch.manual_seed(seed)
    losses = []
    for step in range(count):
        optimizer.zero_grad()
        losses.append(task.train()(*batch_for(task))['loss'])
        losses[-1].backward()
        optimizer.step()
        task.update_ema(step=step + 2)     # the first two copy
    return torch.stack(losses).detach()


@pytest.mark.parametrize('method', NAMES)
def test_a_checkpoint_goes_on_bit_for_bit_and_copies_are_independent(method):
    task = make(method, CASES[method])
    task.setup_ema(decay=0.5)
    steps(task, 2, seed=1)
    copied = copy.deepcopy(task)
    pickled = pickle.loads(pickle.dumps(task.get_checkpoint_state()))
    with_ema = pickle.loads(pickle.dumps(task.get_checkpoint_state(ema=True)))
    resumed = make(method, CASES[method])
    resumed.setup_ema(decay=0.5)
    resumed.load_checkpoint_state(pickled['state_dict'], pickled['task_state'])
    resumed.load_checkpoint_state(with_ema['state_dict_ema'], with_ema['task_state_ema'], ema=True)
    expected = steps(task, 2, seed=2, epoch=1)
    for other in (copied, resumed):
        assert torch.equal(steps(other, 2, seed=2, epoch=1), expected)
        for ema in (False, True):
            found, state = (t.get_eval_model(ema=ema).state_dict() for t in (other, task))
            assert all(torch.equal(v, state[k]) for k, v in found.items())
    assert any(not torch.equal(v, task.get_eval_model(ema=True).state_dict()[k])
               for k, v in task.teacher.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize('method', [m for m in NAMES if m != 'gtn'])    # a pool compiles once a student: test_gtn.py
def test_compiles_without_graph_breaks(method):
    task = make(method, CASES[method]).train()
    images, *others = batch_for(task)
    task.set_epoch(0, 4)
    torch._dynamo.reset()
    other = copy.deepcopy(task)
    expected = other(images, *others)
    task.compile(backend='aot_eager', fullgraph=True)
    found = task(images, *others)
    torch.testing.assert_close(found['loss'], expected['loss'])
    for one, other_one in zip((found, expected), (task, other), strict=True):
        one['loss'].backward()
        assert any(p.grad is not None for p in other_one.teacher.parameters())
    torch.testing.assert_close([p.grad for p in task.teacher.parameters()],
                               [p.grad for p in other.teacher.parameters()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', NAMES)
def test_mixed_precision_gives_finite_terms_and_gradients(method):
    task = make(method, CASES[method]).train()
    task.set_epoch(1, 4)
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16):
            losses = task(*batch_for(task))
    losses['loss'].backward()
    assert all(v.isfinite().all() for v in losses.values() if isinstance(v, torch.Tensor))
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())
    assert all(v.dtype == torch.float32 for v in getattr(task.branches, 'memory', {}).values())

