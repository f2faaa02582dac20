"""docs/cost.md is what the benchmark makes of its committed results, and the loop by hand trains as the task does."""
import importlib
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'examples' / 'benchmarks' / 'step_cost.py'


def test_the_documented_cost_is_the_committed_result():
    data = json.loads(SCRIPT.with_suffix('.json').read_text())
    script = runpy.run_path(str(ROOT / 'docs/make_cost.py'))
    assert (ROOT / 'docs/cost.md').read_text() == script['render'](data), 'run python docs/make_cost.py'
    eager = {(r['pair'], r['method']) for r in data['rows'] if not r['compiled']}
    assert len({pair for pair, _ in eager}) >= 5 and len(eager) == 3 * len({pair for pair, _ in eager})
    assert len({r['pair'] for r in data['rows'] if r['compiled']}) >= 5
    assert {r['pair'] for r in data['simplifier']} == {pair for pair, _ in eager}


@pytest.mark.parametrize('student', ['test_resnet', 'test_vit'])
def test_the_loop_by_hand_has_the_tasks_loss_and_gradients(student, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    steps, by_hand = (importlib.import_module(name) for name in ('steps', 'by_hand'))
    task = steps.wrapped('resnet10t', [student], 'sftn', SimpleNamespace(size=160, device='cpu'))
    hand = by_hand.ByHand(task, timm.create_model(student, num_classes=100).train())
    x, y = torch.randn(4, 3, 160, 160), torch.arange(4)
    ours, theirs = task(x, y)['loss'], hand.step(x, y)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    assert len(hand.parameters) == len(list(task.parameters()))
    for p, q in zip(task.teacher.parameters(), hand.teacher.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)
