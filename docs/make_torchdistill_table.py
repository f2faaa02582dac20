"""Write docs/toolboxes/torchdistill_configs.md: torchdistill's own ILSVRC2012 configs with an exported teacher.

`python docs/make_torchdistill_table.py CHECKOUT SC2`, with clones of github.com/yoshitomo-matsubara/torchdistill and of
its sc2-benchmark, which has the students of eight configs and needs `pip install compressai`. Every config that has a
teacher is loaded as it is, but for the teacher's block, the student's pretrained weights, fewer and smaller images, one
epoch a stage, and as many memory slots as images in CRD's; then one step of each stage is run. Minutes on two cores.
"""
import argparse
import copy
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchdistill
import torchvision
from sf_teacher.adapters import torchdistill as adapter
from torchdistill.common import yaml_util
from torchdistill.core.distillation import get_distillation_box
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model

sys.path.insert(0, str(Path(__file__).parents[1]))

import sf_teacher
from tests.helpers import jitter, quick_check

FILE = Path(__file__).resolve().parent / 'toolboxes' / 'torchdistill_configs.md'
SIZES = {'inception_v3': 299}       # and where a config depends on it; 64 otherwise
KEYS = ('sf_teacher.torchvision_teacher', 'sf_teacher.timm_teacher')
HEAD = """\
# torchdistill's own ILSVRC2012 configs

Written by `python docs/make_torchdistill_table.py CHECKOUT SC2`: torchdistill's configs at commit {commit}, its
author's sc2-benchmark at commit {sc2} (the students of GHND and HND), torchdistill {torchdistill}, timm {timm}, torch
{torch}, torchvision {torchvision}. Each of its official and sample configs with a teacher is built, and one step of
every stage run on two random images, with an exported teacher of that architecture in place of torchvision's: nothing
changes but the teacher's block (and `dependencies:`, which names our module). Students start without the pretrained
weights that some configs download.

- **torchvision_teacher**: `key: 'sf_teacher.torchvision_teacher'`
- **timm_teacher**: `key: 'sf_teacher.timm_teacher'`; where it is refused, name the modules as
  `sf-teacher inspect TEACHER --hooks` shows them.

The steps are those of torchdistill's example script at tag v1.1.4. The script at the head of its repository validates
what the box trains, and so stops by itself, with any teacher, where the student has an auxiliary wrapper or is an
`EmptyModule` (CRD, FT, SRD): take the script of v1.1.4 for those.

{works} of {count} work with `torchvision_teacher`, {timm_works} with `timm_teacher`.

| config | teacher | torchvision_teacher | timm_teacher |
|---|---|---|---|
"""


def prepared(path: Path, data: Path) -> tuple[str, str]:
    """The config's text for two small images, and its teacher's architecture."""
    text = path.read_text()
    arch = re.search(r"teacher_model:\n\s+key:\s+(?:&\S+ )?'(\w+)'", text)[1]
    text = text.replace("'~/datasets/'", f"'{data}/'").replace('~/datasets/', f'{data}/')
    if arch not in SIZES and not re.search(r'sizes: \[1, 7', text):
        text = text.replace('[224, 224]', '[64, 64]').replace('size: 256', 'size: 64')
    text = re.sub(r'(\snum_epochs:(?: &\w+)?) \d+', r'\1 1', text)
    text = re.sub(r'(\sbatch_size:(?: &\w+)?) \d+', r'\1 2', text).replace('num_workers: 16', 'num_workers: 0')
    text = text.replace('pin_memory: True', 'pin_memory: False').replace('1281167', '8').replace('16384', '4')
    return text, arch


def built(config: dict[str, Any], sc2: Path) -> torch.nn.Module:
    kwargs = {name: value for name, value in config['kwargs'].items() if name != 'weights'}
    if config.get('repo_or_dir') == 'yoshitomo-matsubara/sc2-benchmark':
        return torch.hub.load(str(sc2), config['key'], source='local', **kwargs)
    model = get_image_classification_model(config | {'kwargs': kwargs})
    return get_model(config['key'], config.get('repo_or_dir'), **kwargs) if model is None else model


def outcome(text: str, arch: str, key: str, folder: Path, sc2: Path) -> str:
    """Run one step of each stage; what came of it."""
    Path('config.yaml').write_text(text)
    try:
        config = yaml_util.load_yaml_file('config.yaml')
        own = {'key': arch, 'kwargs': {'num_classes': 1000}}
        teacher = built(own if key == arch else {'key': key, 'kwargs': {'model_name': f'local-dir:{folder}'}},
                        sc2)
        student = built(copy.deepcopy(config['models']['student_model']), sc2)
        box = get_distillation_box(teacher, student, config['datasets'], config['train'], torch.device('cpu'), None,
                                   False, 1)
        for epoch in range(box.num_epochs):
            box.pre_epoch_process(epoch=epoch)
            images, targets, extra = next(iter(box.train_data_loader))
            loss = box.forward_process(images, targets, extra)
            if not loss.isfinite():
                return f'loss {loss.item()}'
            box.post_forward_process(loss=loss)
            box.post_epoch_process()
        box.clean_modules()
    except Exception as error:
        said = ' '.join(str(error).split()).replace(f'local-dir:{folder}', 'local-dir:FOLDER').replace('|', '\\|')
        said = re.sub(r"the config names the module '\S+', and sf_teacher\S+ '\S+' has ", '', said)
        said = said.removeprefix("model_name 'local-dir:FOLDER': ").split('; near it')[0].split('. `sf-teacher')[0]
        if isinstance(error, sf_teacher.SFTeacherError):
            return f'refused: {said.split(" Use the key")[0]}'
        said = f'fails: {type(error).__name__}: {said[:160]}'
        itself = key != arch and outcome(text, arch, arch, folder, sc2) == said
        return said + ' (under torchvision\'s key too)' if itself else said
    return 'works'


def commit_of(checkout: Path) -> str:
    return subprocess.run(['git', '-C', checkout, 'rev-parse', '--short=7', 'HEAD'], capture_output=True, text=True,
                          check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkout', type=Path, help='clone of torchdistill')
    parser.add_argument('sc2', type=Path, help='clone of sc2-benchmark')
    parser.add_argument('--only', default='', help='configs whose path contains this: print their rows, write nothing')
    args = parser.parse_args()
    if sys.flags.hash_randomization:    # torchdistill hooks a set of paths; the first that is missing is to be the same
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, 'PYTHONHASHSEED': '0'})
    logging.disable()
    configs, sc2 = args.checkout.resolve() / 'configs', args.sc2.resolve()
    paths = [p for kind in ('official', 'sample') for p in sorted((configs / kind / 'ilsvrc2012').rglob('*.yaml'))
             if 'teacher_model:' in p.read_text() and args.only in str(p)]
    rows, found = [], []
    with tempfile.TemporaryDirectory() as work, pytest.MonkeyPatch.context() as monkeypatch:
        quick_check(monkeypatch)
        os.chdir(work)
        data = Path(work, 'data')
        for folder in [data / 'ilsvrc2012' / split / label for split in ('train', 'val') for label in ('n0', 'n1')]:
            folder.mkdir(parents=True)
            for i in range(4):
                torchvision.io.write_png(torch.randint(255, (3, 80, 80), dtype=torch.uint8), str(folder / f'{i}.png'))
        for path in paths:
            text, arch = prepared(path, data)
            folder, size = Path(work, arch), SIZES.get(arch, 64)
            if not folder.exists():
                torch.manual_seed(0)
                sf_teacher.export(jitter(timm.create_model(arch)), folder, input_size=(3, size, size))
            results = []
            for key in KEYS:
                torch.manual_seed(0)
                results.append(outcome(text, arch, key, folder, sc2))
            found.append(results)
            rows.append(f'| {path.relative_to(configs)} | {arch} | {results[0]} | {results[1]} |')
            sys.stderr.write(rows[-1] + '\n')
    if args.only:
        return
    counts = [sum(results[i] == 'works' for results in found) for i in (0, 1)]
    FILE.write_text(HEAD.format(
        commit=commit_of(configs), sc2=commit_of(sc2), torchdistill=torchdistill.__version__, timm=timm.__version__,
        torch=torch.__version__.partition('+')[0], torchvision=torchvision.__version__.partition('+')[0],
        works=counts[0], timm_works=counts[1], count=len(rows)) + '\n'.join(rows) + '\n')


if __name__ == '__main__':
    assert adapter      # registers the keys
    main()
