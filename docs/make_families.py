"""Write docs/families.md: the smallest architecture of every timm module, as teacher and as student.

`python docs/make_families.py` runs on every module what tests/test_families.py runs on a share: exact teacher logits,
exact tails at batch sizes 1, 2, 3 in eval and train mode, parameters, gradients, one training step.
About ten minutes on two cores, up to 12 GiB.
"""
import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.split.families import FAMILIES, build_small
from tests.split.family_checks import check_student, check_teacher

HEAD = '''\
# Supported architectures

Written by `python docs/make_families.py` (timm {timm}, torch {torch}, CPU). For each of timm's {count} model modules,
the smallest architecture with a classifier, at the smallest image size that it admits:

- **teacher**: logits with branches equal those without (`torch.equal`, eval and train mode), gradients everywhere.
- **student**: every boundary's tail on the student's own features equals the student's logits (`torch.equal`, batch
  sizes 1, 2, 3; train mode within 1e-4 with the same random state), owns exactly the parameters behind the boundary,
  and trains. "Boundaries" counts those that are a cut, of timm's features; `boundaries=` admits any other module path
  through which everything passes. Features of one module (several streams) are one boundary.

{teachers} of {count} work as teacher, {students} of {count} as student.

| module | architecture | input | teacher | student | boundaries | default boundaries of the student |
|---|---|---|---|---|---|---|
'''


def row(module: str) -> tuple[str, bool, bool]:
    logging.disable()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, works, boundaries, chosen = FAMILIES[module], {}, [], []
    model, size = build_small(name)
    features = len(getattr(model.feature_info, 'info', model.feature_info))
    try:
        check_teacher(model, size)
        works['teacher'] = 'yes'
    except Exception as error:
        works['teacher'] = f'no: {error}'.split('\n')[0]
    try:
        boundaries, chosen = check_student(model, size)
        works['student'] = 'yes'
    except Exception as error:
        works['student'] = f'no: {error}'.split('\n')[0]
    cells = [module, name, f'{size[1]} px', works['teacher'], works['student'], f'{len(boundaries)} of {features}',
             ', '.join(f'`{b.name}`' for b in chosen)]
    return f'| {" | ".join(cells)} |', works['teacher'] == 'yes', works['student'] == 'yes'


def main() -> None:
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        rows = []
        for line in pool.map(row, sorted(FAMILIES)):
            rows.append(line)
            sys.stdout.write(line[0] + '\n')
            sys.stdout.flush()
    head = HEAD.format(timm=timm.__version__, torch=torch.__version__.split('+')[0], count=len(rows),
                       teachers=sum(t for _, t, _ in rows), students=sum(s for _, _, s in rows))
    Path(__file__).with_name('families.md').write_text(head + '\n'.join(line for line, _, _ in rows) + '\n')


if __name__ == '__main__':
    main()
