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
from step_cost import PAIRS, limits
from steps import Variant, images, keep_memory, machine, parse, stored, wrapped
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
    students = {'sftn': [student], 'teskd': []}[method]
    task = wrapped(teacher, students, method, args)
    plain = copy.deepcopy(task.teacher)
    variants = {'plain': Variant(lambda x, y: F.cross_entropy(plain(x), y), plain.parameters()),
                'branched': Variant(lambda x, y: task(x, y)['loss'], task.parameters())}
    x, y = images(args)
    ratio = limits(teacher, students, method, args)[0]
    done = {name: flops(variant, x, y) for name, variant in variants.items()}      # the first steps, to warm up
    rounds = [{name: times(variant, x, y) for name, variant in variants.items()} for _ in range(args.rounds)]
    known = {name: {kind: statistics.median(r[name][kind] for r in rounds) for kind in rounds[0][name]}
             for name in variants}
    whole = {name: sum(kinds.values()) for name, kinds in known.items()}
    return {
        'pair': pair, 'method': method, 'size': args.size, 'batch_size': args.batch_size, 'rounds': args.rounds,
        'flop_ratio': ratio, 'step_ratio': round(whole['branched'] / whole['plain'], 4),
        'added': {kind: round((known['branched'][kind] - ratio * known['plain'][kind]) / whole['plain'], 4)
                  for kind in known['plain']},
        'gflops': [round(done['plain'] / known['plain']['products'] / 1e6, 1),
                   round((done['branched'] - done['plain'])
                         / (known['branched']['products'] - known['plain']['products']) / 1e6, 1)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', nargs='*', default=[f'{pair}:{method}' for pair, method in ASKED],
                        help='teacher/student:method, of sftn and teskd')
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
