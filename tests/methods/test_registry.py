"""The registry: methods are found by their files, users add theirs, and the page that says how is executed."""
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import sf_teacher
from sf_teacher import Method, SFTeacherError
from sf_teacher.methods import METHODS, make_method, register_method

PAGE = Path(__file__).parents[2] / 'docs' / 'own_method.md'


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is gone after it."""
    list(METHODS.values())      # imported before, so that they stay
    monkeypatch.setattr(METHODS, '_classes', dict(METHODS._classes))


def test_the_page_runs_as_it_stands(registry, capsys):
    blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S)
    assert len(blocks) == 2
    scope = {'__name__': 'page'}
    for block in blocks:
        exec(compile(block, str(PAGE), 'exec'), scope)
    losses = scope['losses']
    torch.testing.assert_close(losses['loss'], losses['teacher_ce'] + 0.2 * losses['negentropy'])
    assert 'confidence_penalty' in METHODS and 'negentropy' in losses and capsys.readouterr().out
    made = make_method('confidence_penalty', {'weight': 0.5})
    assert sf_teacher.wrap('test_resnet', method=made, num_classes=10, input_size=(3, 64, 64)).branches is None
    from sf_teacher.adapters import torchdistill as adapter
    assert adapter.ConfidencePenaltyLoss.method_class is type(made)     # registered after the adapter was imported


def test_every_file_is_a_method_with_its_own_key_and_a_title():
    folder = Path(sf_teacher.__file__).parent / 'methods'
    files = {p.stem for p in folder.glob('[!_]*.py')} - {'base', 'registry'}
    assert set(METHODS) >= files
    for key in files:
        cls = METHODS[key]
        assert cls.key == key and cls.title and cls.__doc__ and cls.phase in ('teacher', 'student')
    assert set(METHODS.of_phase('teacher')) | set(METHODS.of_phase('student')) == set(METHODS)


def test_the_names_are_listed_without_importing_torch():
    code = ("import sys; from sf_teacher.methods import METHODS; "
            "assert 'sftn' in list(METHODS) and 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def define(**attributes):
    fields = {'__annotations__': {name: ClassVar[str] for name in attributes}, '__module__': __name__, **attributes}
    return dataclass(frozen=True)(type('Mine', (Method,), fields))


def test_a_key_is_taken_once(registry):
    register_method(define(key='mine'))
    other = define(key='mine')
    other.__qualname__ = 'Other'
    with pytest.raises(SFTeacherError, match=r"the method name 'mine' is taken by .*Mine: give Mine another key"):
        register_method(other)


def test_the_ramp_raises_the_weight_epoch_by_epoch_and_needs_to_know_them():
    task = sf_teacher.wrap('test_resnet', 'test_resnet', method=sf_teacher.SFTN(kl_ramp=0.5, kl_weight=2.),
                           num_classes=10, input_size=(3, 64, 64))
    images, targets = torch.randn(4, 3, 64, 64), torch.arange(4)
    with pytest.raises(SFTeacherError, match=r'call task.set_epoch\(epoch, epochs\) before each epoch, as fit does'):
        task(images, targets)
    for epoch, weight in enumerate((0., 1., 2., 2.)):
        task.set_epoch(epoch, 4)
        losses = task(images, targets)
        torch.testing.assert_close(
            losses['loss'], losses['teacher_ce'] + losses['branch_ce'] + weight * losses['branch_kl'])


def test_students_and_boundaries_are_refused_where_a_method_has_no_use_for_them(registry):
    method = register_method(define(key='mine'))()
    for kwargs, message in ((dict(students='test_resnet'), r'Mine takes no students, got ResNet'),
                            (dict(boundaries=['layer1']), r"Mine attaches nothing at boundaries, got .*layer1")):
        with pytest.raises(SFTeacherError, match=message):
            sf_teacher.wrap('test_resnet', method=method, num_classes=10, input_size=(3, 64, 64), **kwargs)


def test_layer_decay_reaches_the_teacher_and_leaves_the_branches_at_full_rate():
    from timm.optim import create_optimizer_v2
    from timm.task import ClassificationTask

    task = sf_teacher.wrap('test_vit', 'test_vit', num_classes=10, input_size=(3, 160, 160))
    plain = ClassificationTask(task.teacher, verbose=False).get_trainable_module()
    expected = {id(p): g['lr_scale'] for g in create_optimizer_v2(plain, 'sgd', lr=0.1, layer_decay=0.5).param_groups
                for p in g['params']}
    assert min(expected.values()) < 0.2
    for module in (task, task.get_trainable_module()):
        scales = {id(p): g['lr_scale'] for g in create_optimizer_v2(module, 'sgd', lr=0.1, layer_decay=0.5).param_groups
                  for p in g['params']}
        assert {k: v for k, v in scales.items() if k in expected} == expected
        assert {scales[id(p)] for p in task.branches.parameters()} == {1.}
