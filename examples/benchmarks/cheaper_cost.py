"""SFTN's cheaper steps over plain training: one branch drawn anew in each step, branches that see half of the batch.

How steps are timed is said in step_cost.py. A step with one branch is the mean over the branches, in each round.

    python examples/benchmarks/cheaper_cost.py --json step_cost.json
"""
import argparse
import copy
import json
import statistics

import torch.nn.functional as F
from steps import Variant, images, keep_memory, machine, parse, race, spread, stored, wrapped

from sf_teacher import SFTN
from sf_teacher.analysis.inspection import inspect
from sf_teacher.methods._branches import sampled

WAYS = {'all branches': {}, 'one branch a step': {'sample_branch': True}, 'half of the batch': {'branch_share': 0.5},
        'one branch, half of the batch': {'sample_branch': True, 'branch_share': 0.5}}


def measure(pair, args):
    """A pair's rows, one for each way."""
    teacher, student = pair.split('/')
    tasks = {way: wrapped(teacher, [student], SFTN(**options), args) for way, options in WAYS.items()}
    plain = copy.deepcopy(tasks['all branches'].teacher)
    count = len(tasks['all branches'].branches.branches)
    variants = {'plain': Variant(lambda x, y: F.cross_entropy(plain(x), y), plain.parameters())}
    for way, task in tasks.items():
        one = Variant(lambda x, y, task=task: task(x, y)['loss'], task.parameters())
        variants |= {(way, i): one for i in range(count)} if task.method.sample_branch else {(way, 0): one}

    def prepare(name):
        if name != 'plain' and tasks[name[0]].method.sample_branch:
            progress = tasks[name[0]].progress
            progress.step = next(step for step in range(count) if sampled(step, count) == name[1])

    times = race(variants, *images(args), args, prepare)
    rows = []
    for way, options in WAYS.items():
        found = inspect(teacher, [student], method=SFTN(**options), num_classes=100,
                        input_size=(3, args.size, args.size))
        flops = found['step']['gflops_per_image'] / found['plain_step']['gflops_per_image']
        mean = [statistics.mean(each) for each in zip(*(t for name, t in times.items() if name[0] == way), strict=True)]
        step = spread(mean, times['plain'])
        rows.append({'pair': pair, 'way': way, 'size': args.size, 'batch_size': args.batch_size, 'rounds': args.rounds,
                     'plain_ms': round(1000 * statistics.median(times['plain']), 1), 'flop_ratio': round(flops, 4),
                     'step_ratio': step, 'excess': round(step[0] / flops, 4)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', nargs='*', default=['resnet50/resnet18', 'vit_small_patch16_224/resnet18'])
    args = parse(parser)
    keep_memory()
    args.warm = 1
    rows = [row for pair in args.pairs for row in measure(pair, args)]
    data = {**stored(args), 'cheaper': {'machine': machine(args.device), 'rows': rows}}      # its own machine
    args.json.write_text(json.dumps(data, indent=1) + '\n')


if __name__ == '__main__':
    main()
