"""What is seen of a run: averages of every loss term, progress in a terminal or a log."""
from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TextIO

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ..functional import top1

SILENCE = 30.       # seconds without a line outside of a terminal


class Average:
    """Sample-weighted averages of named values, kept on the device; nothing is read before it is asked for."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], torch.Tensor] = {}     # and at the end of each the number of samples

    def update(self, values: Mapping[str, torch.Tensor], n: int) -> None:
        """Add values that are means over `n` samples."""
        names = tuple(values)
        stacked = torch.stack([v.detach() for v in values.values()])
        stacked = stacked.to(torch.float32 if stacked.device.type == 'mps' else torch.float64)
        stacked = F.pad(stacked, (0, 1), value=1.) * n
        self.sums[names] = self.sums[names] + stacked if names in self.sums else stacked

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """The averages, over all processes if asked. Every process must have met the same names."""
        totals: dict[str, torch.Tensor] = {}
        for names, sums in self.sums.items():
            if distributed:
                sums = sums.clone()
                dist.all_reduce(sums)
            for name, value in zip(names, sums[:-1], strict=True):
                pair = torch.stack([value, sums[-1]])
                totals[name] = totals[name] + pair if name in totals else pair
        return {name: (pair[0] / pair[1]).item() for name, pair in totals.items()}


@torch.no_grad()
def watched(result: Mapping[str, Any], target: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Every loss term of a task's result, and how well teacher and branches do on the batch they were trained on.

    Args:
        result: What the task returned.
        target: Its targets, or None where some images have no label: there are only the terms then.

    Returns:
        The scalars of `result`; ``top1``, and for each branch ``branch_top1/NAME`` and ``branch_gap/NAME``, the
        divergence KL(teacher || branch) in nats, whatever temperature or direction the loss has.
    """
    values = {name: v for name, v in result.items() if isinstance(v, torch.Tensor) and v.ndim == 0}
    if target is None:
        return values
    branches = result.get('branch_output') or {}
    labels = target if target.ndim == 1 else target.argmax(-1)
    output = result['output'].float()
    values['top1'] = top1(output[None], labels)[0]
    if branches:
        logits = torch.stack(list(branches.values())).float()       # [branches, b, K], perhaps of a part of the batch
        part = logits.shape[1]
        accuracy, log_p = top1(logits, labels[:part]), output[:part].log_softmax(-1)
        gap = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1).mean(-1)
        for i, name in enumerate(branches):
            values |= {f'branch_top1/{name}': accuracy[i], f'branch_gap/{name}': gap[i]}
    return values


class Progress:
    """A bar with the time that is left in a terminal; elsewhere lines, every `interval` updates and every 30 s.

    Args:
        epochs: Epochs in all.
        updates: Updates in an epoch.
        interval: Updates between plain lines.
        stream: Where to, by default stderr.
        start: Epochs that are done already.
    """

    def __init__(
            self,
            epochs: int,
            updates: int,
            interval: int,
            stream: TextIO | None = None,
            start: int = 0,
    ) -> None:
        self.epochs, self.updates, self.interval, self.start = epochs, updates, interval, start
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.began = self._shown = time.monotonic()
        self._bar: Any = None
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(BarColumn(20), TextColumn('{task.description}', markup=False), TimeRemainingColumn(),
                            console=Console(file=self.stream), transient=True)
            self._task = self._bar.add_task('', total=epochs * updates, completed=start * updates)
            self._bar.start()

    def due(self, update: int) -> bool:
        """Whether something is to be shown after this update; only then the averages are worth reading."""
        silent = time.monotonic() - self._shown
        if self.terminal:
            return update == self.updates or silent > 0.2
        return update % self.interval == 0 or silent > SILENCE

    def show(self, epoch: int, update: int, loss: float, lr: float, speed: float) -> None:
        """Show where the run is."""
        self._shown = time.monotonic()
        done = epoch * self.updates + update
        text = f'epoch {epoch + 1}/{self.epochs}  {update}/{self.updates}  loss {loss:.4g}  lr {lr:.3g}  ' \
               f'{speed:.0f} images/s'
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
            return
        rate = (done - self.start * self.updates) / max(self._shown - self.began, 1e-9)
        left = (self.epochs * self.updates - done) / rate
        self.line(f'{text}  {timedelta(seconds=round(left))} left')

    def line(self, text: str) -> None:
        """Show a line that stays."""
        self._shown = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
            return
        self.stream.write(text + '\n')
        self.stream.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def summary_line(row: Mapping[str, Any], epochs: int) -> str:
    """One epoch in one line."""
    parts = [f'epoch {row["epoch"] + 1}/{epochs}', f'loss {row["train_loss"]:.4g}']
    if 'train_top1' in row:
        parts.append(f'train {row["train_top1"]:.2f} %')
    if 'eval_top1' in row:
        parts.append(f'validation {row["eval_top1"]:.2f} %')
    branches = [v for k, v in row.items() if k.startswith('train_branch_top1/')]
    gaps = [v for k, v in row.items() if k.startswith('train_branch_gap/')]
    if branches:
        parts.append(f'branches {sum(branches) / len(branches):.2f} %, KL to teacher {sum(gaps) / len(gaps):.3f}')
    return '  '.join([*parts, f'{row["images_per_second"]:.0f} images/s', f'{row["seconds"]:.1f} s'])
