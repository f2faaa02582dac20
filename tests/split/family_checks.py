"""What must hold for every architecture, as teacher and as student; shared by the tests and the support table."""
import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy
import timm
import torch
from torch import nn

import sf_teacher
from sf_teacher.checks import logits_of
from sf_teacher.split.boundaries import Boundary
from sf_teacher.split.pairing import default_boundaries
from sf_teacher.split.split_points import student_boundaries
from sf_teacher.split.tails import Tail
from sf_teacher.split.trace import Trace, hooked, tensors

Size = tuple[int, int, int]

# Their tails use the dropout of a position MLP that runs before the boundary: compared in train mode without dropout.
DRAW_EARLY = {'VisionTransformerRelPos'}


@contextlib.contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Nothing of the models changes: tensors, flags, gradients, hooks, attributes; nor any random state."""
    before = [_state(model) for model in models]
    rng = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tobytes()
    yield
    assert torch.equal(torch.get_rng_state(), rng[0]), "torch's random state has changed"
    assert (random.getstate(), numpy.random.get_state()[1].tobytes()) == rng[1:], 'a random state has changed'
    for model, old in zip(models, before, strict=True):
        new = _state(model)
        assert new.keys() == old.keys()
        changed = [f'{name}: {old[name]} -> {new[name]}' for name in old if new[name] != old[name]]
        assert not changed, f'{type(model).__name__} has changed: {changed[:5]}'


def _state(model: nn.Module) -> dict[str, Any]:
    """What can be told apart of a model, by name, in values that compare."""
    def value(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return id(x), x._version, x.requires_grad, id(x.grad), hashlib.sha256(
                x.detach().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        if isinstance(x, dict | list | tuple | set):
            return type(x), [value(item) for item in (x.items() if isinstance(x, dict) else x)]
        return x if isinstance(x, str | int | float | None) else id(x)

    return {f'{path}/{key}': value(x) for path, module in model.named_modules() for key, x in vars(module).items()}


def check_teacher(teacher: nn.Module, input_size: Size) -> sf_teacher.StudentFriendlyTask:
    """A teacher's logits are bit for bit its own, in eval and train mode, and every parameter gets a gradient."""
    student = timm.create_model('test_resnet', num_classes=10)
    with unchanged(teacher, student):
        task = sf_teacher.wrap(teacher, student, input_size=input_size)
    check_own_logits(task, input_size)
    check_step(task, input_size)
    return task


def check_own_logits(task: sf_teacher.StudentFriendlyTask, input_size: Size) -> None:
    """In eval and train mode a teacher's logits with branches are those without; its statistics are put back."""
    teacher, images, labels = task.teacher, torch.randn(2, *input_size), torch.tensor([1, 2])
    state = {k: v.clone() for k, v in teacher.state_dict().items()}
    for mode in (False, True):
        task.train(mode)
        torch.manual_seed(0)
        expected = logits_of(teacher, teacher(images))
        teacher.load_state_dict(state)
        torch.manual_seed(0)
        assert torch.equal(task(images, labels)['output'], expected), f'other logits, training={mode}'
        teacher.load_state_dict(state)


def check_step(task: sf_teacher.StudentFriendlyTask, input_size: Size) -> None:
    """One training step reaches every parameter, and a branch's loss alone reaches the teacher."""
    task.train()
    images, labels = torch.randn(2, *input_size), torch.tensor([1, 2])
    losses = task(images, labels)
    branch = sum(z.square().sum() for z in losses['branch_output'].values())
    first = next(p for p in task.teacher.parameters() if p.requires_grad)
    reached = torch.autograd.grad(branch, list(task.teacher.parameters()), retain_graph=True, allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in reached), 'a branch does not reach the teacher'
    losses['loss'].backward()
    assert first.grad is not None
    missing = [n for n, p in task.branches.named_parameters() if p.grad is None]
    assert not missing, f'no gradient for {missing}'
    assert torch.isfinite(losses['loss'])


def check_student(student: nn.Module, input_size: Size) -> tuple[list[Boundary], list[Boundary]]:
    """Every boundary of a student gives an exact tail (of many equal blocks: the first and the default ones).

    Returns:
        All boundaries and those chosen by default.
    """
    boundaries, trace = student_boundaries(student, input_size)
    chosen = default_boundaries(boundaries)
    for boundary in boundaries if len(boundaries) <= 6 else {id(b): b for b in (boundaries[0], *chosen)}.values():
        check_tail(student, boundary, trace, input_size)
    teacher = timm.create_model('test_resnet', num_classes=10)
    with unchanged(teacher, student):
        task = sf_teacher.wrap(teacher, student, input_size=input_size)
    check_step(task, input_size)
    return boundaries, chosen


def check_tail(student: nn.Module, boundary: Boundary, trace: Trace, input_size: Size) -> None:
    """A tail on the student's own features gives the student's logits and owns what lies behind the boundary."""
    assert boundary.split is not None
    names = boundary.split.modules
    tail = Tail(student, boundary.split, trace)
    student.eval()
    tail.eval()
    for batch in (1, 2, 3):
        features, logits, _ = _run(student, names, tail, torch.randn(batch, *input_size))
        with torch.no_grad():
            again = tail(*features)
        assert torch.equal(again, logits), f'{boundary.name}, batch {batch}: {(again - logits).abs().max():.2g} off'

    own = dict(student.named_parameters(remove_duplicate=False))
    assert set(tail.model.state_dict()) <= set(student.state_dict())
    reached = _reached(student, boundary, tail, input_size)
    assert {id(own[n]) for n, _ in tail.model.named_parameters()} == reached, f'{boundary.name}: other parameters'

    student.train()
    tail.train()
    if type(student).__name__ in DRAW_EARLY:
        for module in (*student.modules(), *tail.modules()):
            if isinstance(module, nn.Dropout):
                module.p = 0.
    features, logits, rng = _run(student, names, tail, torch.randn(2, *input_size))
    features = [f.clone().requires_grad_() for f in features]
    torch.set_rng_state(rng)
    again = tail(*features)
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5 * (1 + logits.abs().max().item()))
    again.square().sum().backward()
    assert all(f.grad is not None for f in features), f'{boundary.name}: no gradient into a feature'
    missing = [n for n, p in tail.named_parameters() if p.grad is None]
    assert not missing, f'{boundary.name}: no gradient for {missing}'


def _run(student: nn.Module, names: tuple[str, ...], tail: Tail, images: torch.Tensor) -> tuple[list, Any, Any]:
    got: dict[str, list[torch.Tensor]] = {}
    rng: list[torch.Tensor] = []

    def capture(name: str, module: nn.Module, args: Any, output: Any) -> None:
        got[name] = [t.clone() for t in tensors(output)]
        rng.append(torch.get_rng_state())

    with torch.no_grad(), hooked(student, capture, names):
        logits = logits_of(student, student(images))
    return [got[name][i] for name, i in tail.features], logits, rng[-1]


def _reached(student: nn.Module, boundary: Boundary, tail: Tail, input_size: Size) -> set[int]:
    """Parameters that autograd reaches from the logits with the boundary detached; independent of the tracer."""
    def detach(name: str, module: nn.Module, args: Any, output: Any) -> Any:
        return torch.utils._pytree.tree_map(
            lambda t: t.detach().requires_grad_().clone() if getattr(t, 'requires_grad', False) else t, output)

    student.eval()
    images = torch.randn(1, *input_size, requires_grad=True)
    parameters = list(student.parameters())
    assert boundary.split is not None
    with hooked(student, detach, boundary.split.modules):
        logits = logits_of(student, student(images))
    grads = torch.autograd.grad(logits.square().sum(), [images, *parameters], allow_unused=True)
    assert grads[0] is None, f'{boundary.name}: the image reaches the logits around the boundary'
    return {id(p) for p, g in zip(parameters, grads[1:], strict=True) if g is not None}
