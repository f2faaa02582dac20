"""GTN: a pool of one is SFTN; slices are exact and shared; one path a step, equal on all ranks and after a resume."""
import copy
from collections import Counter

import pytest
import timm
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2

import sf_teacher
from sf_teacher import GTN, SFTN
from sf_teacher.split.split_points import student_boundaries
from sf_teacher.split.tails import Tail

from ..helpers import assert_ranks_agree, on_two_ranks, train

SIZE = (3, 64, 64)
POOLS = {
    'resnet basic': (['resnet10t', 'resnet18', 'resnet34'], [0, 0, 0]),
    'resnet bottleneck': (['resnet26', 'resnet50'], [0, 0]),
    'convnext': (['convnext_atto', 'convnext_femto', 'convnext_pico'], [0, 0, 0]),
    'deit': (['deit_tiny_patch16_224', 'deit_small_patch16_224'], [0, 0]),
    'mobilenetv3': (['mobilenetv3_small_050', 'mobilenetv3_small_075', 'mobilenetv3_small_100'], [0, 0, 0]),
    'efficientnet': (['efficientnet_b0', 'efficientnet_b1'], [0, 0]),
    'regnet': (['regnetx_002', 'regnetx_004'], [0, 0]),
    'swin': (['swin_tiny_patch4_window7_224', 'swin_small_patch4_window7_224'], [0, 0]),
    'mixed': (['resnet18', 'deit_tiny_patch16_224', 'resnet34', 'resnet26'], [0, 1, 0, 2]),
}
SMALL = {      # what is shared and how does not depend on it, but the seconds do
    'resnet': {'channels': (16, 32, 64, 128)}, 'deit': {'img_size': 64, 'depth': 4},
    'swin_tiny': {'img_size': 64, 'embed_dim': 24, 'num_heads': (1, 2, 4, 8), 'depths': (2, 2, 2, 2)},
    'swin_small': {'img_size': 64, 'embed_dim': 24, 'num_heads': (1, 2, 4, 8), 'depths': (2, 2, 4, 2)},
}


def model(name, **kwargs):
    smaller = next((small for start, small in SMALL.items() if name.startswith(start)), {})
    return timm.create_model(name, num_classes=10, **smaller, **kwargs)


def make(students, method=None, teacher='test_resnet', **kwargs):
    torch.manual_seed(0)
    teacher = model(teacher)
    students = [model(s) if isinstance(s, str) else s for s in students]
    return sf_teacher.wrap(teacher, students, method=method or GTN(), input_size=SIZE, **kwargs)


def batch(n=4):
    return torch.randn(n, *SIZE), torch.arange(n) % 10


def steps(task, count, lr=0.05):
    return train(task, task.parameters(), batch, count, seed=1, lr=lr)


# A pool of one

@pytest.mark.parametrize('student', ['resnet18', 'test_vit'])
def test_a_pool_of_one_is_sftn_exactly(student):
    kwargs = {'img_size': 64} if student == 'test_vit' else {}
    student = model(student, drop_rate=0.1, **kwargs)
    pool, single = make([student], GTN()), make([student], SFTN())
    assert pool.branches.names == [single.branches.names]
    for a, b in zip(steps(pool, 3), steps(single, 3), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {'branch_output'}:
            assert torch.equal(a[name], b[name]), name
    for (name, p), q in zip(pool.teacher.named_parameters(), single.teacher.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad), name
    assert sum(p.numel() for p in pool.branches.parameters()) == sum(p.numel() for p in single.branches.parameters())
    expected = Counter(p.grad.double().sum().item() for p in single.branches.parameters())
    assert Counter(p.grad.double().sum().item() for p in pool.branches.parameters()) == expected


# Slices

def own_weights(branches, member, position):
    """A student's tail weights by its own names: the slices of the bank written out, and what it owns."""
    branch = branches.members[member][position]
    bank = branches.banks[f'{branches.families[member]}-{branches.sources[member][position]}']
    weights = {n: p.detach().clone() for n, p in branch.tail.model.named_parameters()}
    for piece in branches.slices[member][position]:
        t = bank[piece.key].detach()
        if piece.parts > 1:
            t = torch.cat([part[:piece.shape[0] // piece.parts] for part in t.chunk(piece.parts)])
        for d, n in enumerate(piece.shape):
            t = t.narrow(d, 0, n)
        weights |= {f'{path}.{name}'.removeprefix('tail.model.'): t.clone() for path, name in piece.places}
    return weights


@pytest.mark.slow
@pytest.mark.parametrize('pool', POOLS)
def test_families_slices_and_a_step(pool):
    names, families = POOLS[pool]
    students = [model(name) for name in names]
    task = make(students)
    branches = task.branches
    assert branches.families == families
    with torch.no_grad():
        for p in branches.parameters():
            p += 0.01 * torch.randn_like(p)
    task.eval()
    for m, student in enumerate(students):
        boundaries, trace = student_boundaries(student, SIZE)
        for position in range(len(branches.names[m])):
            boundary = next(b for b in boundaries if b.name == branches.members[m][position].target)
            standalone = Tail(student, boundary.split, trace).eval()
            given = own_weights(branches, m, position)
            assert given.keys() >= {n for n, _ in standalone.model.named_parameters()}
            with torch.no_grad():
                for name, p in standalone.model.named_parameters():
                    p.copy_(given[name])
            x = torch.randn(2, branches.boundaries[branches.sources[m][position]].layouts[0].channels,
                            *branches.boundaries[branches.sources[m][position]].size)
            with branches.with_weights(m, position) as branch, torch.no_grad():
                features = branch.transform(x)
                assert torch.equal(branch.tail(*features), standalone(*features)), (names[m], position)
    seen = set()
    for losses in steps(task, 2 * len(names)):
        assert losses['loss'].isfinite()
        seen |= {n.partition('.')[0] for n in losses['branch_output']}
        assert len({n.partition('.')[0] for n in losses['branch_output']}) == 1
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
    assert len(seen) > 1


def test_members_share_storage_and_norms_are_their_own():
    branches = make(['resnet18', 'resnet34']).branches
    slices = [{piece.key: piece for piece in branches.slices[m][0]} for m in (0, 1)]
    key = 'tail/model/layer4/0/conv2/weight'
    with branches.with_weights(0, 0) as a:
        a.tail.model.layer4[0].conv2.weight.data.fill_(7.)
    with branches.with_weights(1, 0) as b:
        assert (b.tail.model.layer4[0].conv2.weight == 7.).all()
    assert branches.members[0][0].tail.model.layer4[0].conv2.weight is None     # and nothing stays there
    small = make(['mobilenetv3_small_050', 'mobilenetv3_small_100']).branches
    key = next(piece.key for piece in small.slices[0][0] if len(piece.shape) == 4 and 'tail' in piece.key)
    bank = small.banks[f'0-{small.sources[0][0]}'][key]
    piece = next(piece for piece in small.slices[0][0] if piece.key == key)
    view = piece.slice(bank)
    assert piece.shape != tuple(bank.shape) and view.untyped_storage().data_ptr() == bank.untyped_storage().data_ptr()
    with torch.no_grad():
        view.fill_(3.)
    assert (bank[tuple(slice(n) for n in piece.shape)] == 3.).all() and not (bank == 3.).all()
    assert not any('bn' in k or 'norm' in k for own in slices for k in own)
    norms = [branches.members[m][0].tail.model.layer4[0].bn1 for m in (0, 1)]
    assert norms[0].weight is not norms[1].weight and norms[0].running_mean is not norms[1].running_mean


def test_a_fused_qkv_is_sliced_part_by_part():
    branches = make(['deit_tiny_patch16_224', 'deit_small_patch16_224']).branches
    piece = next(piece for piece in branches.slices[0][0] if piece.key.endswith('qkv/weight'))
    bank = torch.arange(1152.)[:, None].expand(1152, 384)
    rows = piece.slice(bank)[:, 0]
    assert torch.equal(rows, torch.cat([torch.arange(s, s + 192.) for s in (0., 384., 768.)]))


@pytest.mark.slow
def test_memory_grows_with_the_largest_member():
    def count(*names):
        return sum(p.numel() for p in make(names).branches.parameters())
    assert count('resnet18', 'resnet34') < 1.01 * count('resnet34')
    assert count('resnet18', 'resnet18', 'resnet18') < 1.01 * count('resnet18')
    assert count('convnext_atto', 'convnext_femto', 'convnext_pico') < 1.02 * count('convnext_pico')


def test_a_step_runs_one_students_branches_only():
    task, ran = make(['resnet18', 'resnet26']), set()
    for m, member in enumerate(task.branches.members):
        for branch in member:
            branch.register_forward_hook(lambda *args, m=m: ran.add(m))
    for step in range(4):
        ran.clear()
        task.branches.step = step
        path = task.branches.path()
        task.train()(*batch(2))
        assert ran == {path} and task.branches.step == step + 1


def test_what_is_not_on_the_path_gets_gradients_of_zero():
    task = make(['resnet18', 'resnet26'])
    assert task.branches.families == [0, 1] and task.branches.path() == 1
    task.train()(*batch())['loss'].backward()
    trained = set()
    for name, p in task.branches.named_parameters():
        assert p.grad.shape == p.shape and p.grad.untyped_storage().nbytes() >= p.nbytes, name    # scaled in place
        if p.grad.any():
            trained.add(name.replace('-', '.').split('.')[1])     # student or family
    assert trained == {'1'}


def test_the_largest_members_weights_start_the_bank():
    students = [model('resnet18'), model('resnet34')]
    branches = make(students).branches
    with branches.with_weights(1, 0) as branch:
        for name, p in branch.tail.model.named_parameters():
            assert torch.equal(p, students[1].get_parameter(name)), name
        assert torch.equal(branch.tail.model.layer4[1].conv1.weight, students[1].layer4[1].conv1.weight)


# The path

def paths(task, count):
    found = []
    for _ in range(count):
        found.append(task.branches.path())
        task.branches.step += 1
    return found


def test_paths_are_uniform_reproducible_and_left_alone_by_evaluation():
    task = make(['resnet18'] * 3)
    found = paths(task, 3000)
    assert all(900 < n < 1100 for n in Counter(found).values())
    again, other = make(['resnet18'] * 3), make(['resnet18'] * 3, GTN(seed=1))
    torch.manual_seed(99)
    assert paths(again, 3000) == found != paths(other, 3000)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    task.branches.path()
    assert torch.equal(torch.rand(1), expected)
    before = task.branches.step
    task.eval()(*batch(2))
    assert task.branches.step == before


@pytest.mark.parametrize('sampler', ['uniform', 'learned'])
def test_the_sequence_goes_on_after_a_resume(sampler):
    task = make(['resnet18', 'resnet26'], GTN(sampler=sampler))
    steps(task, 3)
    state = copy.deepcopy(task.get_checkpoint_state())
    expected = paths(task, 20)
    other = make(['resnet18', 'resnet26'], GTN(sampler=sampler))
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    assert other.branches.step == 3 and paths(other, 20) == expected


def test_copies_and_ema():
    task = make(['resnet18', 'resnet34'])
    task.setup_ema(decay=0.5)
    steps(task, 2)
    task.update_ema()
    twin = copy.deepcopy(task)
    images, labels = batch()
    assert torch.equal(task.eval()(images, labels)['loss'], twin.eval()(images, labels)['loss'])


def test_the_learned_sampler_prefers_the_path_of_smaller_divergence_and_shows_its_entropy():
    task = make(['resnet18', 'resnet34'], GTN(sampler='learned', entropy_weight=0.))
    branches, teacher = task.branches.train(), torch.randn(4, 10)
    for _ in range(60):
        member, first = branches._next()
        terms = branches._terms(member, first, {'a': teacher if member else -teacher}, teacher)
        grad, = torch.autograd.grad(terms['path'], branches.alpha)
        branches.alpha.data -= 0.5 * grad
    p = branches.probabilities()
    assert p[1] > 0.9
    branches.entropy_weight = 2.
    term = branches._terms(0, False, {'a': teacher}, teacher)['path_negentropy']
    torch.testing.assert_close(term, 2 * (torch.tensor(2.).log() + (p * p.log()).sum()))
    losses = make(['resnet18', 'resnet34'], GTN(sampler='learned'))(*batch())
    assert losses['path_negentropy'].item() == pytest.approx(0., abs=1e-6) and 'path' in losses


def train_on_a_rank(sampler):
    task = make(['resnet18', 'test_resnet', 'resnet26'], GTN(sampler=sampler), teacher='test_convnext')
    task.prepare_distributed(broadcast_buffers=False)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    torch.manual_seed(dist.get_rank())
    paths = []
    for _ in range(5):
        paths.append(task.branches.path())
        optimizer.zero_grad()
        task.train()(*batch(2))['loss'].backward()
        optimizer.step()
    assert_ranks_agree(task)
    everyone = [None, None]
    dist.all_gather_object(everyone, paths)
    assert everyone[0] == everyone[1] and len(set(paths)) > 1, everyone


@pytest.mark.slow
@pytest.mark.parametrize('sampler', ['uniform', 'learned'])
def test_ranks_take_the_same_path_without_find_unused_parameters(tmp_path, sampler):
    on_two_ranks(tmp_path, train_on_a_rank, sampler)


@pytest.mark.slow
@pytest.mark.parametrize('sampler', ['uniform', 'learned'])
def test_compiled_a_pool_costs_one_graph_a_student(sampler):
    graphs, method = [], GTN(sampler=sampler)

    def backend(graph, inputs):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    pool, two = ['test_resnet', 'test_efficientnet'], ['layer2', 'layer3']
    expected = steps(make(pool, method, boundaries=two), 10)
    task = make(pool, method, boundaries=two)
    task.compile(backend=backend)
    found = steps(task, 10)
    # the teacher's, one for each student, and the first step where there is no baseline yet: not one for every step
    assert len(graphs) == 3 + (sampler == 'learned')
    for a, b in zip(found, expected, strict=True):
        assert a['branch_output'].keys() == b['branch_output'].keys()
        torch.testing.assert_close(a['loss'], b['loss'])


def test_weight_decay_spares_what_students_exclude():
    task = make(['deit_tiny_patch16_224', 'deit_small_patch16_224'])
    groups = create_optimizer_v2(task, 'adamw', lr=1e-3, weight_decay=0.05).param_groups
    decayed = {id(p) for g in groups if g['weight_decay'] for p in g['params']}
    for m, student in enumerate(('deit_tiny_patch16_224', 'deit_small_patch16_224')):
        excluded = model(student).no_weight_decay()
        for piece in task.branches.slices[m][0]:
            bank = task.branches.banks[f'0-{task.branches.sources[m][0]}'][piece.key]
            name = piece.key.replace('/', '.').removeprefix('tail.model.')
            assert (id(bank) in decayed) == (bank.ndim > 1 and name not in excluded)


def test_repr_tells_the_families():
    text = repr(make(['resnet18', 'resnet26', 'resnet34']))
    assert 'GTN(' in text and 'student 0, ResNet, one path of 3, family 0, shares weights with 1 other:' in text
    assert 'student 1, ResNet, one path of 3, family 1, shares weights with no others:' in text

