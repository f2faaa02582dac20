"""SFTN's cheaper steps: one branch drawn anew in each, or branches that see a part of the batch."""
from functools import partial

import pytest
import timm
import torch
from torch import nn

import sf_teacher
from sf_teacher import SFTN, SFTeacherError
from sf_teacher.analysis.inspection import inspect
from sf_teacher.methods._branches import sampled

SIZE = (3, 64, 64)
model = partial(timm.create_model, num_classes=10)


def make(student='test_vit', **options):
    """A task without batch norm in the branches, and a batch."""
    torch.manual_seed(0)
    task = sf_teacher.wrap(model('test_resnet'), model(student, drop_path_rate=0.), input_size=SIZE,
                           method=SFTN(**options))
    return task, torch.randn(6, *SIZE), torch.arange(6)


def frozen_norms(task):
    """Batch norms that change nothing while several steps are compared."""
    for module in task.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return task


def gradients(task, images, labels, steps):
    task.zero_grad()
    for _ in range(steps):
        (task(images, labels)['loss'] / steps).backward()
    return {name: p.grad.clone() for name, p in task.named_parameters()}


@pytest.mark.parametrize('options', [{}, dict(detach_teacher_logits=False, kl_weight=3., temperature=4.)])
def test_a_sampled_branch_has_the_gradient_of_all_in_the_mean(options):
    task, images, labels = make(**options)
    one, _, _ = make(sample_branch=True, **options)
    one.load_state_dict(task.state_dict())
    count = len(task.branches.branches)
    assert count > 1
    mean = gradients(frozen_norms(one), images, labels, count)
    for name, expected in gradients(frozen_norms(task), images, labels, 1).items():
        torch.testing.assert_close(mean[name], expected, rtol=1e-3, atol=1e-6, msg=name)


def test_each_branch_is_run_once_in_as_many_steps_and_the_order_changes():
    turns = [tuple(sampled(step, 3) for step in range(3 * turn, 3 * turn + 3)) for turn in range(300)]
    assert all(sorted(turn) == [0, 1, 2] for turn in turns) and len(set(turns)) == 6
    for position in range(3):       # uniform at every step: 100 expected, standard deviation 8
        assert all(60 < sum(turn[position] == branch for turn in turns) < 140 for branch in range(3))


def test_what_is_not_drawn_gets_a_gradient_of_zero_and_evaluation_runs_all():
    task, images, labels = make('test_resnet', sample_branch=True)
    names = task.branches.names
    seen = []
    for _ in names:
        task.zero_grad()
        result = task(images, labels)
        result['loss'].backward()
        (drawn,) = result['branch_output']
        seen.append(drawn)
        for name, branch in zip(names, task.branches.branches, strict=True):
            total = sum(p.grad.abs().sum() for p in branch.parameters())
            assert (total > 0) == (name == drawn)
    assert sorted(seen) == sorted(names)
    assert set(task.eval()(images, labels)['branch_output']) == set(names)


def test_a_share_of_the_batch_is_its_first_images():
    part, images, labels = make(branch_share=0.5)
    task, _, _ = make()
    task.load_state_dict(part.state_dict())
    frozen_norms(task), frozen_norms(part)
    mine, theirs = part(images, labels), task(images[:3], labels[:3])
    assert {len(z) for z in mine['branch_output'].values()} == {3} and len(mine['output']) == 6
    for name in ('branch_ce', 'branch_kl'):
        torch.testing.assert_close(mine[name], theirs[name])
    torch.testing.assert_close(mine['teacher_ce'], task(images, labels)['teacher_ce'])
    assert {len(z) for z in part.eval()(images, labels)['branch_output'].values()} == {6}
    small, images, labels = make(branch_share=0.1)
    assert {len(z) for z in small(images, labels)['branch_output'].values()} == {2}     # for batch norm
    assert {len(z) for z in small(images[:1], labels[:1])['branch_output'].values()} == {1}


@pytest.mark.parametrize('options,match', [
    (dict(sample_branch=True, reduction='sum'), "sample_branch must be False where reduction='sum'"),
    (dict(branch_share=0.), 'branch_share must be'),
    (dict(branch_share=1.5), 'branch_share must be'),
])
def test_bad_options_are_refused(options, match):
    with pytest.raises(SFTeacherError, match=match):
        SFTN(**options)


def test_inspect_counts_the_mean_step():
    ratio = {}
    for name, options in {'all': {}, 'one': {'sample_branch': True}, 'half': {'branch_share': 0.5}}.items():
        found = inspect('test_resnet', ['test_resnet'], method=SFTN(**options), num_classes=10, input_size=SIZE)
        count = len(found['pairs'])
        ratio[name] = found['step']['gflops_per_image'] / found['plain_step']['gflops_per_image'] - 1
    assert ratio['one'] == pytest.approx(ratio['all'] / count, rel=1e-6)
    assert ratio['half'] == pytest.approx(ratio['all'] / 2, rel=1e-6)
