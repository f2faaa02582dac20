"""Where the time of a step goes: what each kind of operator adds to the excess over the FLOP ratio.

Plain training and training with branches are profiled in turn, operator by operator (time without what they call).
Kinds: products (convolutions, matrix products, attention), normalisation, the optimizer, and the rest (element by
element, copies, pooling, reductions). If every kind took as much longer as there are more FLOPs, the step ratio would
be the FLOP ratio; what a kind adds to the difference is (its time with branches - FLOP ratio x its time in plain
training) / the plain step. Beside it are the GFLOP/s of the products. Times are the wall's: run it on an idle machine.
GTN's step is the mean over its pool. A compiled step has normalisation, and products that are few, in its fused loops,
which are of the rest.

    python examples/benchmarks/step_profile.py --json examples/benchmarks/step_cost.json
"""
import argparse
import copy
import json
import statistics

import torch
import torch.nn.functional as F
from step_cost import PAIRS, POOL, limits
from steps import Variant, images, keep_memory, machine, parse, stored, take_path, wrapped
from torch.profiler import ProfilerActivity, profile

from sf_teacher.cost import flop_counter

KINDS = {'products': ('conv', 'addmm', 'bmm', '::mm', 'attention', 'linear'),
         'normalisation': ('batch_norm', 'layer_norm', 'group_norm'), 'optimizer': ('_foreach', 'optimizer')}
ROWS = [(0, 'sftn'), (1, 'sftn'), (1, 'teskd'), (1, 'gtn'), (2, 'sftn'), (2, 'gtn'), (3, 'sftn'), (3, 'teskd'),
         (4, 'teskd')]
COMPILED = [(0, 'gtn'), (1, 'sftn'), (1, 'gtn'), (4, 'teskd')]
ASKED = [f'{PAIRS[i]}:{method}' for i, method in ROWS] + [f'{PAIRS[i]}:{method}:compiled' for i, method in COMPILED]


def kind_of(name):
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), 'rest')


def times(step):
    """Milliseconds of a step by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    found = dict.fromkeys([*KINDS, 'rest'], 0.)
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1000
    return found


def mean(found):
    return {kind: statistics.mean(each[kind] for each in found) for kind in found[0]}


def measure(pair, method, compiled, args):
    torch._dynamo.reset()
    teacher, student = pair.split('/')
    students = {'sftn': [student], 'teskd': [], 'gtn': [student, *POOL]}[method]
    task = wrapped(teacher, students, method, args)
    plain = copy.deepcopy(task.teacher)
    ratio = limits(teacher, students, method, args)[0]
    x, y = images(args)
    done = {}
    for name, model in (('plain', plain), ('branched', task)):       # before anything is compiled
        with flop_counter() as counter:
            members = range(len(students)) if method == 'gtn' and name == 'branched' else [0]
            for member in members:
                if len(members) > 1:
                    take_path(task, member)
                loss = model(x, y)['loss'] if name == 'branched' else F.cross_entropy(model(x), y)
                loss.backward()
        done[name] = counter.get_total_flops() / len(members)
    if compiled:
        plain = torch.compile(plain)
        task.compile()
    base = Variant(lambda x, y: F.cross_entropy(plain(x), y), plain.parameters())
    branched = Variant(lambda x, y: task(x, y)['loss'], task.parameters())

    def path(member):
        if method == 'gtn':
            take_path(task, member)
        return times(lambda: branched.step(x, y))

    def once():
        return {'plain': times(lambda: base.step(x, y)),
                'branched': mean([path(i) for i in range(len(students) if method == 'gtn' else 1)])}

    for _ in range(1 + compiled):       # to warm up
        once()
    rounds = [once() for _ in range(args.rounds)]
    known = {name: {kind: statistics.median(r[name][kind] for r in rounds) for kind in rounds[0][name]}
             for name in rounds[0]}
    whole = {name: sum(kinds.values()) for name, kinds in known.items()}
    return {
        'pair': pair, 'method': method, 'compiled': compiled, 'size': args.size, 'batch_size': args.batch_size,
        'rounds': args.rounds, 'flop_ratio': ratio, 'step_ratio': round(whole['branched'] / whole['plain'], 4),
        'added': {kind: round((known['branched'][kind] - ratio * known['plain'][kind]) / whole['plain'], 4)
                  for kind in known['plain']},
        'gflops': [round(done['plain'] / known['plain']['products'] / 1e6, 1),
                   round((done['branched'] - done['plain'])
                         / (known['branched']['products'] - known['plain']['products']) / 1e6, 1)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', nargs='*', default=ASKED,
                        help='teacher/student:method, and :compiled behind it')
    args = parse(parser)
    keep_memory()
    for text in args.pairs:
        pair, method, *compiled = text.split(':')
        row = measure(pair, method, bool(compiled), args)
        print(json.dumps(row), flush=True)
        data, part = stored(args), 'profile_compiled' if compiled else 'profile'
        known = data.get(part, {}).get('rows', [])
        rows = [r for r in known if any(r[name] != row[name] for name in ('pair', 'method'))] + [row]
        data[part] = {'machine': machine(args.device), 'rows': rows}     # its own machine
        args.json.write_text(json.dumps(data, indent=1) + '\n')


if __name__ == '__main__':
    main()
