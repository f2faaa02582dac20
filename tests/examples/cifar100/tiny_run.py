"""The example on a small data set of the same form as CIFAR-100, in processes that can be killed."""
import json
from pathlib import Path

from ...helpers import processes
from .. import quick_run

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / 'examples' / 'cifar100'
QUEUE = 'queue'
PROTOCOLS = sorted(path.stem for path in FOLDER.glob('*.yaml') if path.stem != QUEUE)
TINY = {
    'about': 'tiny', 'results': 'tiny', 'classes': [1, 4], 'per_class': 8, 'batch_size': 8, 'seeds': [3],
    'train': {'epochs': 3, 'lr': 0.05},
    'pairs': {'by path': {
        'teacher': {'cifar': 'resnet8'}, 'student': {'cifar': 'wrn_10_1'},
        'others': {'by name': {'name': 'test_resnet'}}, 'boundaries': [['layer1', 'layer1'], ['layer2', 'layer2']]}},
    'arms': {'standard': {}, 'sftn': {
        'method': 'sftn', 'options': {'kl_weight': 1., 'kl_ramp': 0.5}, 'after': 'standard'}},
}
BY_NAME = {**TINY, 'arms': {'standard': {}}, 'pairs': {'by name': {
    'teacher': {'name': 'test_resnet', 'channels': [16, 24, 24, 48]}, 'student': {'name': 'test_efficientnet'}}}}


def arguments(folder, work, name, *more):
    return [str(folder / f'{name}.yaml'), '--data', str(folder / 'data'), '--device', 'cpu', '--work',
            str(folder / work), '--results', str(folder / f'results-{work}'), *more]


def start(folder, work, name, *more):
    process = processes.Process(target=quick_run.main, args=(
        arguments(folder, work, name, *more), folder, folder / f'{work}.log'))
    process.start()
    return process


def run(folder, work, name, *more):
    process = start(folder, work, name, *more)
    process.join()
    assert process.exitcode == 0, (folder / f'{work}.log').read_text()
    return results_of(folder, work)


def results_of(folder, work):
    return {path.stem: json.loads(path.read_text()) for path in (folder / f'results-{work}' / 'tiny').glob('*.json')}
