"""Image folders as people have them: nothing vanishes without a word, and nothing that is no image becomes a class."""
import contextlib
import logging
import os
import re
import shutil
import socket
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image

from sf_teacher import SFTeacherError, cli, training
from sf_teacher.data import copies
from sf_teacher.data.classes import check_same_classes, class_names
from sf_teacher.data.copies import find_copies
from sf_teacher.data.datasets import load_data
from sf_teacher.data.image_files import FolderReader, ImageFiles, in_mode, scan, suffixes
from sf_teacher.data.in_memory import load_images
from sf_teacher.data.loaders import create_loaders
from sf_teacher.data.settings import DataConfig
from sf_teacher.data.unlabelled import WithUnlabelled
from sf_teacher.exporting.class_names import class_names_of
from sf_teacher.exporting.exported import load_teacher
from sf_teacher.training.settings import TrainConfig

from ..training import training_runs as runs


@pytest.fixture
def root(tmp_path):
    return runs.folder(tmp_path / 'data')


def load(root, **kwargs):
    return load_data(DataConfig(data=str(root), **kwargs))


def test_every_format_that_pillow_decodes_is_read(root):
    expected = load_images(load(root).train, runs.SIZE)[0]
    for i, path in enumerate(sorted(root.rglob('*.png'))):
        suffix = ('.webp', '.bmp', '.tif', '.PNG')[i % 4]
        Image.open(path).save(path.with_suffix(suffix), lossless=True)
        path.unlink()
    data = load(root)
    assert len(data.train) == len(data.validation) == 24
    assert torch.equal(load_images(data.train, runs.SIZE)[0], expected)


def test_what_is_left_out_is_counted_and_named(root, caplog):
    train = root / 'train'
    (train / '.ipynb_checkpoints').mkdir()
    shutil.copy(next(train.rglob('*.png')), train / '.ipynb_checkpoints/copy.png')
    (train / '__MACOSX').mkdir()
    shutil.copy(next(train.rglob('*.png')), train / 'class0/._0.png')
    shutil.copy(next(train.rglob('*.png')), train / 'loose.png')
    for name in ('a.svg', 'b.npy', 'c.txt', 'd.json'):
        (train / 'class0' / name).write_text('x')
    (train / 'class9').mkdir()
    (train / 'class0/gone.png').symlink_to(root / 'nowhere.png')
    os.mkfifo(train / 'class1/pipe.png')
    with socket.socket(socket.AF_UNIX) as s:
        with contextlib.chdir(train / 'class1'):        # a socket's path is short
            s.bind('socket.png')
        caplog.set_level(logging.WARNING)
        data = load(root)
    assert len(data.train) == 24 and list(class_names(data.train)) == [f'class{i}' for i in range(4)]
    for text in ('3 hidden: ', '.ipynb_checkpoints', '1 in no folder of a class: loose.png',
                 '4 no images by their ending: a.svg, b.npy, c.txt ...', '1 folders without an image: class9',
                 '1 links to nothing: gone.png', '2 no regular files: pipe.png, socket.png'):
        assert text in caplog.text
        assert text in data.contents[0]
    assert data.contents[0].startswith('train: 24 images of 4 classes (class0 6, class1 6, class2 6, class3 6); left')
    assert data.contents[1] == 'validation: 24 images of 4 classes (class0 6, class1 6, class2 6, class3 6)'


def test_many_classes_are_summarised(tmp_path):
    runs.folder(tmp_path / 'data', count=1, classes=20)
    shutil.copy(tmp_path / 'data/train/class3/3.png', tmp_path / 'data/train/class3/3b.png')
    assert load(tmp_path / 'data').contents[0] == 'train: 21 images of 20 classes (1 of class0 to 2 of class3)'


def test_loops_of_links_are_not_followed(root, caplog):
    (root / 'train/class0/again').symlink_to(root / 'train')
    (root / 'train/class1/other').symlink_to(root / 'train/class2')     # a link, and no loop
    (root / 'train/class2/back').symlink_to(root / 'train/class1')
    found, skipped = scan(root / 'train')
    assert len(found) == 24 + 6 + 6
    assert sorted(os.path.basename(p) for p in skipped['links back to a folder around them']) == [
        'again', 'back', 'other']


def test_an_unreadable_folder_is_an_error(root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('class2'):
            raise PermissionError(13, 'Permission denied')
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(SFTeacherError, match=r'class2 cannot be read \(Permission denied\): make it readable'):
        load(root)


def test_absent_classes_are_named(root, caplog):
    (root / 'map.txt').write_text('class0\nclass1\nclass2\nclass3\nbird\n')
    load(root, class_map=str(root / 'map.txt'))
    assert '1 of 5 classes have no image in train: bird' in caplog.text
    (root / 'map.txt').write_text('class0\nclass1\nclass2\n')
    load(root, class_map=str(root / 'map.txt'))
    assert '6 of a class that the class map does not have: 3.png' in caplog.text


def blobs(folder, **files):
    """Files that are no images, which nobody finds out by looking for copies."""
    for name, content in files.items():
        (folder / 'c').mkdir(parents=True, exist_ok=True)
        (folder / 'c' / f'{name}.png').write_bytes(content)
    return FolderReader(folder)


def names(paths):
    return [os.path.basename(path) for path in paths]


def test_renamed_copies_are_found_and_files_that_only_have_the_size_are_not(tmp_path):
    head = bytes(5000)
    train = blobs(tmp_path / 'a', x=b'abc', y=b'def', z=head + b'1', same=b'name')
    validation = blobs(tmp_path / 'b', p=b'abc', q=b'xyz', r=head + b'2', s=head + b'1', t=b'longer', same=b'name')
    found = find_copies(train, validation)
    assert (names(found.named), names(found.renamed)) == (['same.png'], ['p.png', 's.png'])
    assert found.looked_at == found.alike == 5


def test_so_many_files_at_most_are_opened_those_of_rare_sizes_first(tmp_path, monkeypatch, caplog):
    train = blobs(tmp_path / 'a', x=b'abc', **{f'n{i}': bytes([i]) for i in range(9)})
    validation = blobs(tmp_path / 'b', y=b'abc', z=bytes([3]), w=b'q')
    opened = []
    monkeypatch.setattr(copies, '_head', lambda path: opened.append(path) or b'')
    found = find_copies(train, validation, most=10)
    assert sorted(names(opened)) == ['x.png', 'y.png'] and names(found.renamed) == ['y.png']
    assert (found.looked_at, found.alike) == (1, 3)
    monkeypatch.setattr(copies, 'find_copies', lambda a, b: copies.Copies([], [], 1, 3))
    copies.check_copies(train, validation)
    assert 'renamed copies were looked for among 1 of the 3 validation images that have the size of a' in caplog.text


def test_a_few_renamed_copies_are_left_in_and_named(tmp_path, caplog):
    train = blobs(tmp_path / 'a', x=b'abc')
    validation = blobs(tmp_path / 'b', y=b'abc', **{f'n{i}': bytes(i + 4) for i in range(100)})
    copies.check_copies(train, validation)
    assert re.search(r'1 validation images are training images too, 1 under other names, e.g. .*y.png: they are few of '
                     '101, and left in', caplog.text)
    (tmp_path / 'b/c/x.png').write_bytes(b'abc')
    with pytest.raises(SFTeacherError, match='2 validation images are training images too, 1 under other names'):
        copies.check_copies(train, FolderReader(tmp_path / 'b'))


def test_a_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    train, validation = blobs(tmp_path / 'a', x=b'abc'), blobs(tmp_path / 'b', y=b'abc')
    monkeypatch.setattr(copies, '_head', lambda path: os.stat(path + '.gone'))      # root may read everything
    with pytest.raises(SFTeacherError, match=r'png.gone cannot be read \(No such file.*\): make it readable, or take'):
        copies.check_copies(train, validation)


def test_splits_of_one_dataset_must_differ():
    with pytest.raises(SFTeacherError, match='both read torch/cifar100, split train: give another val_split'):
        load_data(DataConfig(dataset='torch/cifar100', val_split='train'))


def test_sixteen_bits_are_scaled_not_clipped(root):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for path in (root / 'train').rglob('*.png'):
        Image.fromarray(values).save(path)
    images, _ = load_images(load(root).train, runs.SIZE)
    expected = torch.arange(256, dtype=torch.uint8).view(16, 16)
    assert all(torch.equal(channel, expected) for channel in images[0])
    stream = load(root).train
    assert isinstance(stream, ImageFiles) and np.array_equal(np.asarray(stream[0][0])[..., 0], expected.numpy())
    for largest in (65535, 4095):       # Pillow calls either mode I
        scaled = (values * (largest / 65535)).round().astype('>u2')
        (root / 'grey.pgm').write_bytes(b'P5 16 16 %d\n' % largest + scaled.tobytes())
        found = np.asarray(in_mode(Image.open(root / 'grey.pgm'), 'L')).astype(int)
        assert abs(found - expected.numpy().astype(int)).max() <= (largest == 4095)
    for image in (Image.new('F', (4, 4)), Image.new('I', (4, 4))):
        with pytest.raises(ValueError, match='numbers of 32 bits have no known range; store it with 8 or 16 bits'):
            in_mode(image, 'RGB')


def test_channels_other_than_one_and_three(root):
    assert cli.main(['train', 'test_resnet', '--method', 'none', '--data', str(root), '--input-size', '4', '16', '16',
                     '--output', str(root / 'run'), '--device', 'cpu']) == 1


@pytest.mark.parametrize('more', [['--in-memory'], ['--workers', '0'], []], ids=str)
def test_a_dry_run_decodes_nothing(more, root, tmp_path, capsys, monkeypatch):
    for path in root.rglob('*.png'):
        path.write_bytes(f'no image {path}'.encode())      # copies would be refused
    monkeypatch.setattr(Image, 'open', lambda *args: pytest.fail('decoded'))
    args = ['train', 'test_resnet', '--method', 'none', '--data', str(root), '--input-size', '3', '16', '16',
            '--batch-size', '8', '--device', 'cpu', '--output', str(tmp_path / 'run'), '--dry-run']
    assert cli.main(args + more) == 0
    out = capsys.readouterr().out
    for text in ('teacher:  test_resnet, ', 'epochs of 3 steps of 8 images', f'output:   {tmp_path}/run', 'measured: '):
        assert text in out


@pytest.mark.parametrize('workers', [0, 2])
def test_a_corrupt_image_is_named_when_it_is_met(workers, root, capfd):
    for path in (root / 'train').rglob('*.png'):
        path.write_bytes(path.read_bytes()[:60])
    config = DataConfig(data=str(root), batch_size=8, workers=workers)
    loaders = create_loaders(load_data(config), config, TrainConfig(), runs.DATA_CONFIG, torch.device('cpu'))
    with pytest.raises(SFTeacherError, match=r'^image class\d/\d+.png of the dataset cannot be decoded \(.*\): repair '
                                             r'it, or put another .* under the same name; without it .* start anew$'):
        training.fit(runs.task('plain'), *loaders, runs.settings(epochs=1, mixup=0.))


def test_a_decompression_bomb_is_named(root, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(SFTeacherError, match=r'image class0/0.png .* cannot be decoded \(Image size \(256 pixels\) '
                                             'exceeds limit'):
        load_images(load(root).train, runs.SIZE)
    with pytest.raises(SFTeacherError, match='exceeds limit'):
        load(root).train[0]


def test_a_flat_folder_without_classes(root):
    with pytest.raises(SFTeacherError, match=r'Found 0 images in .*6 in no folder of a class: 0.png.*lie in a folder '
                                             'for each class'):
        FolderReader(root / 'train/class0')
    reader = FolderReader(root / 'train/class0', labels='none')
    assert len(reader) == 6 and reader[0][1] == -1


def test_a_corrupt_image_among_those_without_labels_is_named_once(root):
    data = load(root)
    (root / 'train/class0/0.png').write_bytes(b'no image')
    with pytest.raises(SFTeacherError) as caught:
        load_images(WithUnlabelled(None, data.train), runs.SIZE)
    assert str(caught.value).count('cannot be decoded') == 1


def test_class_names_that_look_the_same_are_told_apart(root, tmp_path):
    for split, form in (('train', 'NFC'), ('validation', 'NFD')):
        (root / split / 'class1').rename(root / split / normalize(form, 'café'))
    with pytest.raises(SFTeacherError, match=r'differ, e.g. in .*, .* \(they look the same, .* NFC and NFD: re'):
        load(root)
    with pytest.raises(SFTeacherError, match=r'of a has other classes .* \(they look the same, .*side\); give the'):
        check_same_classes([normalize('NFC', 'é')], [normalize('NFD', 'é')], 'the teacher of a')


def test_names_of_classes_and_files_that_are_no_utf8(root, tmp_path):
    for split in ('train', 'validation'):
        os.rename(root / split / 'class0', os.fsencode(root / split) + b'/caf\xe9')
    image = next((root / 'train/class1').iterdir())
    os.rename(image, os.fsencode(image.parent) + b'/na\xefve.png')
    train = ['train', 'test_resnet', '--method', 'none', '--data', str(root), '--input-size', '3', '16', '16',
             '--batch-size', '8', '--epochs', '1', '--device', 'cpu', '--in-memory', '--output', str(tmp_path / 'run')]
    assert cli.main([*train, '--dry-run']) == cli.main(train) == cli.main([*train, '--resume']) == 0
    assert b'(caf\xe9 6, class1 6, ' in (tmp_path / 'run/images.txt').read_bytes()
    assert class_names_of(load_teacher(str(tmp_path / 'run')))[0] == os.fsdecode(b'caf\xe9')


def test_formats_that_run_programs_or_hold_films_are_not_read():
    assert {'.jpg', '.webp', '.bmp', '.png'} <= suffixes() and not suffixes() & {'.eps', '.ps', '.pdf', '.mpg', '.h5'}
