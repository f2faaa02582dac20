"""What users get wrong on the command line: each message names flag or key, cause and remedy, and no file is lost."""
import os
import re
import shutil
import time

import pytest
from huggingface_hub import close_session

from sf_teacher import cli
from sf_teacher.training.data import load_data
from sf_teacher.training.settings import DataConfig

from ..training import training_runs as runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return runs.folder(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    return runs.fixed_size_teacher(tmp_path_factory.mktemp('teacher'))


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
    (['~--data'], 'no data: give --data digits, a folder with train and validation in it, or --dataset torch'),
    (['--data nowhere'], "--data nowhere is no folder: give the folder that holds the splits"),
    (['--train-split big'], 'there is no big in .*there are: train, validation. Name yours with --train-split'),
    (['--val-split train'], 'training and validation would both read .*train: give another --val-split'),
    (['~--data', '--dataset torch/nothing'], 'torch/nothing, split train: no images can be read from it'),
    (['~--data', '--dataset wds/nothing'], 'wds/nothing, split train: no images can be read from it'),
    (['--num-classes 2'], 'train has labels 0..3, which do not fit --num-classes 2: they must lie in 0..1'),
    (['--num-classes 1'], '--num-classes 1 must be a whole number >= 2'),
    (['--class-map nowhere.txt'], 'no images can be read from it'),
    (['--batch-size 100'], '24 training images are fewer than one batch of 100: choose a --batch-size of at most 24'),
    (['--batch-size 1'], '--batch-size 1 does not go with batch norm .*choose at least 2, better 32'),
    (['--batch-size 0'], '--batch-size 0 must be a whole number >= 1'),
    (['--batch-size 7', '--mixup 0.2'], 'mixup and cutmix pair the images of a batch: --batch-size 7 must be even'),
    (['--aa rand-m9-mstd0.5'], '--aa rand-m9-mstd0.5 has no effect on images kept in memory.*leave it out, or --in-me'),
    (['--input-size 16 16'], 'must be three numbers, channels height width: 3 32 32'),
    (['--workers 100000', '~--in-memory'], '--workers.*must be a whole number >= 0 and <= 1024'),
    (['--threads 0'], '--threads.*must be a whole number >= 1 and <= 1024'),
    (['--input-size 3 100000 16'], '--input-size.*must be a list of whole numbers >= 1 and <= 16384'),
    (['--batch-size 99999999999'], '--batch-size.*must be a whole number >= 1 and <= 1048576'),
    (['--std nan 1 1'], '--std.*must be a list of finite numbers > 0'),
    (['--std -1 1 1'], '--std.*must be a list of finite numbers > 0'),
    (['--mean inf 0 0'], '--mean.*must be a list of finite numbers'),
    (['--input-size 3 0 16'], '--input-size 3 0 16 must be a list of whole numbers >= 1'),
    (['--scale 1.0 0.5', '~--in-memory'], 'must be two fractions of the area, the smaller first'),
    (['--mean 0.5 0.5'], '--mean 0.5 0.5 has 2 values for 3 channels'),
    (['--std 0 0 0'], '--std 0 0 0 must be a list of finite numbers > 0'),
    (['~TEACHER'], 'no teacher: give the timm name of one'),
    (['TEACHER resnet_51'], "timm has no model 'resnet_51'.*like it: "),
    (['--student resmet18'], "timm has no model 'resmet18' .given as student.; like it: .*resnet18"),
    (['TEACHER test_vit3', '--model-kwargs img_size=32'], 'does not run on one image of input_size=.3, 16, 16.'),
    (['--model-kwargs nonsense=1'], "could not build the teacher 'test_resnet' with .*nonsense"),
    (['--model-kwargs nonsense'], "'nonsense' is not KEY=VALUE"),
    (['--method sftm'], "unknown method 'sftm'; like it: sftn: give one of aid, .*teskd, none"),
    (['--method mcmi', '~--student'], "MCMI needs a trained teacher, and 'test_resnet' would have random weights"),
    (['--method aid'], "AID needs a trained teacher, and 'test_resnet' would have random weights: give local-dir:"),
    (['--method none'], "--method none trains a standard teacher, without branches: leave out --student"),
    (['--method None', '~--student', '--boundaries 1', '--student-kwargs a=1'], 'leave out --boundaries, --student-kw'),
    (['~--student'], "--method sftn needs a student: .*--student resnet18, or --method none for a standard teacher"),
    (['--method-kwargs kl_wieght=1'], "SFTN has no setting 'kl_wieght'; like it: kl_weight"),
    (['--method-kwargs x=1'], "SFTN has no setting 'x'; there are teacher_weight, ce_weight, kl_weight"),
    (['--outptu x'], 'sf-teacher train: --outptu x is not understood; like it: --output'),
    (['--data digits', '--dataset torch/cifar100'], "--data digits and --dataset torch/cifar100 are two sources"),
    (['~--in-memory', '--crop-padding 2'], '--crop-padding 2 has no effect without --in-memory'),
    (['--method-kwargs kl_weight=-1'], 'SFTN.kl_weight=-1.: kl_weight must be a finite number >= 0'),
    (['--method-kwargs detach_teacher_logits=0'], 'detach_teacher_logits must be True or False'),
    (['--boundaries 9'], 'has no boundary 9: it has'),
    (['--lr 0'], '--lr 0 must be a finite number > 0 and <= 100'),
    (['--lr -0.1'], '--lr -0.1 must be a finite number > 0'),
    (['--lr 1e6'], r'--lr 1e\+06 must be a finite number > 0 and <= 100'),
    (['--lr nan'], '--lr nan must be a finite number > 0'),
    (['--lr fast'], '--lr fast must be a finite number > 0 and <= 100'),
    (['--epochs 0'], '--epochs 0 must be a whole number >= 1'),
    (['--warmup-epochs 3'], '--warmup-epochs 3 leaves nothing of --epochs 1'),
    (['--min-lr 1'], '--min-lr 1 is above --lr 0.05'),
    (['--sched wsd', '--decay-epochs 30'], '--sched wsd: wsd schedule requires 0 < decay_epochs <= epochs'),
    (['--sched multistep'], '--decay-milestones 150 180 210: none is within --epochs 1, .*give earlier ones'),
    (['--amp-dtype bfloat16'], "--amp-dtype bfloat16 has no effect without --amp: give --amp, or leave it out"),
    (['--model-ema-decay 0.9'], '--model-ema-decay 0.9 has no effect without --model-ema'),
    (['--sched plateau'], '--sched plateau must be one of cosine, tanh'),
    (['--opt sgdd'], "timm has no optimizer 'sgdd'; like it: .*sgd"),
    (['--opt fusedsgd'], "optimizer 'fusedsgd' cannot be used here .*: choose another"),
    (['--torchcompile inductr'], "--torchcompile inductr is no backend of torch.compile here: give one of .*inductor"),
    (['--no-aug', '--crop-padding 2'], '--crop-padding 2 has no effect with --no-aug: leave out one of them'),
    (['--momentum 2'], '--momentum 2 must be a finite number >= 0 and <= 1'),
    (['--smoothing 1'], '--smoothing 1 must be a finite number >= 0 and <= 0.99'),
    (['--sync-bn'], '--sync-bn works between GPUs only: leave it out on the CPU'),
    (['--device cuda:99'], "--device cuda:99 cannot be used here .*try cpu"),
    (['--device warp'], "--device warp cannot be used here"),
    (['~--output'], 'no output: give the folder for the results, e.g. --output runs/first'),
    (['--output {data}/train/class0/0.png/run'], 'cannot write to --output .*Not a directory'),
    (['--config nowhere.yaml'], 'cannot read the config nowhere.yaml: no such file'),
]


@pytest.mark.parametrize(('args', 'message'), TRAIN, ids=[' '.join(args) for args, _ in TRAIN])
def test_train_refuses(args, message, call, data, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in data.rglob('*')}
    code, err = call('train', *args)
    assert code not in (0, None) and re.search(message, ' '.join(err.split())), err
    assert not (tmp_path / 'run').exists(), 'it was found too late'
    assert {p: p.stat().st_mtime_ns for p in data.rglob('*')} == before


DISTILL = [
    (['--teacher nowhere'], "--teacher nowhere is no exported timm folder .config.json and model.safetensors missing"),
    (['--teacher {data}'], 'is no exported timm folder'),
    (['~--student'], 'no student: give the timm name of one, e.g. --student resnet18'),
    (['~--teacher', '--kd student_friendly', '--kd-temperature 7'], '--kd, --kd-temperature: without a teacher'),
    (['--kd fancy'], "--kd fancy must be one of plain"),
    (['--data digits'], 'the teacher in .* has 4 classes and the data 10: give the data that it was trained on'),
    (['--input-size 3 32 32'], 'teacher .* does not take images of --input-size 3 32 32'),
    (['--kd-temperature 0'], '--kd-temperature 0 must be a finite number > 0'),
    (['--distill-loss-weight -1'], '--distill-loss-weight -1 must be a finite number >= 0'),
]


@pytest.mark.parametrize(('args', 'message'), DISTILL, ids=[' '.join(args) for args, _ in DISTILL])
def test_distill_refuses(args, message, call):
    code, err = call('distill', *args)
    assert code not in (0, None) and re.search(message, ' '.join(err.split())), err
    assert not os.path.exists('run')


YAML = [
    ('epochs: [1', "config.yaml, line 1 is not YAML: expected ',' or ']'"),
    ('- epochs', 'config.yaml must hold "setting: value" lines; it holds a list'),
    ('epoch: 3', "config.yaml: there is no setting 'epoch'; like it: epochs"),
    ('batch-size: 3', "config.yaml: there is no setting 'batch-size'; like it: batch_size"),
    ('momentum: high', 'config.yaml: momentum: high must be a finite number >= 0 and <= 1'),
    ('sched: plateau', 'config.yaml: sched: plateau must be one of cosine'),
    ('sched: cosin', 'config.yaml: sched: cosin must be one of cosine, .*; like it: cosine'),
    ('amp: 1', 'config.yaml: amp: 1 must be True or False'),
    ('seed: true', 'config.yaml: seed: true must be a whole number >= 0'),
    ('min_lr: .inf', 'config.yaml: min_lr: .inf must be a finite number'),
    ('seed: 10000000000000000000000', 'must be a whole number >= 0 and <= 2147483647'),
    ('boundaries: layer1', r'boundaries: layer1 must be a list of texts, e.g. boundaries: \[layer1\]'),
    ('decay_milestones: 3', r'decay_milestones: 3 must be a list of whole numbers >= 1, e.g. decay_milestones: \[3\]'),
    ('train_split: 2012', "train_split: 2012 must be text, e.g. train_split: '2012'"),
    ('method_kwargs: [kl_weight]', 'must be settings by name, e.g. method_kwargs: {NAME: VALUE}'),
    ('lr: 1\nseed: 3\nlr: 2', "config.yaml, line 3 is not YAML: 'lr' was given on line 1 already: leave out one"),
    ('method_kwargs: {a: 1, a: 2}', "line 1 is not YAML: 'a' was given on line 1 already"),
    ('a: &a [x, x]\nb: &b [*a, *a]', 'line 1 is not YAML: anchors .&. and aliases .*. are not read: write it out'),
    ('lr: ' + '[' * 10000, 'line 1 is not YAML: nested more than 10 deep'),
    ('lr: ' + '9' * 5000, 'config.yaml is not YAML: .*integer'),
    ('x: \0', 'config.yaml is not YAML: unacceptable character'),
    ('x: !!python/object/apply:os.getcwd []', 'line 1 is not YAML: could not determine a constructor'),
    ('#' * 2 ** 21, 'cannot read the config config.yaml: it is larger than 1 MiB'),
]


@pytest.mark.parametrize(('text', 'message'), YAML, ids=[text[:30] for text, _ in YAML])
def test_yaml_is_checked(text, message, call, tmp_path):
    (tmp_path / 'config.yaml').write_text(text)
    code, err = call('train', '--config config.yaml')
    assert code == 2 and re.search(message, err), err


def test_flags_win_over_a_file_and_each_is_blamed_for_its_own(call, tmp_path):
    (tmp_path / 'config.yaml').write_text('lr: 0\nepochs: 0\n')
    code, err = call('train', '--config config.yaml')     # `call` gives --epochs 1
    assert code == 2 and err.splitlines() == ['sf-teacher: config.yaml: lr: 0 must be a finite number > 0 and <= 100']
    err = call('train', '--config config.yaml', '--epochs 0')[1]
    assert '--epochs 0 must be a whole number >= 1' in err and 'config.yaml: lr: 0 must be' in err


@pytest.mark.parametrize('path', ['.', 'fifo', 'a' * 5000])
def test_a_config_that_is_no_file(path, call, tmp_path):
    os.mkfifo(tmp_path / 'fifo')
    code, err = call('train', f'--config {path}')
    assert code == 2 and 'cannot read the config' in err


@pytest.mark.parametrize('name', ['test_resnet', 'hf-hub:timm/test_resnet.r160_in1k', 'gcvit_xxtiny'])
def test_pretrained_weights_without_a_network(name, call, monkeypatch, tmp_path):
    """Nobody listens at this address; huggingface_hub's own client would try for a minute."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setenv('HTTPS_PROXY', 'http://127.0.0.1:9')
    close_session()
    began = time.monotonic()
    code, err = call('train', f'TEACHER {name}', '--pretrained')
    close_session()
    assert time.monotonic() - began < 10 and code == 1 and not os.path.exists('run')
    assert re.search(rf"weights of '{name}.*' .given as teacher. cannot be downloaded, as http.* is not reached .*: "
                     'train without them, or give local-dir:FOLDER', err), err


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
                                   'mean the same. Add what is missing, or give --class-map', err)
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


def test_one_class(tmp_path, call):
    runs.folder(tmp_path / 'one', classes=1)
    code, err = call('train', '--data one')
    assert code == 1 and re.search('one holds one class .class0.: give images of at least 2', ' '.join(err.split()))
