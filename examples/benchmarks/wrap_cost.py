"""What importing and wrapping cost: against building both models, and for the largest families.

    python examples/benchmarks/wrap_cost.py             # import and resnet50/resnet18 at 224 px
    python examples/benchmarks/wrap_cost.py --largest   # time and memory of the ten families of most parameters
    python examples/benchmarks/wrap_cost.py --depth     # the same model with 4 to 32 blocks: time for each block

Times are CPU seconds of this process (other processes do not change them), the median of --repeat rounds.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

IMPORT = 'import time, timm; t = time.process_time(); import sf_teacher; print(time.process_time() - t)'
ONE = '''
import json, resource, sys, time, timm, torch, logging
logging.disable(); torch.set_num_threads(1)
import sf_teacher
from sf_teacher.factory import create_model
name, role, kwargs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
t = time.process_time(); model = create_model(name, role, 10, None, kwargs); build = time.process_time() - t
size = tuple(timm.data.resolve_model_data_config(model)['input_size'])
small = timm.create_model('test_resnet', num_classes=10)
mib = lambda m: sum(p.numel() * p.element_size() for p in m.parameters()) / 2 ** 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
t = time.process_time()
task = sf_teacher.wrap(*((model, small) if role == 'teacher' else (small, model)), input_size=size)
wrap = time.process_time() - t
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
t = time.process_time()
with torch.no_grad():
    model.eval()(torch.zeros(1, *size))
forward = time.process_time() - t
print(json.dumps(dict(modules=sum(1 for _ in model.modules()), size=size[1], weights=mib(model), build=build,
                      forward=forward, wrap=wrap, branches=mib(task.branches), added=(after - before) / 1024)))
'''


def run(code: str, *args: str) -> str:
    # memory that is freed goes back to the system at once, so that the peak is what was in use at a time
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '131072'}
    return subprocess.run([sys.executable, '-c', code, *args], check=True, capture_output=True, text=True,
                          env=environment).stdout


def small_pair(repeat: int) -> None:
    import timm
    import torch

    import sf_teacher
    torch.set_num_threads(1)
    rounds: dict[str, list[float]] = {'build': [], 'one': [], 'eight': [], 'wrap': []}
    for i in range(repeat + 1):
        t0 = time.process_time()
        teacher, student = timm.create_model('resnet50'), timm.create_model('resnet18').eval()
        t1 = time.process_time()
        with torch.no_grad():
            student(torch.zeros(1, 3, 224, 224))
            t2 = time.process_time()
            student(torch.zeros(8, 3, 224, 224))
        t3 = time.process_time()
        sf_teacher.wrap(teacher, student)
        t4 = time.process_time()
        if i:   # the first round warms up
            for name, seconds in zip(rounds, (t1 - t0, t2 - t1, t3 - t2, t4 - t3), strict=True):
                rounds[name].append(seconds)
    build, one, eight, wrap = (statistics.median(v) for v in rounds.values())
    print(f'resnet50/resnet18, 224 px, one thread: build both {build:.3f} s, wrap {wrap:.3f} s')
    for batch, forward in ((1, one), (8, eight)):
        print(f'  student forward at batch {batch}: {forward:.3f} s; wrap = {wrap / (build + 3 * forward):.2f} x '
              f'(build + 3 forwards)')


def largest(names: list[str]) -> None:
    print(f'{"family":34}{"role":8}{"modules":>8}{"pixels":>7}{"weights MiB":>12}{"build s":>8}{"forward s":>10}'
          f'{"wrap s":>7}{"branches MiB":>13}{"added MiB":>10}')
    for name in names:
        for role in ('teacher', 'student'):
            r = json.loads(run(ONE, name, role, '{}'))
            print(f'{name:34}{role:8}{r["modules"]:8}{r["size"]:7}{r["weights"]:12.0f}{r["build"]:8.2f}'
                  f'{r["forward"]:10.2f}{r["wrap"]:7.2f}{r["branches"]:13.0f}{r["added"]:10.0f}', flush=True)


def depths() -> None:
    print(f'{"model":24}{"role":8}{"blocks":>7}{"modules":>8}{"wrap s":>8}{"ms a block":>11}{"added MiB":>10}')
    for name, kwargs in DEEP.items():
        for role in ('teacher', 'student'):
            for blocks in (4, 8, 16, 32, 64):
                given = {k: [1, 1, blocks - 3, 1] if v == 'stages' else blocks for k, v in kwargs.items()}
                r = json.loads(run(ONE, name, role, json.dumps(given)))
                print(f'{name:24}{role:8}{blocks:7}{r["modules"]:8}{r["wrap"]:8.2f}{1000 * r["wrap"] / blocks:11.1f}'
                      f'{r["added"]:10.0f}', flush=True)


# of the smallest classifier of each timm module, the ten with the most parameters
LARGEST = ['deepseek_vit_412m', 'mobilenetv5_base', 'gemma4_vit_167m', 'vgg11', 'pnasnet5large', 'nasnetalarge',
           'samvit_base_patch16_224', 'qwen3_vit_88m', 'beit_base_patch16_224', 'naflexvit_base_patch16_parfac_gap']

# one that never changes its resolution, one whose third stage grows; by the argument that sets their depth
DEEP = {'vit_tiny_patch16_224': {'depth': 'blocks'}, 'resnet50': {'layers': 'stages'}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--largest', action='store_true')
    parser.add_argument('--depth', action='store_true')
    parser.add_argument('--repeat', type=int, default=5)
    args = parser.parse_args()
    if args.largest:
        return largest(LARGEST)
    if args.depth:
        return depths()
    seconds = statistics.median(float(run(IMPORT)) for _ in range(args.repeat))
    print(f'import sf_teacher after timm: {1000 * seconds:.0f} ms')
    small_pair(args.repeat)
    print(f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB')


if __name__ == '__main__':
    main()
