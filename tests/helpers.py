"""What several test files do: a few steps of training, work on two ranks, and what stands in for what costs much."""
import multiprocessing
import os
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from sf_teacher.exporting import exporter, reload, verify
from sf_teacher.methods._branches import BranchOutput
from sf_teacher.methods.base import Progress, Step, weighted_sum
from sf_teacher.training import loop

processes = multiprocessing.get_context('forkserver')      # torch and timm are imported once, then forked
processes.set_forkserver_preload(['tests.training.training_runs'])


def train(task: Any, parameters: Any, batch: Any, steps: int, seed: int, lr: float = 0.05) -> list[dict[str, Any]]:
    """Steps of SGD on batches of `batch()`; what the task returned in each."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    torch.manual_seed(seed)
    found = []
    for _ in range(steps):
        losses = task.train()(*batch())
        optimizer.zero_grad()
        losses['loss'].backward()
        optimizer.step()
        found.append(losses)
    return found


def check_here(folder: Path, tolerance: float, factory: str | None = None, threads: int | None = None) -> Any:
    """The export's check in this process: the fresh one costs four seconds, and some tests are there to pay for it."""
    return reload.report(folder, tolerance, factory)


def draw_nothing(rows: Any, folder: Path) -> None:
    """In place of a run's curves, which cost more than the training of most tests."""


STAND_INS: dict[str, list[tuple[Any, str, Any]]] = {     # by the mark of the tests that get the real thing
    'curves': [(loop, 'draw_curves', draw_nothing)],
    'fresh_check': [(module, 'run_check', check_here) for module in (exporter, verify)],
}


def stand_in(but: str | None = None) -> None:
    """From here on, in this process, what costs much and is seldom what a test is about."""
    for mark, places in STAND_INS.items():
        for module, name, function in places if mark != but else ():
            setattr(module, name, function)


def on_two_ranks(folder: Path, work: Any, *args: Any) -> None:
    """Run `work(*args)` in two processes that talk by gloo; each fails by an exception."""
    started = [processes.Process(target=_rank, args=(rank, folder, work, args)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
    logs = [(folder / f'{rank}.log').read_text() for rank in range(2)]
    assert [process.exitcode for process in started] == [0, 0], '\n'.join(logs)


def _rank(rank: int, folder: Path, work: Any, args: Any) -> None:
    torch.set_num_threads(1)
    stand_in()
    os.dup2(os.open(folder / f'{rank}.log', os.O_WRONLY | os.O_CREAT), 2)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    torch.manual_seed(rank)
    work(*args)
    dist.barrier()
    os._exit(0)     # gloo's threads can abort the interpreter's own exit


def assert_ranks_agree(task: nn.Module) -> None:
    """All parameters of a task are the same on both ranks, bit for bit."""
    for name, p in task.named_parameters():
        both = [torch.empty_like(p) for _ in range(2)]
        dist.all_gather(both, p.detach())
        assert torch.equal(*both), name


def build(name: str = 'test_resnet', num_classes: int = 7, **kwargs: Any) -> nn.Module:
    """The same model each time; its weights and running statistics are not those of its initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return jitter(timm.create_model(name, num_classes=num_classes, **kwargs))


def jitter(model: nn.Module, seed: int = 1) -> nn.Module:
    """Move every weight and statistic a little, so that none is what an initialisation gives."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.02 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor += noise.abs() if name.endswith('running_var') else noise
    return model


def joint_loss(logits, branches, terms, target, method):
    """The loss of a method for given logits of teacher and branches, and terms of its branch set."""
    step = Step(None, target, None, logits, [], None, BranchOutput(branches, terms), F.cross_entropy, Progress())
    return weighted_sum(method.terms(step), method.weights(step.progress))
