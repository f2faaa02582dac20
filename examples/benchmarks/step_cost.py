"""What a training step costs with branches, over plain training: time and peak memory beside the limits.

A step is forward, loss, backward and SGD with momentum. The limit of its time is the ratio of the FLOPs that
`sf-teacher inspect` counts, that of its memory the ratio of the activations kept for the backward pass; excess = time
ratio / FLOP ratio. "By hand" is SFTN's step over that of a loop that has none of this package: timm's
`forward_intermediates`, nn.Sequential of convolution, batch norm and ReLU, the student's own layers behind the boundary
(checked to give the tail's logits), F.cross_entropy and F.kl_div. What that costs too is the layers' and not ours.

All variants of a pair take one step in turn, in one process; ratios are taken within a round. The median is reported,
with the 10th and 90th percentile. On the CPU the time is this process's own, of one thread, so that other processes
change it only through caches and memory; on CUDA it is wall time between synchronisations. Peak memory is weights,
optimizer state and the most that was allocated during a step (CPU: of PyTorch's allocator, as its profiler records).
GTN's step is the mean over its pool (the student and POOL) in each round, its limits the means of SFTN's; its peak is
that of the student.

    python examples/benchmarks/step_cost.py --json step_cost.json                       # eager, all pairs and methods
    python examples/benchmarks/step_cost.py --json step_cost.json --compile --methods sftn teskd
    python examples/benchmarks/step_cost.py --json step_cost.json --pool                # GTN of 8 against 8 of SFTN

docs/cost.md is made of the committed step_cost.json by `python docs/make_cost.py`.
"""
import argparse
import copy
import json
import os
import platform
import statistics
import time
from pathlib import Path

PAIRS = ['resnet50/resnet18', 'resnet34/mobilenetv3_small_100', 'vit_small_patch16_224/resnet18',
         'convnext_tiny/convnext_atto', 'swin_tiny_patch4_window7_224/deit_tiny_patch16_224']
POOL = ['resnet10t', 'mobilenetv3_small_050']
EIGHT = ['resnet10t', 'resnet14t', 'resnet18', 'resnet34', 'mobilenetv3_small_050', 'mobilenetv3_small_100',
         'convnext_atto', 'convnext_femto']


class ByHand:
    """SFTN's step from the layers alone; the weights are copies of a task's."""

    def __init__(self, task, student):
        from torch import nn
        task = copy.deepcopy(task)
        self.teacher, self.method, self.paths = task.teacher, task.method, []
        self.indices = [b.index for b in task.branches.boundaries]
        self.parameters = list(task.teacher.parameters())
        for branch, source in zip(task.branches.branches, task.branches.sources, strict=True):
            part, own = branch.transform.parts[0], copy.deepcopy(student)
            own.load_state_dict(branch.tail.model.state_dict(), strict=False)
            resize = [nn.AdaptiveAvgPool2d(part.layout.size) if part.layout.size <= part.in_size else
                      nn.Upsample(part.layout.size, mode='bilinear')] * part.resize
            transform = nn.Sequential(*resize, part.proj, part.norm, part.act)
            self.paths.append((transform, part, behind(own, branch), source))
            self.parameters += [*part.parameters(), *(own.get_parameter(n) for n, _ in
                                                      branch.tail.model.named_parameters())]

    def step(self, x, y):
        import torch
        import torch.nn.functional as F
        final, maps = self.teacher.forward_intermediates(x, indices=self.indices)
        teacher = self.teacher.forward_head(final)
        ce, kl, p = 0., 0., F.log_softmax(teacher.detach() if self.method.detach_teacher_logits else teacher, dim=-1)
        for transform, part, tail, source in self.paths:
            z = transform(maps[source])
            if part.layout.kind == 'NHWC':
                z = z.permute(0, 2, 3, 1).contiguous()
            elif part.layout.kind == 'NLC':
                prefix = part.prefix(maps[source].mean((2, 3))).unflatten(1, (part.layout.prefix, -1))
                z = torch.cat([prefix, z.flatten(2).transpose(1, 2)], dim=1)
            z = tail(z)
            ce = ce + F.cross_entropy(z, y)
            kl = kl + F.kl_div(F.log_softmax(z, dim=-1), p, reduction='batchmean', log_target=True)
        return F.cross_entropy(teacher, y) + (self.method.ce_weight * ce + self.method.kl_weight * kl) / len(self.paths)


def behind(student, branch):
    """The student's layers behind a boundary as a plain sequence, checked against the tail."""
    import torch
    from torch import nn
    names, owner, levels = branch.tail.boundary[-1].split('.'), student, []
    for name in names:
        children = dict(owner.named_children())
        levels.insert(0, list(children.values())[list(children).index(name) + 1:])
        owner = children[name]
    layers = [layer for level in levels[:-1] for layer in level]
    with torch.no_grad():
        like = branch.eval().transform(torch.randn(2, branch.transform.parts[0].in_channels, *branch.source.size))[0]
        expected = branch.tail(like)
        student.eval()
        for count in range(len(levels[-1]) + 1):    # the others belong to the head
            body = nn.Sequential(*layers, *levels[-1][:count])
            try:
                found = student.forward_head(body(like))
            except Exception:
                continue
            if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                branch.train()
                student.train()
                return lambda x: student.forward_head(body(x))
    raise SystemExit(f'the tail of {type(student).__name__} after {names} is no plain sequence of its layers')


class Variant:
    """One way to train: its step and its optimizer."""

    def __init__(self, loss, parameters):
        import torch
        self.loss, self.optimizer = loss, torch.optim.SGD(list(parameters), lr=1e-4, momentum=0.9)

    def step(self, x, y):
        self.loss(x, y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def wrapped(teacher, students, method, args):
    import torch

    import sf_teacher
    torch.manual_seed(0)
    task = sf_teacher.wrap(teacher, students, method=method, num_classes=100, input_size=(3, args.size, args.size))
    return task.to(args.device).train()


def take_path(task, member):
    """Let the pool's next step be this student's."""
    while task.branches.path() != member:
        task.branches.step += 1


def seconds(variant, x, y, device):
    import torch
    clock = time.process_time
    if device == 'cuda':
        torch.cuda.synchronize()
        clock = time.perf_counter
    began = clock()
    variant.step(x, y)
    if device == 'cuda':
        torch.cuda.synchronize()
    return clock() - began


def peak(variant, x, y, device):
    """Weights, optimizer state and the highest sum of live allocations in a step, MiB."""
    import torch
    fixed = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for group in variant.optimizer.param_groups
             for p in group['params'] for t in (p, *variant.optimizer.state[p].values()) if isinstance(t, torch.Tensor)}
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        variant.step(x, y)
        highest = torch.cuda.max_memory_allocated() - before
    else:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            variant.step(x, y)
        events = profile.profiler.kineto_results.events()
        live = highest = 0
        for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]'):
            live += size
            highest = max(highest, live)
    return (sum(fixed.values()) + highest) / 2 ** 20


def race(variants, x, y, args, prepare=None):
    """Seconds of each variant in each round; one round warms up, two after compilation, which leaves work behind."""
    times = {name: [] for name in variants}
    warm = 2 if args.compile else 1
    for round_ in range(args.rounds + warm):
        order = list(variants)[round_ % len(variants):] + list(variants)[:round_ % len(variants)]
        for name in order:
            if prepare:
                prepare(name)
            taken = seconds(variants[name], x, y, args.device)
            if round_ >= warm:
                times[name].append(taken)
    return times


def spread(above, below):
    """Median, 10th and 90th percentile of the ratios of two series."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    cuts = statistics.quantiles(ratios, n=10, method='inclusive')
    return [round(v, 4) for v in (statistics.median(ratios), cuts[0], cuts[-1])]


def limits(teacher, students, method, args):
    """FLOPs and activations with branches over plain training; a pool's is the mean over its students."""
    from sf_teacher.inspection import inspect
    groups = [[s] for s in students] if method == 'gtn' else [students]
    method = 'sftn' if method == 'gtn' else method
    found = [inspect(teacher, g, method=method, num_classes=100, input_size=(3, args.size, args.size)) for g in groups]
    return [round(statistics.mean(r['step'][k] / r['plain_step'][k] for r in found), 4)
            for k in ('gflops_per_image', 'activation_mb_per_image')]


def measure(pair, args, compiled):
    """A pair's rows, one for each method."""
    import torch
    import torch.nn.functional as F

    import sf_teacher
    torch._dynamo.reset()
    teacher, student = pair.split('/')
    pool = [student, *POOL]
    made = {m: wrapped(teacher, {'sftn': [student], 'teskd': [], 'gtn': pool}[m], m, args) for m in args.methods}
    plain = copy.deepcopy(next(iter(made.values())).teacher)
    hand = None
    if 'sftn' in made and not compiled:
        own = sf_teacher.build.create_model(student, 'student', 100, (3, args.size, args.size), {})
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

    torch.manual_seed(1)
    x = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    y = torch.arange(args.batch_size, device=args.device) % 100
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
            'rounds': args.rounds, 'load': round(os.getloadavg()[1], 1),
            'plain_ms': round(1000 * statistics.median(times['plain']), 1), 'flop_ratio': flops, 'step_ratio': step,
            'excess': round(step[0] / flops, 4), 'activation_ratio': kept,
            'plain_peak_mib': round(peaks['plain'], 1), 'peak_ratio': round(peaks[method] / peaks['plain'], 4),
            'by_hand': spread(times['sftn'], times['by hand']) if hand and method == 'sftn' else None})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_pool(args):
    """One GTN training with a pool of eight against eight SFTN trainings of as many steps."""
    import torch
    torch.manual_seed(1)
    teacher = PAIRS[0].split('/')[0]
    x = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    y = torch.arange(args.batch_size, device=args.device) % 100
    pool = wrapped(teacher, EIGHT, 'gtn', args)
    gtn = Variant(lambda x, y: pool(x, y)['loss'], pool.parameters())
    rounds, highest = {'gtn': [], 'sftn': []}, 0.
    for member, student in enumerate(EIGHT):
        single = wrapped(teacher, [student], 'sftn', args)
        sftn = Variant(lambda x, y, task=single: task(x, y)['loss'], single.parameters())
        times = race({'gtn': gtn, 'sftn': sftn}, x, y, args, lambda name, m=member: take_path(pool, m))
        for name, series in rounds.items():
            series.append(times[name])
        highest = max(highest, peak(sftn, x, y, args.device))
        print(student, spread(times['gtn'], times['sftn']), flush=True)
    one, eight = ([sum(r) for r in zip(*rounds[name], strict=True)] for name in ('gtn', 'sftn'))
    take_path(pool, EIGHT.index('resnet34'))
    return {'teacher': teacher, 'pool': EIGHT, 'size': args.size, 'batch_size': args.batch_size, 'rounds': args.rounds,
            'gtn_over_eight_sftn': spread([t / len(EIGHT) for t in one], eight),
            'gtn_step_over_sftn_step': spread(one, eight),
            'peak_over_largest_sftn': round(peak(gtn, x, y, args.device) / highest, 4)}


def machine(device):
    import timm
    import torch
    name = platform.processor() or 'CPU'
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    elif Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        name = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), name)
    return {'device': name, 'cores': os.cpu_count(), 'threads': torch.get_num_threads(),
            'torch': str(torch.__version__), 'timm': timm.__version__}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', nargs='*', default=PAIRS, help='teacher/student')
    parser.add_argument('--methods', nargs='+', default=['sftn', 'teskd', 'gtn'])
    parser.add_argument('--compile', action='store_true', help='measure compiled steps, not eager ones')
    parser.add_argument('--pool', action='store_true', help='measure GTN with a pool of 8 only')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--device', help='default: cuda where there is one')
    parser.add_argument('--size', type=int, help='default: 128, on cuda 224')
    parser.add_argument('--batch-size', type=int, help='default: 16, on cuda 128')
    parser.add_argument('--json', type=Path, default=Path('step_cost.json'), help='results are added to this file')
    args = parser.parse_args()
    data = json.loads(args.json.read_text()) if args.json.exists() else {'rows': []}
    import torch
    torch.set_num_threads(1)
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    args.size = args.size or (224 if args.device == 'cuda' else 128)
    args.batch_size = args.batch_size or (128 if args.device == 'cuda' else 16)
    data['machine'] = machine(args.device)

    def save():
        args.json.write_text(json.dumps(data, indent=1) + '\n')

    if args.pool:
        data['pool'] = measure_pool(args)
        return save()
    for pair in args.pairs:
        rows = measure(pair, args, args.compile)
        keys = {(r['pair'], r['method'], r['compiled']) for r in rows}
        data['rows'] = [r for r in data['rows'] if (r['pair'], r['method'], r['compiled']) not in keys] + rows
        save()


if __name__ == '__main__':
    main()
