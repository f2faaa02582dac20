"""Student-friendly KD's step over plain distillation's: what the simplifier costs while the student trains.

It has no branches and trains no teacher, so its baseline is timm's `LogitDistillationTask` with the same frozen teacher
and student. How steps are timed, and peak memory, are those of step_cost.py.

    python examples/benchmarks/simplifier_cost.py --json step_cost.json
"""
import argparse
import copy
import json
import statistics

import torch
from step_cost import PAIRS
from steps import Variant, images, keep_memory, parse, peak, race, spread, store, stored
from timm.task import LogitDistillationTask

from sf_teacher import StudentFriendlyKDTask
from sf_teacher.cost import flop_counter
from sf_teacher.factory import create_model


def measure(pair, args):
    """A pair's row."""
    size = (3, args.size, args.size)
    torch.manual_seed(0)
    roles = zip(pair.split('/'), ('teacher', 'student'), strict=True)
    teacher, student = (create_model(name, role, 100, size, {}).to(args.device) for name, role in roles)
    variants, flops = {}, {}
    x, y = images(args)
    for name, task_type in (('plain', LogitDistillationTask), ('simplifier', StudentFriendlyKDTask)):
        task = task_type(copy.deepcopy(student), teacher, criterion=torch.nn.CrossEntropyLoss(), temperature=4.,
                         device=args.device, verbose=False).train()
        variants[name] = Variant(lambda x, y, task=task: task(x, y)['loss'], task.trainable_module.parameters())
        with flop_counter() as counter:
            variants[name].step(x, y)
        flops[name] = counter.get_total_flops()
    times = race(variants, x, y, args)
    peaks = {name: peak(variant, x, y, args.device) for name, variant in variants.items()}
    step, ratio = spread(times['simplifier'], times['plain']), round(flops['simplifier'] / flops['plain'], 5)
    row = {'pair': pair, 'size': args.size, 'batch_size': args.batch_size, 'rounds': args.rounds,
           'plain_ms': round(1000 * statistics.median(times['plain']), 1), 'flop_ratio': ratio, 'step_ratio': step,
           'excess': round(step[0] / ratio, 4), 'peak_ratio': round(peaks['simplifier'] / peaks['plain'], 4)}
    print(json.dumps(row), flush=True)
    return row


def main():
    args = parse(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    keep_memory()
    args.warm = 1
    store(args, {**stored(args), 'simplifier': [measure(pair, args) for pair in PAIRS]})


if __name__ == '__main__':
    main()
