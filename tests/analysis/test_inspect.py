"""`sf-teacher inspect` and `sf_teacher.inspection.inspect`."""
import json
import subprocess
import sys

import pytest
import timm
import torch

import sf_teacher
from sf_teacher.analysis.inspection import inspect, render
from sf_teacher.cli import main
from sf_teacher.methods import METHODS

SIZE = (3, 64, 64)


def test_it_tells_what_wrap_does():
    result = inspect('resnet10t', ['test_resnet'], num_classes=10, input_size=SIZE)
    task = sf_teacher.wrap('resnet10t', 'test_resnet', num_classes=10, input_size=SIZE)
    assert result['branches'] == task.branches.describe()
    assert [p['teacher'] for p in result['pairs']] == [b.name for b in task.branches.boundaries]
    assert result['branch_parameters'] == sum(p.numel() for p in task.branches.parameters())
    assert result['teacher']['parameters'] == sum(p.numel() for p in task.teacher.parameters())
    assert [s['name'] for s in result['teacher']['stages'] if s['used']] == ['layer1', 'layer2', 'layer3']
    assert result['pairs'][0]['why'] == 'depth 0.40 and 0.40, map 16x16 and 16x16'


def test_flops_are_those_of_the_layers():
    """A training step of a linear layer on a mean: forward and the weight's gradient, two operations a weight."""
    plain = inspect('test_resnet', num_classes=10, input_size=SIZE)['plain_step']['gflops_per_image']
    more = inspect('test_resnet', num_classes=20, input_size=SIZE)['plain_step']['gflops_per_image']
    width = timm.create_model('test_resnet').num_features
    assert more - plain == pytest.approx(10 * width * 2 * 3 / 1e9)     # forward, gradient of weight and of input
    both = inspect('test_resnet', ['test_resnet'], num_classes=10, input_size=SIZE)
    assert both['step']['gflops_per_image'] > both['plain_step']['gflops_per_image'] == pytest.approx(plain)
    assert both['step']['activation_mb_per_image'] > both['plain_step']['activation_mb_per_image'] > 0


@pytest.mark.parametrize('method', METHODS.of_phase('teacher'))
def test_every_method_has_a_cost_before_anything_is_trained(method):
    students = ['test_resnet'] if METHODS[method].takes_students else []
    result = inspect('test_resnet', students, method=method, num_classes=10, input_size=SIZE)
    assert result['step']['gflops_per_image'] >= result['plain_step']['gflops_per_image'] > 0
    more = result['step']['gflops_per_image'] / result['plain_step']['gflops_per_image']
    forward = {'aid': 1.33, 'lot': 2., 'mcmi': 1., 'soteacher': 1.}     # of three for forward and backward
    assert method not in forward or more == pytest.approx(forward[method], rel=0.03)


@pytest.mark.slow
def test_a_large_teacher_takes_no_memory():
    code = ('import resource\nfrom sf_teacher.analysis.inspection import inspect\n'
            'base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
            "inspect('vit_large_patch16_224', ['test_resnet'], input_size=(3, 224, 224))\n"
            'print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 600      # MiB; the weights alone are 1161


def test_the_command_line(capsys):
    args = ['inspect', 'resnet10t', 'test_resnet', '--num-classes', '10', '--input-size', '3', '64', '64']
    assert main([*args, '--json']) == 0
    data = json.loads(capsys.readouterr().out)
    assert data['method']['name'] == 'SFTN' and data['input_size'] == [3, 64, 64]
    assert main([*args, '--boundaries', 'layer2:layer3', '3:3']) == 0
    text = capsys.readouterr().out
    assert 'layer2  ->  layer3' in text and 'with branches' in text and 'GFLOP' in text
    assert main(['inspect', 'resnet5O']) == 1
    assert 'like it: ' in capsys.readouterr().err
    assert main(['inspect', 'resnet10t', '--input-size', '3', '64', '64']) == 0
    assert 'Name a student' in capsys.readouterr().out


def test_rendering_needs_no_branches_of_students():
    text = render(inspect('resnet10t', method='teskd', num_classes=10, input_size=SIZE))
    assert 'TESKD' in text and 'ratio' in text


def test_nothing_is_left_behind():
    rng = torch.get_rng_state()
    inspect('test_vit', input_size=(3, 160, 160))
    assert torch.equal(torch.get_rng_state(), rng)


def test_settings_of_the_method(capsys):
    args = ['inspect', 'test_resnet', '--method', 'teskd', '--num-classes', '10', '--input-size', '3', '64', '64',
            '--json']
    parameters = []
    for width in ('32', '64'):
        assert main([*args, '--method-kwargs', f'width={width}']) == 0
        parameters.append(json.loads(capsys.readouterr().out)['branch_parameters'])
    assert parameters[0] < parameters[1]
    assert main([*args, '--method-kwargs', 'widht=32']) == 2
    assert "TESKD has no setting 'widht'; like it: width" in capsys.readouterr().err


def test_an_exported_folder_is_described_without_warnings(tmp_path, recwarn):
    sf_teacher.export(timm.create_model('test_resnet', num_classes=4), tmp_path / 'teacher')
    result = inspect(f'local-dir:{tmp_path}/teacher', ['test_resnet'])
    assert result['num_classes'] == 4 and not [w for w in recwarn if 'no-op' in str(w.message)]
