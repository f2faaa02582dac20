"""What the loop costs over the loop that anybody would write: step times, interleaved, medians.

The bare loop is `task(x, y)["loss"].backward(); optimizer.step(); optimizer.zero_grad()` over the same batches. Both
run one epoch in turn, several times; the first round of each is not counted. Prints one JSON object. On the CPU it is
the process's own time that counts, so that other processes on the machine do not.

    python examples/benchmarks/loop_overhead.py --teacher resnet18 --student resnet10t --size 32 --batch-size 64
"""
from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
from timm.optim import create_optimizer_v2

import sf_teacher
from sf_teacher.data.in_memory import InMemoryLoader
from sf_teacher.training import TrainConfig
from sf_teacher.training.interruption import Stop, World
from sf_teacher.training.steps import Steps


def bare_epoch(task: Any, optimizer: torch.optim.Optimizer, loader: InMemoryLoader) -> None:
    task.train()
    for images, target in loader:
        task(images, target)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--teacher', default='resnet18')
    parser.add_argument('--student', default='resnet10t')
    parser.add_argument('--size', type=int, default=32)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--steps', type=int, default=10, help='batches in an epoch')
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()

    count = args.steps * args.batch_size
    images, labels = torch.randint(256, (count, 3, args.size, args.size), dtype=torch.uint8), torch.arange(count) % 100
    loader = InMemoryLoader(images, labels, args.batch_size, [0.5] * 3, [0.25] * 3, is_training=True,
                            device=args.device)
    config = TrainConfig(lr=0.001, epochs=1000, sched='none', log_interval=10 ** 9)

    def task() -> Any:
        torch.manual_seed(0)
        return sf_teacher.wrap(args.teacher, args.student, num_classes=100,
                               input_size=(3, args.size, args.size)).to(args.device)

    plain, ours = task(), task()
    optimizer = create_optimizer_v2(plain.get_trainable_module(), 'sgd', config.lr, config.weight_decay)
    steps = Steps(ours, loader, config, World(), Stop())
    steps.wrap()
    clock = time.perf_counter if args.device == 'cuda' else time.process_time
    times: dict[str, list[float]] = {'bare': [], 'loop': []}
    for round_ in range(args.rounds + 1):
        order = ['bare', 'loop'] if round_ % 2 else ['loop', 'bare']
        for name in order:
            loader.set_epoch(round_)
            if args.device == 'cuda':
                torch.cuda.synchronize()
            began = clock()
            if name == 'bare':
                bare_epoch(plain, optimizer, loader)
            else:
                steps.train_epoch(round_, None)
            if args.device == 'cuda':
                torch.cuda.synchronize()
            if round_:
                times[name].append((clock() - began) / args.steps * 1000)
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = [b / a for a, b in zip(times['bare'], times['loop'], strict=True)]
    print(json.dumps({
        'teacher': args.teacher, 'student': args.student, 'input': args.size, 'batch_size': args.batch_size,
        'device': torch.cuda.get_device_name() if args.device == 'cuda' else platform.processor() or 'cpu',
        'threads': torch.get_num_threads(), 'torch': str(torch.__version__), 'rounds': args.rounds,
        'bare_ms_a_step': round(median['bare'], 3), 'loop_ms_a_step': round(median['loop'], 3),
        'overhead_percent': round((median['loop'] / median['bare'] - 1) * 100, 2),
        'paired_overhead_percent': round((statistics.median(ratios) - 1) * 100, 2),
        'quartiles_percent': [round((q - 1) * 100, 2) for q in statistics.quantiles(ratios, n=4)[::2]],
    }, indent=1))


if __name__ == '__main__':
    main()
