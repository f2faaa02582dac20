import copy

import pytest
import timm
import torch

import sf_teacher
from sf_teacher import cost
from sf_teacher.methods import METHODS

from .training import training_runs as runs


@pytest.mark.parametrize('groups', [1, 4, 8])
@pytest.mark.parametrize('kind', [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_a_grouped_convolution_takes_three_times_its_forward(kind, groups):
    layer, x = kind(8, 16, 3, groups=groups), torch.zeros(2, 8, 9, 9, requires_grad=True)
    with cost.flop_counter() as counter:
        layer(x).sum().backward()
    positions = 7 * 7 if kind is torch.nn.Conv2d else 9 * 9
    assert counter.get_total_flops() == 3 * 2 * 2 * positions * 8 * 16 * 9 // groups


@pytest.mark.parametrize('method', METHODS.of_phase('teacher'))
def test_counting_what_a_step_costs_leaves_the_task_as_it_is(method, monkeypatch):
    task = runs.task(method)
    before = copy.deepcopy(task.get_checkpoint_state())
    made = []
    step_cost = cost.step_cost
    with monkeypatch.context() as patch:        # values are neither copied nor computed with
        patch.setattr(cost, 'step_cost', lambda model, *args: made.append(model) or step_cost(model, *args))
        assert 1. <= cost.step_ratio(task, 3) < 6.
    assert len(made) == 2 and {t.device.type for m in made for t in (*m.parameters(), *m.buffers())} == {'meta'}
    torch.testing.assert_close(task.get_checkpoint_state(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in task.parameters()) and task.progress.epochs is None


def test_the_cost_of_a_teacher_that_looks_at_values_is_counted_with_values():
    class Looks(timm.models.ResNet):
        def forward(self, x):
            return super().forward(x) * (2. if float(x.detach().sum()) > 1e9 else 1.)

    known = timm.create_model('test_resnet', num_classes=4)
    known.__class__ = Looks
    task = sf_teacher.wrap(known, timm.create_model('test_resnet', num_classes=4), input_size=(3, 16, 16))
    with pytest.raises(RuntimeError):
        cost._counted(cost._on_meta(task), 3)
    assert cost.step_ratio(task, 3) == pytest.approx(cost.step_ratio(runs.task('teacher'), 3))
