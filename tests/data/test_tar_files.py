"""Images in a .tar: the same ones as in the folder it was made of, and nothing vanishes without a word."""
import io
import shutil
import tarfile

import pytest
import torch
from PIL import Image

from sf_teacher import SFTeacherError, cli
from sf_teacher.data.datasets import load_data
from sf_teacher.data.in_memory import load_images
from sf_teacher.data.settings import DataConfig
from sf_teacher.data.tar_files import TarReader

from ..training import training_runs as runs


@pytest.fixture
def root(tmp_path):
    return runs.folder(tmp_path / 'data')


def load(root):
    return load_data(DataConfig(data=str(root)))


def packed(folder, path=None):
    """A tar of a folder in its place, or elsewhere."""
    path = path or folder.with_name(f'{folder.name}.tar')
    with tarfile.open(path, 'w') as tar:
        tar.add(folder, arcname='.')
    if path.parent == folder.parent:
        shutil.rmtree(folder)
    return path


def picture(shade=0):
    file = io.BytesIO()
    Image.new('RGB', (16, 16), (shade,) * 3).save(file, 'png')
    return file.getvalue()


def tar_of(path, *members):
    """A tar of pairs (name, bytes), or (name, kind, where to) for links."""
    with tarfile.open(path, 'w') as tar:
        for name, *what in members:
            member = tarfile.TarInfo(name)
            if len(what) == 1:
                member.size = len(what[0])
                tar.addfile(member, io.BytesIO(what[0]))
            else:
                member.type, member.linkname = what
                tar.addfile(member)
    return path


def test_runs_train_from_tars_and_learn_from_tars_without_labels(root, tmp_path):
    packed(runs.folder(tmp_path / 'more') / 'train', tmp_path / 'more.tar')
    for split in ('train', 'validation'):
        packed(root / split)
    common = ['--data', str(root), '--batch-size', '8', '--epochs', '1', '--device', 'cpu', '--in-memory']
    train = ['train', 'test_resnet', '--method', 'none', '--input-size', '3', '16', '16', *common]
    assert cli.main([*train, '--output', str(tmp_path / 'teacher')]) == 0
    assert (tmp_path / 'teacher/images.txt').read_text().startswith('train: 24 images of 4 classes (class0 6, class1 6')
    distill = ['distill', '--teacher', str(tmp_path / 'teacher'), '--student', 'test_resnet', *common,
               '--unlabelled', str(tmp_path / 'more.tar'), '--output', str(tmp_path / 'student')]
    assert cli.main(distill) == 0
    assert '\nunlabelled: 24 images\n' in (tmp_path / 'student/images.txt').read_text()
    assert cli.main([*distill, '--resume']) == 0


def test_tars_hold_the_same_formats_and_say_what_they_leave_out(root, caplog):
    for path in sorted((root / 'train').rglob('*.png'))[::2]:
        Image.open(path).save(path.with_suffix('.webp'), lossless=True)
        path.unlink()
    (root / 'train/class1/notes.txt').write_text('x')
    for left in ('train/.ipynb_checkpoints', 'train/class0/__MACOSX', 'train'):
        (root / left).mkdir(exist_ok=True)
        shutil.copy(root / 'train/class0/0.webp', root / left / 'copy.webp')
    expected = load_images(load(root).train, runs.SIZE)
    packed(root / 'train')
    caplog.clear()
    found = load(root)
    images = load_images(found.train, runs.SIZE)
    assert torch.equal(images[0], expected[0]) and torch.equal(images[1], expected[1])
    assert ('train: left out 2 hidden: copy.webp, copy.webp; 1 in no folder of a class: copy.webp; '
            '1 no images by their ending: notes.txt') in caplog.text
    assert found.train.filename(0) == 'class0/0.webp' and found.train.filename(0, basename=True) == '0.webp'


def test_what_is_no_image_of_its_own_is_left_out_and_named(tmp_path):
    path = tar_of(tmp_path / 'a.tar', ('a/0.png', picture(9)), ('a/._0.png', b'of macOS'), ('a/1.png', picture(1)),
                  ('a/hard.png', tarfile.LNKTYPE, 'a/0.png'), ('a/soft.png', tarfile.SYMTYPE, '0.png'),
                  ('a/pipe.png', tarfile.FIFOTYPE, ''), ('./a/0.png', picture(5)), ('/b/2.png', picture(2)))
    reader = TarReader(path)
    assert reader.samples == [('a/0.png', 0), ('a/1.png', 0), ('b/2.png', 1)]
    assert [Image.open(file).getpixel((0, 0))[0] for file, _ in map(reader.__getitem__, range(3))] == [5, 1, 2]
    assert reader.skipped == {
        'hidden': ['a/._0.png'], 'links, which are not followed in a tar': ['a/hard.png', 'a/soft.png'],
        'no regular files': ['a/pipe.png'], 'replaced by a later member of the same name': ['a/0.png']}


def test_a_tar_in_a_tar_is_a_folder(tmp_path):
    inner = tar_of(tmp_path / 'b.tar', ('0.png', picture(7)), ('deep/1.png', picture(8)))
    reader = TarReader(tar_of(tmp_path / 'a.tar', ('a/0.png', picture(3)), ('b.tar', inner.read_bytes())))
    assert reader.samples == [('a/0.png', 0), ('b/0.png', 1), ('b/deep/1.png', 2)]
    assert [Image.open(file).getpixel((0, 0))[0] for file, _ in map(reader.__getitem__, range(3))] == [3, 7, 8]


def test_a_tar_without_images_says_what_there_is(tmp_path):
    path = tar_of(tmp_path / 'a.tar', ('0.png', picture()), ('notes.txt', b'x'))
    with pytest.raises(SFTeacherError, match=r'Found 0 images in .*a.tar \(1 in no folder of a class: 0.png; 1 no im'):
        TarReader(path)
    assert TarReader(path, labels='none').samples == [('0.png', -1)]


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


@pytest.mark.parametrize('damaged', [flipped, lambda data, at: data[:at], lambda data, at: data[:at + 100]])
def test_a_damaged_or_incomplete_tar_is_refused(damaged, root, tmp_path):
    whole = tar_of(tmp_path / 'whole.tar', *((f'a/{i}.png', picture(i)) for i in range(4))).read_bytes()
    (root / 'train.tar').write_bytes(damaged(whole, whole.index(b'a/2.png')))
    tar_of(root / 'outer.tar', ('in.tar', (root / 'train.tar').read_bytes()), ('z/5.png', picture()))
    shutil.rmtree(root / 'train')
    for split, last in (('train', 'a/1.png'), ('outer', 'in/a/1.png')):
        with pytest.raises(SFTeacherError, match=rf'split {split}: .* damaged or incomplete behind {last}: copy'):
            load_data(DataConfig(data=str(root), train_split=split))


@pytest.mark.parametrize('padding', [0, 3 * 2 ** 20])
def test_what_follows_the_end_of_a_tar_is_not_passed_over(padding, tmp_path):
    first, second = (tar_of(tmp_path / f'{name}.tar', (f'{name}/0.png', picture())) for name in 'ab')
    (tmp_path / 'c.tar').write_bytes(first.read_bytes() + padding * b'\0')
    assert len(TarReader(tmp_path / 'c.tar')) == 1
    (tmp_path / 'c.tar').write_bytes(first.read_bytes() + padding * b'\0' + second.read_bytes())
    with pytest.raises(tarfile.ReadError, match=r'something follows its end behind a/0.png, .* by cat: pack'):
        TarReader(tmp_path / 'c.tar')
