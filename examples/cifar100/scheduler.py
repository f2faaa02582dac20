"""Which run comes next: the first one, in the order of what is asked for, whose teacher is there."""
from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from plan import chains
from protocol import Protocol, Run
from runs import Result, needed
from worker import Worker, said_to

Read = Callable[..., Protocol]


@dataclass(frozen=True)
class Stage:
    """A part of a protocol.

    Args:
        protocol: The protocol.
        part: ``"select"``: the runs of which settings are chosen; ``"report"``: those that are reported.
        pairs: Only these.
        arms: Only these.
        seeds: Only these.
    """
    protocol: Protocol
    part: str = 'report'
    pairs: Sequence[str] | None = None
    arms: Sequence[str] | None = None
    seeds: Sequence[int] | None = None


def stages_of(path: Path, arms: Sequence[str] | None, seeds: Sequence[int] | None, read: Read) -> list[Stage]:
    """The stages of a protocol, or those that a queue lists: mappings of protocol, part, pairs, arms, seeds."""
    values = yaml.safe_load(path.read_text(encoding='utf-8'))
    if 'queue' not in values:
        protocol = read(path, arms, seeds)
        parts = ('select', 'report') if protocol.temperatures else ('report',)
        return [Stage(protocol, part) for part in parts]
    found = []
    for i, item in enumerate(values['queue']):
        protocol = read(path.parent / f'{item["protocol"]}.yaml')
        stage = Stage(protocol, **{k: v for k, v in item.items() if k != 'protocol'})
        unknown = (set(stage.arms or ()) - {'alone', *protocol.arms}) | (set(stage.pairs or ()) - set(protocol.pairs))
        if unknown or stage.part not in ('select', 'report'):
            raise SystemExit(f'{path.name}: item {i + 1}: {item["protocol"]} has no {", ".join(sorted(unknown))}'
                             if unknown else f'{path.name}: item {i + 1}: part must be select or report')
        found.append(stage)
    return found


class Results:
    """The JSON files, each read when it is new."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known = folder, {}        # type: Path, dict[tuple[Path, int], Result]

    def of(self, protocol: Protocol) -> dict[str, Result]:
        """By key, as they are now."""
        files = {(path, path.stat().st_mtime_ns) for path in (self.folder / protocol.results).glob('*.json')}
        for path, then in files - set(self.known):
            self.known[path, then] = json.loads(path.read_text())
        return {file[0].stem: self.known[file] for file in files}


def _there(key: str, work: Path) -> bool:
    return (work / key / 'teacher' / 'config.json').exists()


def ready(stages: Sequence[Stage], results: Results, work: Path, taken: set[str]) -> Iterator[
        tuple[str, list[tuple[Run, bool]]]]:
    """Chains that can start: the folder of their results, and their runs, each with whether it is done again.

    Args:
        stages: In order of importance.
        results: What is done.
        work: Folder of the teachers.
        taken: Keys of runs that are being done or that failed: chains with one of them, or in need of one, wait. So
            does the report of an arm of which an earlier stage still selects.
    """
    selecting: set[tuple[str, str, str]] = set()
    for stage in stages:
        protocol = stage.protocol
        done = results.of(protocol)
        planned = chains(protocol, done, stage.part, stage.pairs, stage.arms, stage.seeds)
        asked = {key for chain in planned for run in chain if run.key not in done for key in needed(run)}
        for _ in range(2):      # a teacher that is gone may start from another one that is gone
            gone = {run.key for chain in planned for run in chain
                    if run.key in asked and run.key in done and not _there(run.key, work)}
            asked |= {key for chain in planned for run in chain if run.key in gone for key in needed(run)}
        for chain in planned:
            todo = [(run, run.key in gone) for run in chain if run.key not in done or run.key in gone]
            own = {run.key for run, _ in todo}
            wanted = {key for run, _ in todo for key in needed(run)} - own
            arms = {(protocol.results, run.pair, run.arm) for run, _ in todo}
            if stage.part == 'select':
                selecting |= arms
            elif selecting & arms:
                continue
            if todo and not own & taken and not wanted & taken and all(_there(key, work) for key in wanted):
                yield protocol.results, todo


def schedule(
        stages: Sequence[Stage],
        images: Callable[[int], Any],
        work: Path,
        results: Path,
        device: str,
        jobs: int,
        threads: int,
        dry_run: bool = False,
) -> int:
    """Do all stages; the exit status, 1 where a run failed."""
    known, running, failed = Results(results), {}, set()      # type: Results, dict[Any, set[str]], set[str]
    if dry_run:
        for folder, chain in ready(stages, known, work, set()):
            print(folder, *(f'{run.kind} [{run.arm}] seed {run.seed}' for run, _ in chain), sep='\n    ')
        return 0
    start = (images, work, results, device, threads)
    with multiprocessing.Pool(jobs, _start, start) as pool:
        while True:
            for job in [job for job in running if job.ready()]:
                keys = running.pop(job)
                if error := job.get():
                    print(error, flush=True)
                    failed |= keys
            while len(running) < jobs:
                taken = failed.union(*running.values())
                found = next(ready(stages, known, work, taken), None)
                if found is None:
                    break
                folder, chain = found
                running[pool.apply_async(_chain, (folder, chain))] = {run.key for run, _ in chain}
            if not running:
                return int(bool(failed))
            while not any(job.ready() for job in running):
                time.sleep(0.1)


_worker: Worker


def _start(images: Callable[[int], Any], work: Path, results: Path, device: str, threads: int) -> None:
    global _worker
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    _worker = Worker(functools.cache(images), work, results, device)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when the one that started it was killed: it would hold the folder of its run."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _chain(folder: str, chain: list[tuple[Run, bool]]) -> str | None:
    """Do the runs of a chain; what went wrong, if anything did."""
    try:
        batches = [said_to(run) for run, _ in chain if run.kind == 'student']
        for run, again in chain:
            _worker.run(run, folder, again, remember=batches.count(said_to(run)) > 1)
        for teacher in {key for run, _ in chain if run.kind == 'student' for key in needed(run)}:
            for path in (_worker.work / teacher).glob('logits-*.pt'):
                path.unlink()
        return None
    except Exception:
        return f'{traceback.format_exc()}failed: {", ".join(f"{run.kind} [{run.arm}] {run.key}" for run, _ in chain)}'
