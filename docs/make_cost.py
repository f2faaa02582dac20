"""Write docs/cost.md from examples/benchmarks/step_cost.json, which step_cost.py and pool_cost.py there measured."""
import json
from itertools import groupby
from operator import itemgetter
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = '''\
# What a training step costs

Written by `python docs/make_cost.py` from [step_cost.json](../examples/benchmarks/step_cost.json), which
`step_cost.py`, `pool_cost.py` and `simplifier_cost.py` there measured: {device}, {threads} thread, torch {torch},
timm {timm}. CPU time of the process, on a machine of {cores} cores with a load average of {low} to {high}, so that
contention for caches and memory is in the figures.

Everything is over plain training of the teacher. **FLOP ratio** and **activation ratio** are what `sf-teacher inspect`
counts, the limits of time and memory. **Step ratio** is forward, loss, backward and SGD with momentum: the median over
rounds, with the 10th and 90th percentile. **Excess** is step ratio / FLOP ratio; below 1 where the branches' layers do
more FLOPs a second than the teacher's. **SFTN / by hand** compares with a loop that has nothing of this package: timm's
`forward_intermediates`, convolutions, batch norms and the student's own layers. **Peak memory** is weights, optimizer
state and the most that a step allocates, so it grows with the branches' weights too. GTN has a pool of three, the
student with two others (`POOL` in the script): ratios are means over their steps.

Where there is an excess, it is layers that do fewer FLOPs a second than the teacher's, depthwise convolutions most of
all ([below](#where-the-excess-is)). SFTN's loop by hand has it too for ResNet-34, and half of it for the ViT. PyTorch's
counter takes a grouped convolution's weight gradient once for each group; here it is counted once. GTN's gradients and
optimizer pass over the banks of all students in every step, a few hundredths at most (below).
TESKD's pyramid has wide maps at the resolution of the first stage: more of its time is memory than FLOPs, and the
activation ratio is the nearer limit where it is far above the FLOP ratio, as for ResNet-34. Our goal, an excess of 1.05
at most, is met by {met} of the {total} rows with memory kept, before rounding; the largest is {largest:.2f}. Spreads
are wide, as this virtual machine's speed changes from second to second: in two runs of `step_cost.py`, with `--rounds
7` and `--rounds 9`, the excess of a row differed by up to 0.07.

**Memory kept** means that malloc keeps what is freed, as CUDA's allocator does. As the system has it, glibc gives large
tensors back to the kernel and gets them anew, page by page, in every step. That has nothing to do with what is
computed, and slows plain training too: in runs one after the other of `step_cost.py --pairs resnet50/resnet18 --methods
teskd --batch-size 64 --rounds 3`, a plain step took 10.1 s, with `--system-malloc` 13.6 s, without it again 8.9 s. In a
shell it is `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000` before any command that trains on a CPU.
'''
COLUMNS = ['pair', 'method', 'FLOP ratio', 'step ratio', 'excess', 'SFTN / by hand', 'activation ratio',
           'peak memory ratio', 'rounds']
SIMPLIFIER = '''
## Student-friendly KD, eager

It costs nothing while a teacher trains: its simplifier works on the logits while the student trains. So everything here
is over plain distillation, timm's `LogitDistillationTask` with the same teacher and student (memory kept, {size} px,
batches of {batch_size}, {rounds} rounds). Where the teacher's forward is the peak it takes less memory: the teacher
runs before the student's activations are there, in timm's task after.

| pair | FLOP ratio | step ratio | peak memory ratio |
|---|---|---|---|
'''
CHEAPER = '''
## Cheaper steps for SFTN, eager

`sample_branch` runs one branch a step, drawn anew, whose loss is in the mean over the draws that of all; `branch_share`
lets the branches see a part of each batch. Measured by `cheaper_cost.py` on another machine than the rows above
({device}, {threads} thread, torch {torch}); {size} px, batches of {batch_size}, {rounds} rounds.

| pair | branches | FLOP ratio | step ratio | excess |
|---|---|---|---|---|
'''
PROFILE = '''
## Where the excess is

Measured by `step_profile.py` ({device}, {threads} thread, torch {torch}; {size} px, batches of {batch_size}, median of
{rounds} rounds) for the pairs and methods with an eager row, memory kept, above 1.05 and some that are not. If
every kind of operator took as much longer as there are more FLOPs, the step ratio would be the FLOP ratio.
What each adds to the difference, in parts of a plain step: **products** (convolutions, matrix products, attention),
**normalisation**, the **optimizer**, and the **rest** (element by element, copies, pooling, reductions), with the
GFLOP/s of the teacher's products and of the branches'.

'''
PROFILE_COMPILED = '''
The compiled steps above 1.05, in the same way ({device}, {threads} thread, torch {torch}; median of
{rounds} rounds). Normalisation, and products that are few, are in the fused loops of the rest then.

'''
PROFILE_HEAD = '''\
| pair | method | FLOP ratio | step ratio | products | normalisation | optimizer | rest | GFLOP/s, plain | branches |
|---|---|---|---|---|---|---|---|---|---|
'''
POOLED = '''\
## GTN with a pool of 8 against 8 SFTN runs

{teacher} with {pool}; {sizes}.

One GTN training costs {share} of eight SFTN trainings of as many steps each (the limit is 0.125). Its step takes {step}
of an SFTN step with the same student, its peak memory is {peak:.2f} of the largest SFTN run's.
'''


def render(data: dict) -> str:
    loads = sorted(r['load'] for r in data['rows'])
    excess = [r['excess'] for r in data['rows'] if r['malloc'] == 'kept']
    text = HEAD.format(**data['machine'], low=loads[0], high=loads[-1], met=sum(e <= 1.05 for e in excess),
                       total=len(excess), largest=max(excess))
    pairs = list(dict.fromkeys(r['pair'] for r in data['rows']))
    ordered = sorted(data['rows'], key=lambda r: (pairs.index(r['pair']), ['sftn', 'teskd', 'gtn'].index(r['method'])))
    key = itemgetter('compiled', 'size', 'batch_size', 'malloc')
    for (compiled, size, batch_size, malloc), rows in groupby(sorted(ordered, key=key), key):
        text += f'\n## {"Compiled" if compiled else "Eager"}, {size} px, batches of {batch_size}, '
        text += 'memory kept\n\n' if malloc == 'kept' else 'malloc as the system has it\n\n'
        text += f'| {" | ".join(COLUMNS)} |\n' + '|---' * len(COLUMNS) + '|\n'
        for r in rows:
            cells = [r['pair'], r['method'].upper(), f'{r["flop_ratio"]:.2f}', spread(r['step_ratio']),
                     f'{r["excess"]:.2f}', spread(r['by_hand']) if r['by_hand'] else '-',
                     f'{r["activation_ratio"]:.2f}', f'{r["peak_ratio"]:.2f}', str(r['rounds'])]
            text += f'| {" | ".join(cells)} |\n'
    text += SIMPLIFIER.format(**data['simplifier'][0])
    for r in data['simplifier']:
        text += f'| {r["pair"]} | {r["flop_ratio"]:.4f} | {spread(r["step_ratio"])} | {r["peak_ratio"]:.3f} |\n'
    cheaper = data['cheaper']
    text += CHEAPER.format(**cheaper['machine'], **cheaper['rows'][0])
    for r in cheaper['rows']:
        text += (f'| {r["pair"]} | {r["way"]} | {r["flop_ratio"]:.2f} | {spread(r["step_ratio"])} | '
                 f'{r["excess"]:.2f} |\n')
    for part, head in (('profile', PROFILE), ('profile_compiled', PROFILE_COMPILED)):
        profile = data[part]
        text += head.format(**profile['machine'], **profile['rows'][0]) + PROFILE_HEAD
        for r in profile['rows']:
            added = ' | '.join(f'{value:+.3f}' for value in r['added'].values())
            text += (f'| {r["pair"]} | {r["method"].upper()} | {r["flop_ratio"]:.2f} | {r["step_ratio"]:.2f} | '
                     f'{added} | {r["gflops"][0]:.0f} | {r["gflops"][1]:.0f} |\n')
    pool = data['pool']
    return text + '\n' + POOLED.format(
        teacher=pool['teacher'], pool=', '.join(pool['pool']),
        sizes=f'{pool["size"]} px, batches of {pool["batch_size"]}, {pool["rounds"]} rounds',
        share=spread(pool['gtn_over_eight_sftn'], 3), step=spread(pool['gtn_step_over_sftn_step']),
        peak=pool['peak_over_largest_sftn'])


def spread(values: list[float], digits: int = 2) -> str:
    return f'{values[0]:.{digits}f} ({values[1]:.{digits}f} to {values[2]:.{digits}f})'


if __name__ == '__main__':
    results = json.loads((ROOT / 'examples' / 'benchmarks' / 'step_cost.json').read_text())
    (ROOT / 'docs' / 'cost.md').write_text(render(results))
