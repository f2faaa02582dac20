"""The loop: bit for bit the one that anybody would write, and what its options change."""
import copy
import csv
import os
import signal

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask

import sf_teacher
from sf_teacher import training
from sf_teacher.errors import SettingError
from sf_teacher.training import Interrupted, evaluate, fit, threads
from sf_teacher.training.components import create_optimizer
from sf_teacher.training.settings import TrainConfig

from . import training_runs as runs

QUIET = dict(model_ema=False, mixup=0., warmup_epochs=0)


def weights(task):
    return {k: v.clone() for k, v in task.get_trainable_module().state_dict().items()}


def bare(task, config, epochs=2):
    """The loop that anybody would write."""
    train, _ = runs.loaders()
    optimizer = create_optimizer_v2(task.get_trainable_module(), config.opt, config.lr, config.weight_decay)
    torch.manual_seed(config.seed)
    for epoch in range(epochs):
        train.set_epoch(epoch)
        task.train()
        for images, target in train:
            task(images, target)['loss'].backward()
            optimizer.step()
            optimizer.zero_grad()
    return weights(task)


@pytest.mark.parametrize('kind', ['teacher', 'plain', 'distill'])
def test_the_loop_is_bit_for_bit_the_bare_loop(kind):
    config = runs.settings(epochs=2, sched='none', **QUIET)
    task = runs.task(kind)
    fit(task, *runs.loaders(), config)
    assert runs.differences(weights(task), bare(runs.task(kind), config)) == []


@pytest.mark.parametrize('kind', ['teacher', 'plain'])
def test_accumulated_batches_equal_the_whole_batch(kind):
    trained = []
    for batch_size, steps in ((12, 1), (4, 3)):
        task = runs.task(kind, 'test_vit', img_size=16, patch_size=4)
        for module in task.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().train = lambda mode=True: None       # statistics of a batch are those of its size
        config = runs.settings(epochs=1, opt='sgd', grad_accum_steps=steps, **QUIET)
        fit(task, *runs.loaders(batch_size), config)
        trained.append(weights(task))
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_smaller_last_group_of_accumulated_batches_still_counts():
    task, calls = runs.task('plain'), []
    train, evaluation = runs.loaders(8)     # 6 batches in groups of 4: 2 updates
    update = task.update_ema
    task.update_ema = lambda step: (calls.append(step), update(step=step))
    fit(task, train, evaluation, runs.settings(epochs=2, grad_accum_steps=4, sched_on_updates=True, **QUIET))
    assert calls == [1, 2, 3, 4]


def test_learns_and_reports_what_it_learns(tmp_path):
    task = runs.task('teacher')
    seen = []
    config = runs.settings(tmp_path / 'run', epochs=6, opt='adamw', lr=3e-3, **QUIET)
    rows = fit(task, *runs.loaders(), config, seen.append)
    assert rows == seen and rows[-1]['train_loss'] < rows[0]['train_loss'] and rows[-1]['eval_top1'] > 60
    table = list(csv.DictReader((tmp_path / 'run/summary.csv').open()))
    assert [int(r['epoch']) for r in table] == list(range(6))
    for name in task.branches.names:
        for column in ('branch_ce', 'branch_kl', 'branch_top1', 'branch_gap'):
            assert f'train_{column}/{name}' in table[0]
    for column in ('train_teacher_ce', 'train_top1', 'eval_loss', 'eval_top5', 'lr', 'images_per_second', 'memory_mb'):
        assert float(table[-1][column]) > 0
    # with tau 1, the loss's own divergence is the one that is watched
    gaps = [float(v) for k, v in table[0].items() if k.startswith('train_branch_gap/')]
    assert float(table[0]['train_branch_kl']) == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)


def scales(task, **kwargs):
    """What each parameter's learning rate is multiplied with."""
    optimizer = create_optimizer(task, TrainConfig(lr=0.1, **kwargs))
    return {id(p): (g['lr_scale'], g['lr']) for g in optimizer.param_groups for p in g['params']}


@pytest.mark.parametrize('sched', ['cosine', 'none'])
def test_layer_decay_is_timms(sched):
    task = ClassificationTask(timm.create_model('test_vit', num_classes=4), verbose=False)
    expected = create_optimizer_v2(task.get_trainable_module(), 'sgd', 0.1, 5e-4, layer_decay=0.5).param_groups
    found = scales(task, layer_decay=0.5, sched=sched)
    assert len({s for s, _ in found.values()}) > 4 and min(found.values())[0] < 0.1
    for group in expected:
        for p in group['params']:       # timm's schedules multiply by the scale; without one it is done here
            scale = group['lr_scale']
            assert found[id(p)] == (scale, pytest.approx(0.1 * scale) if sched == 'none' else 0.1)


def test_layer_decay_trains_lower_layers_less():
    moved = []
    for layer_decay in (None, 0.1):
        task = runs.task('plain', 'test_vit', img_size=16, patch_size=4)
        before = {k: v.clone() for k, v in weights(task).items()}
        fit(task, *runs.loaders(), runs.settings(epochs=1, layer_decay=layer_decay, **QUIET))
        after = weights(task)
        moved.append({k: (after[k] - before[k]).abs().mean().item() for k in after})
    first, last = 'patch_embed.proj.weight', 'head.weight'
    assert moved[1][first] < 0.01 * moved[0][first] and moved[1][last] > 0.1 * moved[0][last]


def test_layer_decay_that_would_do_nothing():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, runs.CLASSES))
    student, teacher = (timm.create_model('test_resnet', num_classes=4) for _ in range(2))
    of_own_groups = sf_teacher.StudentFriendlyKDTask(student, teacher.eval().requires_grad_(False), verbose=False)
    for task in (ClassificationTask(net, verbose=False), of_own_groups):
        with pytest.raises(SettingError, match=r'layer_decay=0.5 has no effect on \w+, whose layers timm cannot tell'):
            create_optimizer(task, TrainConfig(layer_decay=0.5))


def test_terms_in_the_table_add_up_to_the_loss(tmp_path):
    task = runs.task('teacher')
    row = fit(task, *runs.loaders(), runs.settings(epochs=1, **QUIET))[0]
    m = task.method
    assert row['train_loss'] == pytest.approx(
        m.teacher_weight * row['train_teacher_ce'] + m.ce_weight * row['train_branch_ce']
        + m.kl_weight * row['train_branch_kl'], rel=1e-5)


def test_evaluation_is_that_of_the_plain_model_over_every_image():
    task = runs.task('teacher')
    _, loader = runs.loaders(7)
    before = weights(task)
    metrics = evaluate(task, loader)
    model = copy.deepcopy(task.teacher).eval()
    with torch.no_grad():
        logits, labels = zip(*[(model(x), y) for x, y in loader], strict=True)
    logits, labels = torch.cat(logits), torch.cat(labels)
    assert len(labels) == 24
    assert metrics['top1'] == pytest.approx((logits.argmax(1) == labels).float().mean().item() * 100)
    assert metrics['loss'] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert runs.differences(before, weights(task)) == []


def test_the_moving_average_is_what_is_evaluated():
    task = runs.task('plain')
    rows = fit(task, *runs.loaders(), runs.settings(epochs=2, model_ema_decay=0.9))
    _, loader = runs.loaders()
    assert rows[-1]['eval_loss'] == pytest.approx(evaluate(task, loader, ema=True)['loss'])
    assert rows[-1]['eval_loss'] != pytest.approx(evaluate(task, loader)['loss'])


@pytest.mark.parametrize('kwargs', [
    dict(amp=True, amp_dtype='bfloat16'), dict(channels_last=True), dict(cutmix=1., smoothing=0.1),
    dict(opt='lookahead_adamw', lr=1e-3), dict(clip_grad=0.1, clip_mode='agc'),
    dict(sched='multistep', decay_milestones=(1,)), dict(opt='lamb', lr=1e-3),
], ids=str)
def test_options_train(kwargs):
    task = runs.task('teacher', 'test_vit', img_size=16, patch_size=4)
    task.criterion = training.criterion(runs.settings(**kwargs))
    rows = fit(task, *runs.loaders(), runs.settings(epochs=2, **kwargs))
    assert all(torch.isfinite(torch.tensor(row['train_loss'])) for row in rows)


@pytest.mark.parametrize('kind', ['plain', 'teacher', 'distill'])
def test_a_task_is_trained_a_second_time_as_if_the_first_had_not_wrapped_it(kind):
    rows = []
    for backend in ('', 'eager'):
        task = runs.task(kind)
        parts, given = set(vars(task)) | set(task._modules), task.get_trainable_module()
        for lr in (0.05, 0.2):
            config = runs.settings(epochs=1, model_ema=True, model_ema_decay=0.5, torchcompile=backend, lr=lr)
            rows.append(fit(task, *runs.loaders(), config)[0])
            assert task.get_trainable_module() is given
            average = evaluate(task, runs.loaders()[1], ema=True)       # that of this training
            assert average['loss'] == pytest.approx(rows[-1]['eval_loss'], rel=1e-4)
        assert set(vars(task)) | set(task._modules) == parts | {'trainable_module_ema'}
    for plain, compiled in zip(rows[:2], rows[2:], strict=True):
        assert [plain[k] for k in ('train_loss', 'eval_loss')] == pytest.approx(
            [compiled[k] for k in ('train_loss', 'eval_loss')], rel=1e-4)


def test_compiled_tasks_train_and_resume(tmp_path):
    compiled = []
    config = runs.settings(tmp_path / 'run', epochs=1, torchcompile='eager', **QUIET)
    task = runs.task('plain')
    fit(task, *runs.loaders(), config, lambda row: compiled.append(hasattr(task.trainable_module, '_orig_mod')))
    assert compiled == [True]
    keys = timm.create_model('test_resnet').state_dict().keys()
    assert runs.final_state(tmp_path / 'run')['state_dict'].keys() == keys
    again = runs.settings(tmp_path / 'run', epochs=1, torchcompile='eager', resume=True, **QUIET)
    assert len(fit(runs.task('plain'), *runs.loaders(), again)) == 1


def test_without_output_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(fit(runs.task('plain'), *runs.loaders(), runs.settings(epochs=1))) == 1
    assert list(tmp_path.iterdir()) == []


def test_other_loaders_and_models_train_too():
    images, labels = runs.pixels()
    dataset = torch.utils.data.TensorDataset(images.float() / 255, labels)
    loader = torch.utils.data.DataLoader(dataset, 16, shuffle=True)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, runs.CLASSES))
    rows = fit(ClassificationTask(net, verbose=False), loader, loader, TrainConfig(epochs=2, lr=0.01))
    assert len(rows) == 2 and rows[1]['train_loss'] < rows[0]['train_loss']


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_between_steps_and_leave_the_handlers_as_they_were(signum, tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train, evaluation = runs.loaders()

    class Loader:
        def __len__(self):
            return len(train)

        def __iter__(self):
            for i, batch in enumerate(train):
                if i == 1 and self.epoch == 1:
                    os.kill(os.getpid(), signum)
                yield batch

        def set_epoch(self, epoch):
            self.epoch = epoch
            train.set_epoch(epoch)

    with pytest.raises(Interrupted, match=rf'stopped by {signum.name} in epoch 2; 1 complete epochs are saved'):
        fit(runs.task('plain'), Loader(), evaluation, runs.settings(tmp_path / 'run'))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    runs.train(tmp_path / 'run', 'plain', resume=True)
    runs.train(tmp_path / 'straight', 'plain')
    assert runs.differences(runs.final_state(tmp_path / 'run'), runs.final_state(tmp_path / 'straight')) == []


def test_threads_are_those_that_there_are_and_that_have_work(monkeypatch, tmp_path):
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(threads, 'QUOTA', tmp_path / 'cpu.max')
    assert threads.available_cores() == 16
    for text, cores in (('max 100000', 16), ('250000 100000', 2), ('50000 100000', 1), ('9900000 100000', 16)):
        (tmp_path / 'cpu.max').write_text(text)
        assert threads.available_cores() == cores
    (tmp_path / 'cpu.max').unlink()
    assert threads.default_threads(128, (3, 224, 224)) == 16 and threads.default_threads(8, (3, 16, 16)) == 1
    assert threads.default_threads(64, (3, 32, 32)) == 6
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert threads.default_threads(128, (3, 224, 224)) == torch.get_num_threads()
