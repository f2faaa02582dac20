"""What a training step costs with branches, over plain training: time and peak memory beside the limits.

A step is forward, loss, backward and SGD with momentum. The limit of its time is the ratio of the FLOPs that
`sf-teacher inspect` counts, that of its memory the ratio of the activations kept for the backward pass; excess = time
ratio / FLOP ratio. "By hand" is SFTN's step over that of a loop that has none of this package: timm's
`forward_intermediates`, nn.Sequential of convolution, batch norm and ReLU, the student's own layers behind the boundary
(checked to give the tail's logits), F.cross_entropy and F.kl_div. What that costs too is the layers' and not ours.

All variants of a pair take one step in turn, in one process; ratios are taken within a round. The median is reported,
with the 10th and 90th percentile. On the CPU the time is this process's own, of one thread, so that other processes
change it only through caches and memory; malloc keeps what is freed, as CUDA's allocator does (with `--system-malloc`
it does as the system has it: large tensors then come from the kernel anew in every step). On CUDA it is wall time
between synchronisations. Peak memory is weights, optimizer state and the most that was allocated during a step (CPU: of
PyTorch's allocator, as its profiler records). GTN's step is the mean over its pool (the student and POOL) in each
round, its limits the means of SFTN's; its peak is that of the student.

    python examples/benchmarks/step_cost.py --json step_cost.json                       # eager, all pairs and methods
    python examples/benchmarks/step_cost.py --json step_cost.json --compile --methods sftn teskd

docs/cost.md is made of the committed step_cost.json by `python docs/make_cost.py`.
"""
import argparse
import copy
import json
import os
import statistics

import torch
import torch.nn.functional as F
from by_hand import ByHand
from steps import Variant, images, keep_memory, parse, peak, race, spread, store, stored, take_path, wrapped

from sf_teacher.analysis.inspection import inspect
from sf_teacher.factory import create_model

PAIRS = ['resnet50/resnet18', 'resnet34/mobilenetv3_small_100', 'vit_small_patch16_224/resnet18',
         'convnext_tiny/convnext_atto', 'swin_tiny_patch4_window7_224/deit_tiny_patch16_224']
POOL = ['resnet10t', 'mobilenetv3_small_050']


def limits(teacher, students, method, args):
    """FLOPs and activations with branches over plain training; a pool's is the mean over its students."""
    groups = [[s] for s in students] if method == 'gtn' else [students]
    method = 'sftn' if method == 'gtn' else method
    found = [inspect(teacher, g, method=method, num_classes=100, input_size=(3, args.size, args.size)) for g in groups]
    return [round(statistics.mean(r['step'][k] / r['plain_step'][k] for r in found), 4)
            for k in ('gflops_per_image', 'activation_mb_per_image')]


def measure(pair, args, compiled):
    """A pair's rows, one for each method."""
    torch._dynamo.reset()
    teacher, student = pair.split('/')
    pool = [student, *POOL]
    made = {m: wrapped(teacher, {'sftn': [student], 'teskd': [], 'gtn': pool}[m], m, args) for m in args.methods}
    plain = copy.deepcopy(next(iter(made.values())).teacher)
    hand = None
    if 'sftn' in made and not compiled:
        own = create_model(student, 'student', 100, (3, args.size, args.size), {})
        hand = ByHand(made['sftn'], own.to(args.device))
    variants = {}
    if compiled:
        plain = torch.compile(plain)
        for task in made.values():
            task.compile()
    variants['plain'] = Variant(lambda x, y: F.cross_entropy(plain(x), y), plain.parameters())
    for method, task in made.items():
        one = Variant(lambda x, y, task=task: task(x, y)['loss'], task.parameters())
        variants |= {f'gtn {i}': one for i in range(len(pool))} if method == 'gtn' else {method: one}
    if hand:
        variants['by hand'] = Variant(hand.step, hand.parameters)

    def prepare(name):
        if name.startswith('gtn'):
            take_path(made['gtn'], int(name.split()[1]))

    x, y = images(args)
    times = race(variants, x, y, args, prepare)
    times['gtn'] = [statistics.mean(t) for t in zip(*(times[n] for n in times if n.startswith('gtn')), strict=True)]
    rows, peaks = [], {}
    for name in ('plain', *made):
        key = 'gtn 0' if name == 'gtn' else name
        prepare(key)
        peaks[name] = peak(variants[key], x, y, args.device)
    for method in made:
        flops, kept = limits(teacher, {'sftn': [student], 'teskd': [], 'gtn': pool}[method], method, args)
        step = spread(times[method], times['plain'])
        rows.append({
            'pair': pair, 'method': method, 'compiled': compiled, 'size': args.size, 'batch_size': args.batch_size,
            'malloc': 'system' if args.system_malloc else 'kept', 'rounds': args.rounds,
            'load': round(os.getloadavg()[1], 1),
            'plain_ms': round(1000 * statistics.median(times['plain']), 1), 'flop_ratio': flops, 'step_ratio': step,
            'excess': round(step[0] / flops, 4), 'activation_ratio': kept,
            'plain_peak_mib': round(peaks['plain'], 1), 'peak_ratio': round(peaks[method] / peaks['plain'], 4),
            'by_hand': spread(times['sftn'], times['by hand']) if hand and method == 'sftn' else None})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', nargs='*', default=PAIRS, help='teacher/student')
    parser.add_argument('--methods', nargs='+', default=['sftn', 'teskd', 'gtn'])
    parser.add_argument('--compile', action='store_true', help='measure compiled steps, not eager ones')
    parser.add_argument('--system-malloc', action='store_true', help='leave malloc as the system has it')
    args = parse(parser)
    if not args.system_malloc:
        keep_memory()
    args.warm = 2 if args.compile else 1        # the first compiled step leaves work behind
    data = stored(args)
    for pair in args.pairs:
        rows = measure(pair, args, args.compile)
        made = {key(r) for r in rows}
        data['rows'] = [r for r in data['rows'] if key(r) not in made] + rows
        store(args, data)


def key(row):
    return tuple(row[name] for name in ('pair', 'method', 'compiled', 'size', 'batch_size', 'malloc'))


if __name__ == '__main__':
    main()
