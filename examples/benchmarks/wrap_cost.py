"""What importing and wrapping cost: against building both models, and for the largest families.

    python examples/benchmarks/wrap_cost.py             # import and resnet50/resnet18 at 224 px
    python examples/benchmarks/wrap_cost.py --largest   # time and memory of the ten families of most parameters

Times are CPU seconds of this process (other processes do not change them), the median of --repeat rounds.
"""
import argparse
import json
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
from sf_teacher.build import create_model
name, role = sys.argv[1:]
t = time.process_time(); model = create_model(name, role, 10, None, {}); build = time.process_time() - t
size = tuple(timm.data.resolve_model_data_config(model)['input_size'])
small = timm.create_model('test_resnet', num_classes=10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
t = time.process_time()
sf_teacher.wrap(*((model, small) if role == 'teacher' else (small, model)), input_size=size)
wrap = time.process_time() - t
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2 ** 20
depth = sum(1 for _ in model.modules())
print(json.dumps(dict(name=name, role=role, modules=depth, weights_mib=weights, build_s=build, wrap_s=wrap,
                      added_mib=(after - before) / 1024)))
'''


def run(code: str, *args: str) -> str:
    return subprocess.run([sys.executable, '-c', code, *args], check=True, capture_output=True, text=True).stdout


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
    print(f'{"family":34}{"role":9}{"modules":>8}{"weights MiB":>13}{"build s":>9}{"wrap s":>9}{"added MiB":>11}')
    for name in names:
        for role in ('teacher', 'student'):
            r = json.loads(run(ONE, name, role))
            print(f'{name:34}{role:9}{r["modules"]:8}{r["weights_mib"]:13.0f}{r["build_s"]:9.2f}{r["wrap_s"]:9.2f}'
                  f'{r["added_mib"]:11.0f}', flush=True)


# of the smallest classifier of each timm module, the ten with the most parameters
LARGEST = ['deepseek_vit_412m', 'mobilenetv5_base', 'gemma4_vit_167m', 'vgg11', 'pnasnet5large', 'nasnetalarge',
           'samvit_base_patch16_224', 'qwen3_vit_88m', 'beit_base_patch16_224', 'naflexvit_base_patch16_parfac_gap']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--largest', action='store_true')
    parser.add_argument('--repeat', type=int, default=5)
    args = parser.parse_args()
    if args.largest:
        return largest(LARGEST)
    seconds = statistics.median(float(run(IMPORT)) for _ in range(args.repeat))
    print(f'import sf_teacher after timm: {1000 * seconds:.0f} ms')
    small_pair(args.repeat)
    print(f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB')


if __name__ == '__main__':
    main()
