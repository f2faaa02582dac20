"""What users get wrong: each is an error that names cause and remedy, with an exit code, and loses no file."""
import os
import re
import shutil
import sys

import pytest
import timm
import torch
from timm.task import ClassificationTask

from sf_teacher import SFTeacherError, cli, training
from sf_teacher.training.data import Data, create_loaders, load_data
from sf_teacher.training.in_memory import load_images
from sf_teacher.training.planning import load_teacher, plan_student
from sf_teacher.training.run_folder import RunFolder
from sf_teacher.training.settings import DataConfig, StudentRun, TrainConfig

from . import training_runs as runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return runs.folder(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A folder as export writes it for timm, of a model whose size is fixed."""
    path = tmp_path_factory.mktemp('teacher')
    model = timm.create_model('test_vit3', num_classes=runs.CLASSES, img_size=16, patch_size=4)
    timm.models.save_for_hf(model, str(path), model_args=dict(num_classes=4, img_size=16, patch_size=4),
                            safe_serialization=True, data_config=dict(input_size=(3, 16, 16)))
    return path


@pytest.fixture
def call(data, teacher, tmp_path, monkeypatch, capsys):
    """Run a command whose arguments replace or extend good ones; its exit code and what it says."""
    monkeypatch.chdir(tmp_path)

    def run(command, *args):
        good = {'--data': str(data), '--output': 'run', '--batch-size': '8', '--epochs': '1', '--device': 'cpu',
                '--in-memory': None}
        good |= {'train': {'TEACHER': 'test_resnet', '--student': 'test_resnet', '--input-size': '3 16 16'},
                 'distill': {'--teacher': str(teacher), '--student': 'test_resnet'}}[command]
        for arg in args:
            name, _, value = arg.partition(' ')
            value = value.format(data=data, teacher=teacher, tmp=tmp_path)
            good.pop(name.removeprefix('~'), None)
            if not name.startswith('~'):
                good[name] = value or None
        words = [command, *(good.pop('TEACHER', '').split())]
        words += [word for name, value in good.items() for word in (name, *(value or '').split())]
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err
    return run


TRAIN = [
    (['~--data'], 'no data: give data=.digits., a folder with train and validation in it'),
    (['--data nowhere'], "data='nowhere' is no folder: give the folder that holds the splits"),
    (['--train-split big'], 'there is no big in .*there are: train, validation. Name yours with train_split'),
    (['--val-split train'], 'training and validation would both read .*train: give another val_split'),
    (['~--data', '--dataset torch/nothing'], 'torch/nothing, split train: no images can be read from it'),
    (['~--data', '--dataset wds/nothing'], 'wds/nothing, split train: no images can be read from it'),
    (['--num-classes 2'], 'train has labels 0..3, which do not fit num_classes=2: they must lie in 0..1'),
    (['--num-classes 1'], 'num_classes=1 must be >= 2'),
    (['--class-map nowhere.txt'], 'no images can be read from it'),
    (['--batch-size 100'], '24 training images are fewer than one batch of 100: choose a batch_size of at most 24'),
    (['--batch-size 1'], 'batch_size=1 does not go with batch norm .*choose at least 2, better 32'),
    (['--batch-size 0'], 'batch_size=0 must be >= 1'),
    (['--batch-size 7', '--mixup 0.2'], 'mixup and cutmix pair the images of a batch: batch_size=7 must be even'),
    (['--aa rand-m9-mstd0.5'], "aa='rand-m9-mstd0.5' has no effect on images kept in memory.*leave it out"),
    (['--input-size 16 16'], 'must be three numbers, channels height width: 3 32 32'),
    (['--input-size 3 0 16'], 'input_size=0 must be >= 1'),
    (['--scale 1.0 0.5', '~--in-memory'], 'must be two fractions of the area, the smaller first'),
    (['--mean 0.5 0.5'], r'mean=\(0.5, 0.5\) has 2 values for 3 channels'),
    (['--std 0 0 0'], 'std=0 must be > 0'),
    (['~TEACHER'], 'no teacher: give the timm name of one'),
    (['TEACHER resnet_51'], "timm has no model 'resnet_51'.*close names: "),
    (['--student resmet18'], "timm has no model 'resmet18' .given as student.; close names: .*resnet18"),
    (['TEACHER test_vit3', '--model-kwargs img_size=32'], 'does not run on one image of input_size=.3, 16, 16.'),
    (['--pretrained'], "could not build the teacher 'test_resnet'"),
    (['--model-kwargs nonsense=1'], "could not build the teacher 'test_resnet' with .*nonsense"),
    (['--model-kwargs nonsense'], "'nonsense' is not KEY=VALUE"),
    (['--method sftm'], "unknown method 'sftm', perhaps 'sftn': give one of sftn, teskd, gtn, none"),
    (['--method none'], "method='none' trains a standard teacher, without branches: leave out student"),
    (['--method None', '~--student', '--boundaries 1', '--student-kwargs a=1'], 'leave out boundaries, student_kwargs'),
    (['~--student'], "method='sftn' needs a student: .*--student resnet18.*'none' for a standard teacher"),
    (['--method-kwargs kl_wieght=1'], "SFTN has no setting 'kl_wieght'; like it: kl_weight"),
    (['--method-kwargs x=1'], "SFTN has no setting 'x'; it has teacher_weight, ce_weight, kl_weight"),
    (['--outptu x'], 'sf-teacher train: --outptu x is not understood; like it: --output'),
    (['--data digits', '--dataset torch/cifar100'], "data='digits' and dataset='torch/cifar100' are two sources"),
    (['~--in-memory', '--crop-padding 2'], 'crop_padding=2 has no effect without in_memory'),
    (['--method-kwargs kl_weight=-1'], 'SFTN.kl_weight=-1.: kl_weight must be a finite number >= 0'),
    (['--method-kwargs detach_teacher_logits=0'], 'detach_teacher_logits must be True or False'),
    (['--boundaries 9'], 'has no boundary 9: it has'),
    (['--lr 0'], 'lr=0 must be > 0 and <= 100'),
    (['--lr -0.1'], 'lr=-0.1 must be > 0'),
    (['--lr 1e6'], r'lr=1e\+06 must be > 0 and <= 100'),
    (['--lr nan'], 'lr=nan must be > 0'),
    (['--lr fast'], 'invalid float value'),
    (['--epochs 0'], 'epochs=0 must be >= 1'),
    (['--warmup-epochs 3'], 'warmup_epochs=3 leaves nothing of epochs=1'),
    (['--min-lr 1'], 'min_lr=1 is above lr=0.05'),
    (['--sched wsd', '--decay-epochs 30'], 'sched=wsd: wsd schedule requires 0 < decay_epochs <= epochs'),
    (['--sched multistep'], r'decay_milestones=\(150, 180, 210\): none is within epochs=1, .*give earlier ones'),
    (['--amp-dtype bfloat16'], "amp_dtype='bfloat16' has no effect without amp: give amp, or leave it out"),
    (['--model-ema-decay 0.9'], 'model_ema_decay=0.9 has no effect without model_ema'),
    (['--sched plateau'], 'invalid choice'),
    (['--opt sgdd'], "timm has no optimizer 'sgdd'; like it: .*sgd"),
    (['--opt fusedsgd'], "optimizer 'fusedsgd' cannot be used here .*: choose another"),
    (['--torchcompile inductr'], "torchcompile='inductr' is no backend of torch.compile here: give one of .*inductor"),
    (['--no-aug', '--crop-padding 2'], 'crop_padding=2 has no effect with no_aug: leave out one of them'),
    (['--momentum 2'], 'momentum=2 must be >= 0 and <= 1'),
    (['--smoothing 1'], 'smoothing=1 must be >= 0 and <= 0.99'),
    (['--sync-bn'], 'sync_bn works between GPUs only: leave it out on the CPU'),
    (['--device cuda:99'], "device='cuda:99' cannot be used here .*try cpu"),
    (['--device warp'], "device='warp' cannot be used here"),
    (['~--output'], 'no output: give the folder for the results'),
    (['--output {data}/train/class0/0.png/run'], 'cannot write to output=.*Not a directory'),
    (['--config nowhere.yaml'], 'cannot read the config nowhere.yaml: .*No such file'),
]


@pytest.mark.parametrize(('args', 'message'), TRAIN, ids=[' '.join(args) for args, _ in TRAIN])
def test_train_refuses(args, message, call, data, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in data.rglob('*')}
    code, err = call('train', *args)
    assert code not in (0, None) and re.search(message, ' '.join(err.split())), err
    assert not list(tmp_path.rglob('checkpoint-*')), 'it was found too late'
    assert {p: p.stat().st_mtime_ns for p in data.rglob('*')} == before


DISTILL = [
    (['--teacher nowhere'], "teacher='nowhere' is no exported timm folder .config.json and model.safetensors missing"),
    (['--teacher {data}'], 'is no exported timm folder'),
    (['~--student'], 'no student: give the timm name of one'),
    (['~--teacher', '--kd student_friendly', '--kd-temperature 7'], 'kd, kd_temperature: without a teacher'),
    (['--kd fancy'], "kd='fancy' must be one of plain"),
    (['--data digits'], 'the teacher in .* has 4 classes and the data 10: give the data that it was trained on'),
    (['--input-size 3 32 32'], 'teacher .* does not take images of input_size=.3, 32, 32.'),
    (['--kd-temperature 0'], 'kd_temperature=0 must be > 0'),
    (['--distill-loss-weight -1'], 'distill_loss_weight=-1 must be >= 0'),
]


@pytest.mark.parametrize(('args', 'message'), DISTILL, ids=[' '.join(args) for args, _ in DISTILL])
def test_distill_refuses(args, message, call):
    code, err = call('distill', *args)
    assert code not in (0, None) and re.search(message, ' '.join(err.split())), err
    assert not os.path.exists('run')


YAML = [
    ('epochs: [1', 'is not YAML'),
    ('- epochs', 'must hold "setting: value" lines; it holds a list'),
    ('epoch: 3', "there is no setting 'epoch'; like it: epochs"),
    ('momentum: high', "momentum='high' must be a float; it is a str"),
    ('sched: plateau', "sched='plateau' must be one of cosine"),
    ('amp: 1', 'amp=1 must be a bool; it is a int'),
]


@pytest.mark.parametrize(('text', 'message'), YAML, ids=[text for text, _ in YAML])
def test_yaml_is_checked(text, message, call, tmp_path):
    (tmp_path / 'config.yaml').write_text(text)
    code, err = call('train', '--config config.yaml')
    assert code == 1 and re.search(message, err), err


def test_empty_folder(data, tmp_path, call):
    for split in ('train', 'validation'):
        (tmp_path / 'empty' / split).mkdir(parents=True)
    assert re.search('no images can be read from it .*Found 0 images', call('train', '--data empty')[1])


def test_no_tar(tmp_path, call):
    (tmp_path / 'tars').mkdir()
    for split in ('train', 'validation'):
        (tmp_path / 'tars' / f'{split}.tar').write_bytes(b'no tar')
    err = call('train', '--data tars')[1]
    assert re.search('train.tar, split train: no images can be read from it .ReadError', err)


def test_class_missing_in_validation(data, tmp_path, call):
    shutil.copytree(data, tmp_path / 'less')
    shutil.rmtree(tmp_path / 'less/validation/class1')
    code, err = call('train', '--data less')
    assert code == 1 and re.search('classes of train .4. and validation .3. differ, e.g. in class1: labels would not '
                                   'mean the same. Add what is missing, or give class_map', err)
    (tmp_path / 'map.txt').write_text('class0\nclass1\nclass2\nclass3\n')
    found = load_data(DataConfig(data=str(tmp_path / 'less'), class_map=str(tmp_path / 'map.txt')))
    assert found.num_classes == 4


@pytest.mark.parametrize('content', [b'no image', None], ids=['foreign', 'truncated'])
def test_corrupt_image_is_named_before_training(content, data, tmp_path, call):
    shutil.copytree(data, tmp_path / 'bad')
    path = tmp_path / 'bad/train/class1/13.png'
    path.write_bytes(content or path.read_bytes()[:-200])
    code, err = call('train', '--data bad')
    assert code == 1 and re.search('image class1/13.png of the dataset cannot be decoded .*repair it or take', err)


def test_images_too_large_for_memory():
    with pytest.raises(SFTeacherError, match=r'need .* GiB of memory and .* are free: choose a smaller input_size'):
        load_images([None] * 10 ** 6, (3, 1024, 1024))


def test_more_processes_than_images(data):
    config = TrainConfig()
    found = Data([None] * 3, [None] * 3, 2)
    with pytest.raises(SFTeacherError, match='3 training images are fewer than one batch of 1 on each of 4 processes: '
                                             'choose a batch_size of at most 1, and fewer than 4 processes'):
        create_loaders(found, DataConfig(batch_size=1), config, {}, torch.device('cpu'), 0, 4)


def test_two_runs_into_one_folder(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    before = (tmp_path / 'run/checkpoint-00001.pt').read_bytes()
    with pytest.raises(SFTeacherError, match='holds a run already: continue it with resume, or choose another output'):
        runs.train(tmp_path / 'run', 'plain', epochs=1)
    assert (tmp_path / 'run/checkpoint-00001.pt').read_bytes() == before


def test_a_refused_run_leaves_the_folder_free(tmp_path):
    with pytest.raises(SFTeacherError, match="timm has no optimizer 'sdg'"):
        runs.train(tmp_path / 'run', 'plain', epochs=1, opt='sdg')
    assert not (tmp_path / 'run/config.yaml').exists()
    assert len(runs.train(tmp_path / 'run', 'plain', epochs=1)) == 1
    with pytest.raises(SFTeacherError, match='holds a run already') as kept:     # as an interactive session keeps it
        runs.train(tmp_path / 'run', 'plain', epochs=1)
    assert kept.tb is not None and len(runs.train(tmp_path / 'run', 'plain', epochs=1, resume=True)) == 1


def test_two_processes_into_one_folder_at_once(tmp_path):
    config = TrainConfig(output=str(tmp_path / 'run'))
    first = RunFolder(config.output, config, resume=False)
    with pytest.raises(SFTeacherError, match=r'another process is training into .*: choose another output'):
        RunFolder(config.output, config, resume=True)
    first.close()
    RunFolder(config.output, config, resume=True).close()


def test_resume_with_other_settings(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    with pytest.raises(SFTeacherError, match=r'started with other settings .lr: 0.02 then, 0.5 now.: resume it with'):
        runs.train(tmp_path / 'run', 'plain', epochs=1, resume=True, lr=0.5)


def test_checkpoint_of_another_model(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    task = ClassificationTask(timm.create_model('test_byobnet', num_classes=4), verbose=False)
    with pytest.raises(SFTeacherError, match=r'is that of another model or optimizer: .*ByobNet'):
        training.fit(task, *runs.loaders(), runs.settings(tmp_path / 'run', epochs=1, resume=True))


def test_resume_with_another_number_of_processes(tmp_path):
    runs.train(tmp_path / 'run', 'plain', epochs=1)
    path = tmp_path / 'run/checkpoint-00001.pt'
    state = torch.load(path, weights_only=True)
    torch.save(state | {'rng': state['rng'] * 2}, path)
    with pytest.raises(SFTeacherError, match='trained by 2 processes and this is 1: resume it with as many'):
        runs.train(tmp_path / 'run', 'plain', epochs=1, resume=True)


def test_truncated_teacher(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / 'teacher')
    weights = tmp_path / 'teacher/model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SFTeacherError, match=r'timm cannot load the teacher in .*`sf-teacher verify .*` says more'):
        load_teacher(str(tmp_path / 'teacher'))


def test_loader_without_a_batch():
    with pytest.raises(SFTeacherError, match='the training loader has no batch: fewer images than one batch'):
        training.fit(runs.task('plain'), [], None, TrainConfig())


def test_nan_in_the_images_is_told_from_nan_in_the_loss(tmp_path):
    train, evaluation = runs.loaders()
    train.std[:] = 0.
    train.mean[:] = train.images[0, 0, 5, 5].float()
    with pytest.raises(SFTeacherError, match='epoch 1, batch 1: the images hold values that are not finite'):
        training.fit(runs.task('plain'), train, evaluation, runs.settings(tmp_path / 'run', mixup=0.))
    assert runs.final_state(tmp_path / 'run')['epoch'] == 0


def test_a_term_that_is_not_finite_is_named_with_its_branch(tmp_path):
    task = runs.task('teacher')
    name = task.branches.names[1]
    with torch.no_grad():
        next(task.branches.branches[1].tail.parameters()).fill_(float('inf'))
    before = {k: v.clone() for k, v in task.teacher.named_parameters()}
    with pytest.raises(SFTeacherError, match=rf'branch_ce/{name} is nan.*logits of branch {name} has values.*'
                                             'The checkpoint after 0 epochs is kept in .*lower lr, clip_grad=1'):
        training.fit(task, *runs.loaders(), runs.settings(tmp_path / 'run'))
    assert all(torch.equal(before[k], v) for k, v in task.teacher.named_parameters())


def test_divergence_keeps_the_last_good_checkpoint(tmp_path):
    output = tmp_path / 'run'
    with pytest.raises(SFTeacherError, match=r'not finite.*is kept in'):
        runs.train(output, 'plain', epochs=30, lr=100., clip_grad=None, sched='constant', opt='sgd', warmup_epochs=0)
    state = runs.final_state(output)
    assert all(v.isfinite().all() for v in state['state_dict'].values())


def test_mixup_needs_the_number_of_classes():
    task = ClassificationTask(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)), verbose=False)
    with pytest.raises(SFTeacherError, match='mixup and cutmix need the number of classes'):
        training.fit(task, *runs.loaders(), TrainConfig(mixup=0.2))


def test_mixup_of_an_odd_batch(tmp_path):
    images = [(torch.randn(3, 16, 16), i % runs.CLASSES) for i in range(7)]
    loader = torch.utils.data.DataLoader(images, 4)
    with pytest.raises(SFTeacherError, match='batch 2 has 3: use an even batch_size and drop_last=True'):
        training.fit(runs.task('plain'), loader, None, TrainConfig(epochs=1, mixup=0.2))


def test_one_class(tmp_path, call):
    runs.folder(tmp_path / 'one', classes=1)
    code, err = call('train', '--data one')
    assert code == 1 and re.search('one holds one class .class0.: give images of at least 2', ' '.join(err.split()))


def test_another_size_than_the_teachers_is_said(data, tmp_path, caplog):
    path = tmp_path / 'teacher'
    timm.models.save_for_hf(timm.create_model('test_resnet', num_classes=4), str(path), safe_serialization=True,
                            model_args=dict(num_classes=4), data_config=dict(input_size=(3, 16, 16)))
    plan_student(StudentRun(teacher=str(path), student='test_resnet', data=str(data), input_size=(3, 32, 32),
                            in_memory=True, batch_size=8, device='cpu'))
    assert re.search(r'was exported for images of \(3, 16, 16\) and gets \(3, 32, 32\)', caplog.text)


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(SFTeacherError, match='needs tensorboard: pip install tensorboard, or leave it out'):
        runs.train(tmp_path / 'run', 'plain', epochs=1, tensorboard=True)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(SFTeacherError, match='comes with scikit-learn, which is not installed'):
        load_data(DataConfig(data='digits'))


def test_smoothing_that_nothing_would_do():
    task, config = runs.task('plain'), runs.settings(epochs=1, smoothing=0.1, mixup=0.)
    with pytest.raises(SFTeacherError, match=r'smoothing=0.1 has no effect.*CrossEntropyLoss.*criterion\(config\)'):
        training.fit(task, *runs.loaders(), config)
    task.criterion = training.criterion(config)
    assert len(training.fit(task, *runs.loaders(), config)) == 1
