"""Image folders, tars and splits."""
import os
import shutil
from functools import partial

from PIL import Image

from sf_teacher.data.datasets import load_data
from sf_teacher.data.settings import DataConfig
from sf_teacher.training.planning import plan_student
from sf_teacher.training.settings import StudentRun
from tests.training import training_runs as runs

from .row import Exit, Place, Row, command, rows


def copied(place: Place):
    return shutil.copytree(place.data, place.here / 'data')


def empty(place: Place):
    for split in ('train', 'validation'):
        (place.here / 'data' / split).mkdir(parents=True)


def no_tars(place: Place):
    (place.here / 'data').mkdir()
    for split in ('train', 'validation'):
        (place.here / 'data' / f'{split}.tar').write_bytes(b'no tar')


def damaged(content, place: Place):
    path = copied(place) / 'train/class1/13.png'
    path.write_bytes(content or path.read_bytes()[:-200])


def less(place: Place):
    shutil.rmtree(copied(place) / 'validation/class1')


CORRUPT = 'image class1/13.png of the dataset cannot be decoded .*repair it, or put another'
FOLDERS = {
    'no image': (empty, 'no images can be read from it .*Found 0 images'),
    'a tar that is none': (no_tars, 'train.tar, split train: no images can be read from it .ReadError'),
    'an image that is none': (partial(damaged, b'no image'), f'^1: .*{CORRUPT}'),
    'a truncated image': (partial(damaged, None), f'^1: .*{CORRUPT}'),
    'one class': (lambda place: runs.folder(place.here / 'data', classes=1),
                  '^1: .*data holds one class .class0.: give images of at least 2'),
    'a class in one split only': (less, '^1: .*classes of train .4. and validation .3. differ, e.g. in class1: labels '
                                        'would not mean the same. Add what is missing, or give --class-map'),
}


def overlapping(place: Place):
    """Splits that are others, lie in them, or hold their images."""
    root = copied(place)
    (root / 'link').symlink_to(root / 'train')
    shutil.copytree(root / 'train', root / 'copy')
    shutil.copytree(root / 'train', root / 'hard', copy_function=os.link)
    shutil.copytree(root / 'validation', root / 'one')
    Image.new('RGB', (16, 16), 'red').save(root / 'train/class0/copied.png')
    shutil.copy(root / 'train/class0/copied.png', root / 'one/class0/copied.png')
    for split, renamed in (('renamed', root.joinpath('train').rglob('*.png')),
                           ('one-renamed', [root / 'train/class0/copied.png'])):
        shutil.copytree(root / 'validation', root / split)
        for i, path in enumerate(sorted(renamed)):
            shutil.copy(path, root / split / f'class{i % 4}' / f'other{i}.png')


OVERLAPS = [
    (dict(train_split='.'), r'validation lies in .*, and training and validation would share its images'),
    (dict(val_split=''), r'train lies in .*, and training and validation would share its images: give two folders'),
    (dict(val_split='train'), 'training and validation would both read .*train'),
    (dict(val_split='train/class0'), 'class0 lies in .*train'),
    (dict(val_split='link'), 'training and validation would both read'),
    (dict(val_split='copy'), '24 validation images are training images too, e.g. .*png: what is measured on them'),
    (dict(val_split='one'), '1 validation images are training images too, e.g. .*copied.png'),
    (dict(val_split='renamed'), '25 validation images are training images too, 25 under other names, e.g. .*other0'),
    (dict(val_split='one-renamed'), '1 validation images are training images too, 1 under other names, e.g. .*other0'),
    (dict(val_split='hard'), '24 validation images are training images too'),
]
MAPS = {
    'a blank line': ('class0\n\nclass1\nclass2\nclass3\n', 'map.txt, line 2 is blank, which would be a class: give'),
    'a line twice': ('class0\nclass1\nclass1\n', r"line 3 repeats 'class1' of line 2, which would shift the labels of"),
}
CHANNELS = {f'{n} channels': (
    lambda n=n: load_data(DataConfig(data='digits'), channels=n),
    f'input_size with {n} channels: images are read as grey') for n in (2, 4)}
UNLABELLED = [
    (dict(teacher=''), 'without a teacher there is nothing to learn of images without labels'),
    (dict(mixup=0.2), 'does not go with mixup and cutmix, which mix labels too'),
    (dict(distill_loss_weight=0.), 'has no effect with distill_loss_weight=0.0'),
    (dict(unlabelled='nowhere'), "unlabelled='nowhere' is neither a folder of images nor a .tar"),
    (dict(unlabelled='{data}/validation'), 'would both read .*validation: give another unlabelled, beside'),
    (dict(unlabelled='{data}/validation/class0'), 'class0 lies in .*validation, .* give another unlabelled, beside'),
    (dict(unlabelled='{data}'), 'validation lies in .*data, .*: give another unlabelled, beside .*validation'),
    (dict(train_split='none', smoothing=0.1), "smoothing=0.1 has no effect with train_split='none': nothing is"),
    (dict(train_split='none', task_loss_weight=0.5), "task_loss_weight=0.5 has no effect with train_split='none'"),
    (dict(unlabelled='copied'), '6 validation images are unlabelled images too, 6 under other names'),
    (dict(unlabelled='{teacher}'), r'Found 0 images in .*no images by their ending'),
]


def mapped(given, text, message):
    def prepare(place):
        copied(place)
        (place.here / 'map.txt').write_text(text)
    return Row('class_map', given, lambda place: load_data(DataConfig(data='data', class_map='map.txt')), message,
               prepare=prepare)


def without_labels(kwargs, message):
    def call(place):
        given = {k: v.format(data=place.data, teacher=place.teacher) if isinstance(v, str) else v
                 for k, v in kwargs.items()}
        plan_student(StudentRun(**{'teacher': str(place.teacher), 'student': 'test_resnet', 'data': str(place.data),
                                   'device': 'cpu', 'batch_size': 8, 'unlabelled': 'flat', 'workers': 0, **given}))
    def prepare(place):
        shutil.copytree(place.data / 'train/class0', place.here / 'flat')
        (place.here / 'copied').mkdir()
        for path in (place.data / 'validation/class0').iterdir():
            shutil.copy(path, place.here / 'copied' / f'u{path.name}')
    return Row('--unlabelled', str(kwargs), call, message, prepare=prepare)


ROWS = [
    *(Row('--data', given, lambda place: command(place, 'train', '--data data'), message, Exit, prepare)
      for given, (prepare, message) in FOLDERS.items()),
    *(Row('splits', str(splits), lambda place, splits=splits: load_data(DataConfig(data='data', **splits)), message,
          prepare=overlapping) for splits, message in OVERLAPS),
    *(mapped(given, *row) for given, row in MAPS.items()),
    *rows('load_data', CHANNELS),
    *(without_labels(kwargs, message) for kwargs, message in UNLABELLED),
]
