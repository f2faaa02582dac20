"""The torchdistill configs that come along run as they stand, and differ from its own in what is said."""
import difflib
import logging
import re
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from sf_teacher.adapters import torchdistill as adapter
from torchdistill.common import yaml_util
from torchdistill.core.distillation import get_distillation_box
from torchdistill.models.registry import get_model

import sf_teacher
from sf_teacher.methods import METHODS

from ..helpers import jitter
from .torchdistill_runs import (
    CPU,
    EXAMPLES,
    SIZE,
    environment,
    export_teacher,
    run_script,
)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A working directory with the digits and the teachers that the configs name."""
    path = tmp_path_factory.mktemp('work')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(path)
        run_script(monkeypatch, 'make_digits', '--train', 160, '--total', 260)
        export_teacher('resnet34', path / 'exported/digits/resnet34-sft')
    return path


@pytest.fixture
def in_work(work, monkeypatch):
    monkeypatch.chdir(work)
    return work


def config(name, *changes):
    """An example's text with some strings replaced; each must occur."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def changed_lines(left, right):
    lines = list(difflib.unified_diff(config(left).splitlines(), config(right).splitlines(), n=0, lineterm=''))[2:]
    return [line[1:].strip() for line in lines if line[0] == '-'], [line[1:] for line in lines if line[0] == '+']


class TestExamples:
    def test_under_torchvisions_key_one_line_differs(self):
        old, new = changed_lines('digits/ordinary_kd/resnet18_from_resnet34.yaml',
                                 'digits/kd/resnet18_from_resnet34.yaml')
        assert old == ["src_ckpt: './ckpt/digits/resnet34.pt'"]
        assert new == ["    src_ckpt: './exported/digits/resnet34-sft/teacher.pth'"]

    @pytest.mark.parametrize(('dataset', 'ours'), [
        ('digits', 'resnet18_from_resnet34-eval_mode'), ('ilsvrc2012', 'resnet18_from_resnet34')])
    def test_otherwise_the_model_block_and_dependencies_differ(self, dataset, ours):
        old, new = changed_lines(f'{dataset}/ordinary_kd/resnet18_from_resnet34.yaml', f'{dataset}/kd/{ours}.yaml')
        assert new == [
            'dependencies:', "  - name: 'sf_teacher.adapters.torchdistill'", '',
            "    key: 'sf_teacher.timm_teacher'",
            f"      model_name: 'local-dir:./exported/{dataset}/resnet34-sft'"]
        assert old[0] == "key: 'resnet34'" and len(old) <= 4
        text = config(f'{dataset}/ordinary_kd/resnet18_from_resnet34.yaml')
        block = text[text.index('  teacher_model:'):text.index('  student_model:')]
        assert all(line in block for line in old)

    def test_readme_shows_the_whole_diffs(self):
        text = (EXAMPLES / 'README.md').read_text()
        commands = re.findall(r'`diff (\S+\.yaml) (\S+\.yaml)`', text)
        shown = [block.splitlines() for block in re.findall(r'```diff\n(.*?)```', text, re.S)]
        assert len(commands) == len(shown) == 3
        for (left, right), lines in zip(commands, shown, strict=True):
            old, new = changed_lines(left, right)
            assert [line[1:].strip() for line in lines if line[0] == '-'] == old
            assert [line[1:] for line in lines if line[0] == '+'] == new

    def test_readme_names_every_config(self):
        text = (EXAMPLES / 'README.md').read_text().replace('`, `at`, `ft/', '').replace('ilsvrc2012/kd', '')
        for path in EXAMPLES.rglob('*.yaml'):
            name = str(path.relative_to(EXAMPLES))
            assert name in text or name.startswith('ilsvrc2012/'), name

    @pytest.mark.slow
    @pytest.mark.parametrize('name', [
        'digits/sftn/test_resnet.yaml', 'digits/sftn/test_efficientnet_from_test_resnet.yaml',
        'digits/sftn/resnet34.yaml', 'digits/kd/resnet18_from_resnet34.yaml',
        'digits/kd/resnet18_from_resnet34-eval_mode.yaml', 'digits/kd/resnet18_from_resnet34-unlabelled.yaml',
        'digits/teskd/test_resnet.yaml',
        'digits/gtn/test_resnet.yaml', 'digits/student_friendly_kd/resnet18_from_resnet34.yaml'])
    def test_digits_run_as_they_stand(self, in_work, monkeypatch, caplog, name):
        with caplog.at_level(logging.INFO):
            run_script(monkeypatch, 'run', '--config', EXAMPLES / name, '--device', 'cpu', '--seed', 0, '-log_config')
        assert 'model: top-1' in caplog.text
        if (trains := any(f'/{method}/' in name for method in METHODS.of_phase('teacher'))):
            folder = re.search(r"folder: './(.*)'", config(name))[1]
            sf_teacher_free = timm.create_model(f'local-dir:{folder}', pretrained=True)
            assert sf_teacher_free.num_classes == 10
        if trains and 'from' not in name:   # the best epoch is what was exported
            best = torch.load(re.search(r"dst_ckpt '(.*)'", config(name))[1], weights_only=True)['model']
            assert all(torch.equal(v, best[k]) for k, v in sf_teacher_free.state_dict().items())

    def test_without_labels_the_loss_is_the_distillation_loss(self, in_work, monkeypatch):
        text = config('digits/kd/resnet18_from_resnet34-unlabelled.yaml')
        (in_work / 'config.yaml').write_text(text)
        loaded = yaml_util.load_yaml_file(str(in_work / 'config.yaml'))
        data = loaded['datasets'][loaded['train']['train_data_loader']['dataset_id']]
        assert len(data) == 160 and data.classes == ['images']
        teacher = get_model(**loaded['models']['teacher_model']['kwargs'], key='sf_teacher.timm_teacher')
        student = adapter.timm_model('resnet18', num_classes=10)
        box = get_distillation_box(teacher, student, loaded['datasets'], loaded['train'], CPU, None, False, 1)
        images = torch.stack([data[i][0] for i in range(8)])
        box.pre_epoch_process(epoch=0)
        first, second = (box.forward_process(images, torch.full((8,), label), {}).item() for label in (0, 7))
        log_p, p = (student(images) / 4).log_softmax(1), (teacher(images) / 4).softmax(1)
        assert first == second == pytest.approx(16 * F.kl_div(log_p, p, reduction='batchmean').item(), rel=1e-4)

    def test_test_only_gives_the_teachers_accuracy_of_the_run(self, in_work, monkeypatch, caplog):
        name, found = EXAMPLES / 'digits/kd/resnet18_from_resnet34-eval_mode.yaml', []
        for extra in ((), ('-test_only',)):
            caplog.clear()
            with caplog.at_level(logging.INFO):
                run_script(monkeypatch, 'run', '--config', name, '--device', 'cpu', '--seed', 0, *extra)
            found.append([line for line in caplog.messages if line.startswith('teacher: top-1')])
        assert found[0] == found[1] and found[0]

    @pytest.mark.parametrize('name', ['at', 'ft', 'kd'])
    def test_ilsvrc2012_runs_on_two_images(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        for split in ('train', 'val'):
            for label in ('n0', 'n1'):
                folder = tmp_path / 'data/ilsvrc2012' / split / label
                folder.mkdir(parents=True)
                torchvision.io.write_png(torch.randint(255, (3, 64, 64), dtype=torch.uint8), str(folder / '0.png'))
        torch.manual_seed(0)
        model = jitter(timm.create_model('resnet34', num_classes=1000))
        sf_teacher.export(model, tmp_path / 'exported/ilsvrc2012/resnet34-sft', input_size=(3, 64, 64))
        text = config(f'ilsvrc2012/{name}/resnet18_from_resnet34.yaml', ('size: 224', 'size: 64'),
                      ('batch_size: 256', 'batch_size: 2'), ('num_workers: 16', 'num_workers: 0'),
                      ('num_epochs: 100', 'num_epochs: 1'))
        (tmp_path / 'config.yaml').write_text(text)
        run_script(monkeypatch, 'run', '--config', tmp_path / 'config.yaml', '--device', 'cpu', '--seed', 0)

    @pytest.mark.parametrize('name', ['sftn/resnet50', 'sftn/resnet18_from_resnet50', 'kd/resnet18_from_resnet50'])
    def test_cifar100_configs_build(self, monkeypatch, name):
        """They need a download and a GPU; here everything but the data is built."""
        import yaml
        from torchdistill.common.main_util import import_dependencies

        text = config(f'cifar100/{name}.yaml')
        body = yaml.safe_load(text[text.index('models:'):].replace('!import_get', '').replace('*train', 'train')
                              .replace('*val', 'val'))
        import_dependencies([{'name': 'sf_teacher.adapters.torchdistill'}])
        assert body['test']['test_data_loader']['dataset_id'] == 'val'
        stage = body['train'].get('stage1', body['train'])
        holder = stage.get('model', stage.get('teacher', {}))
        if 'auxiliary_model_wrapper' in holder:
            kwargs = {**holder['auxiliary_model_wrapper']['kwargs'], 'export': None, 'ckpt_file_path': None}
            model = get_model('sf_teacher.timm_model', model_name='resnet50', num_classes=100)
            wrapper = adapter.Teacher4SFTN(device=CPU, teacher_model=model, **kwargs)
            assert wrapper(torch.randn(2, *SIZE)).shape == (2, 100)

    @pytest.mark.parametrize(('name', 'change', 'message'), [
        ('digits/kd/resnet18_from_resnet34.yaml', ('resnet34-sft/', 'nowhere/'),
         r'config.yaml: models.teacher_model.src_ckpt: ./exported/digits/nowhere/teacher.pth does not exist.*random'),
        ('digits/kd/resnet18_from_resnet34.yaml', ("key: 'resnet34'", "key: 'resnet50'"),
         r"src_ckpt: .*resnet34-sft/teacher.pth is of another model than key 'resnet50'.*Correct the key"),
        ('digits/kd/resnet18_from_resnet34.yaml', ('num_classes: 10', 'num_classes: 9'),
         r"src_ckpt: .*is of another model than key 'resnet34' with \{'num_classes': 9\}"),
        ('digits/student_friendly_kd/resnet18_from_resnet34.yaml', (
            "    key: 'sf_teacher.timm_teacher'\n    kwargs:\n"
            "      model_name: 'local-dir:./exported/digits/resnet34-sft'\n",
            "    key: 'resnet34'\n    kwargs:\n      num_classes: 10\n    src_ckpt: './nowhere.pth'\n"),
         r'src_ckpt: ./nowhere.pth does not exist.*random'),
        ('digits/kd/resnet18_from_resnet34-eval_mode.yaml', ('resnet34-sft', 'nowhere'),
         r"models.teacher_model.key 'sf_teacher.timm_teacher': .*nowhere does not exist. Give the folder"),
        ('digits/sftn/test_resnet.yaml', ("key: 'Teacher4SFTN'", "key: 'Teacher4Nobody'"),
         r'config.yaml: train: No auxiliary model wrapper `Teacher4Nobody`'),
    ])
    def test_errors_name_file_key_and_remedy(self, in_work, monkeypatch, name, change, message):
        (in_work / 'config.yaml').write_text(config(name, change))
        with pytest.raises(SystemExit, match=f'(?s){message}'):
            run_script(monkeypatch, 'run', '--config', 'config.yaml', '--device', 'cpu')

    def test_a_missing_dependencies_line(self, in_work):
        """In a process of its own, where nothing has imported the adapter; the exit code says it too."""
        name = 'digits/kd/resnet18_from_resnet34-eval_mode.yaml'
        dependency = "dependencies:\n  - name: 'sf_teacher.adapters.torchdistill'\n"
        (in_work / 'config.yaml').write_text(config(name, (dependency, '')))
        done = subprocess.run([sys.executable, EXAMPLES / 'run.py', '--config', 'config.yaml', '--device', 'cpu'],
                              capture_output=True, text=True, env=environment())
        assert done.returncode == 1
        assert "config.yaml: models.teacher_model.key 'sf_teacher.timm_teacher'" in done.stderr
        assert dependency.strip() in done.stderr
