"""Training steps side by side: what step_cost.py, pool_cost.py and simplifier_cost.py share."""
import ctypes
import json
import os
import platform
import statistics
import time
from pathlib import Path

import timm
import torch

import sf_teacher


class Variant:
    """One way to train: its step and its optimizer."""

    def __init__(self, loss, parameters):
        self.loss, self.optimizer = loss, torch.optim.SGD(list(parameters), lr=1e-4, momentum=0.9)

    def step(self, x, y):
        self.loss(x, y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def wrapped(teacher, students, method, args):
    torch.manual_seed(0)
    task = sf_teacher.wrap(teacher, students, method=method, num_classes=100, input_size=(3, args.size, args.size))
    return task.to(args.device).train()


def take_path(task, member):
    """Let the pool's next step be this student's."""
    while task.branches.path() != member:
        task.branches.step += 1


def seconds(variant, x, y, device):
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
    """Seconds of each variant in each round; `args.warm` rounds come before."""
    times = {name: [] for name in variants}
    for round_ in range(args.rounds + args.warm):
        order = list(variants)[round_ % len(variants):] + list(variants)[:round_ % len(variants)]
        for name in order:
            if prepare:
                prepare(name)
            taken = seconds(variants[name], x, y, args.device)
            if round_ >= args.warm:
                times[name].append(taken)
    return times


def spread(above, below):
    """Median, 10th and 90th percentile of the ratios of two series."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    cuts = statistics.quantiles(ratios, n=10, method='inclusive')
    return [round(v, 4) for v in (statistics.median(ratios), cuts[0], cuts[-1])]


def machine(device):
    name = platform.processor() or 'CPU'
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    elif Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        name = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), name)
    return {'device': name, 'cores': os.cpu_count(), 'threads': torch.get_num_threads(),
            'torch': str(torch.__version__), 'timm': timm.__version__}


def keep_memory():
    """Let glibc's malloc keep freed memory, as CUDA's allocator does.

    By default it returns large tensors to the kernel, so that each step is given its memory anew and page by page; that
    can take half of a layer's time and has nothing to do with what is computed.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)       # only glibc has it
    if mallopt:
        mallopt(-4, 0)      # M_MMAP_MAX: nothing by mmap
        mallopt(-1, -1)     # M_TRIM_THRESHOLD: return nothing


def parse(parser):
    """Read the command line, with what all of these scripts take; one thread from here on."""
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--size', type=int, help='default: 128, on cuda 224')
    parser.add_argument('--batch-size', type=int, help='default: 16, on cuda 128')
    parser.add_argument('--json', type=Path, default=Path('step_cost.json'), help='results are added to this file')
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.size = args.size or (224 if args.device == 'cuda' else 128)
    args.batch_size = args.batch_size or (128 if args.device == 'cuda' else 16)
    return args


def images(args):
    """A batch."""
    torch.manual_seed(1)
    x = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    return x, torch.arange(args.batch_size, device=args.device) % 100


def stored(args):
    """What the file holds already."""
    return json.loads(args.json.read_text()) if args.json.exists() else {'rows': []}


def store(args, data):
    args.json.write_text(json.dumps({**data, 'machine': machine(args.device)}, indent=1) + '\n')
