"""Where the time of a step goes: what each kind of operator adds to the excess over the FLOP ratio.

Plain training and training with branches are profiled in turn, operator by operator (time without what they call).
Kinds: products (convolutions, matrix products, attention), normalisation, the optimizer, and the rest (element by
element, copies, pooling, reductions). If every kind took as much longer as there are more FLOPs, the step ratio would
be the FLOP ratio; what a kind adds to the difference is (its time with branches - FLOP ratio x its time in plain
training) / the plain step. Beside it are the GFLOP/s of the products. Times are the wall's: run it on an idle machine.

    python examples/benchmarks/step_profile.py --json examples/benchmarks/step_cost.json
"""
import argparse
import copy
import json
import statistics

import torch.nn.functional as F
from step_cost import PAIRS, POOL, limits
from steps import Variant, images, keep_memory, machine, parse, stored, take_path, wrapped
from torch.profiler import ProfilerActivity, profile

from sf_teacher.training.cost import flop_counter

KINDS = {'products': ('conv', 'addmm', 'bmm', '::mm', 'attention', 'linear'),
         'normalisation': ('batch_norm', 'layer_norm', 'group_norm'), 'optimizer': ('_foreach', 'optimizer')}
ASKED = [(PAIRS[2], 'sftn'), (PAIRS[3], 'sftn'), (PAIRS[3], 'teskd'), (PAIRS[1], 'teskd'), (PAIRS[4], 'teskd'),
         (PAIRS[0], 'sftn'), (PAIRS[1], 'sftn')]


def kind_of(name):
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), 'rest')


def times(variant, x, y):
    """Milliseconds of a step by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        variant.step(x, y)
    found = dict.fromkeys([*KINDS, 'rest'], 0.)
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1000
    return found


def flops(variant, x, y):
    with flop_counter() as counter:
        variant.step(x, y)
    return counter.get_total_flops()


def measure(pair, method, args):
    teacher, student = pair.split('/')
    students = {'sftn': [student], 'teskd': [], 'gtn': [student, *POOL]}[method]
    task = wrapped(teacher, students, method, args)
    plain = copy.deepcopy(task.teacher)
    variants = [Variant(lambda x, y: F.cross_entropy(plain(x), y), plain.parameters()),
                Variant(lambda x, y: task(x, y)['loss'], task.parameters())]
    x, y = images(args)
    ratio = limits(teacher, students, method, args)[0]
    members = range(len(students)) if method == 'gtn' else [0]
    rounds = {name: [] for name in ('plain', 'branched')}
    for round_ in range(args.rounds + 1):
        of_members = []
        for member in members:
            if method == 'gtn':
                take_path(task, member)
            of_members.append(times(variants[1], x, y))
        pair_of = {'plain': times(variants[0], x, y),
                   'branched': {k: statistics.mean(t[k] for t in of_members) for k in of_members[0]}}
        for name in rounds if round_ else ():       # the first is to warm up
            rounds[name].append(pair_of[name])
    known = {name: {k: statistics.median(t[k] for t in series) for k in series[0]} for name, series in rounds.items()}
    whole = {name: sum(kinds.values()) for name, kinds in known.items()}
    done = [flops(variants[0], x, y)]
    counted = []
    for member in members:
        if method == 'gtn':
            take_path(task, member)
        counted.append(flops(variants[1], x, y))
    done.append(statistics.mean(counted))
    return {
        'pair': pair, 'method': method, 'size': args.size, 'batch_size': args.batch_size, 'rounds': args.rounds,
        'flop_ratio': ratio, 'step_ratio': round(whole['branched'] / whole['plain'], 4),
        'added': {k: round((known['branched'][k] - ratio * known['plain'][k]) / whole['plain'], 4)
                  for k in known['plain']},
        'plain_share': {k: round(known['plain'][k] / whole['plain'], 4) for k in known['plain']},
        'gflops': [round(done[0] / known['plain']['products'] / 1e6, 1),
                   round((done[1] - done[0]) / (known['branched']['products'] - known['plain']['products']) / 1e6, 1)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', nargs='*', default=[f'{pair}:{method}' for pair, method in ASKED],
                        help='teacher/student:method')
    args = parse(parser)
    keep_memory()
    rows = []
    for text in args.pairs:
        rows.append(measure(*text.split(':'), args))
        print(json.dumps(rows[-1]), flush=True)
        data = {**stored(args), 'profile': {'machine': machine(args.device), 'rows': rows}}     # its own machine
        args.json.write_text(json.dumps(data, indent=1) + '\n')


if __name__ == '__main__':
    main()
