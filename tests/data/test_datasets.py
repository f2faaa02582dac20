import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from sf_teacher import SFTeacherError
from sf_teacher.data.classes import class_names
from sf_teacher.data.datasets import load_data, targets
from sf_teacher.data.fingerprint import fingerprint
from sf_teacher.data.in_memory import InMemoryLoader, load_images
from sf_teacher.data.loaders import create_loaders, flip_probability
from sf_teacher.data.opening import DigitsDataset
from sf_teacher.data.settings import DataConfig
from sf_teacher.data.unlabelled import with_unlabelled
from sf_teacher.training.settings import TrainConfig

from ..training import training_runs as runs


def test_several_names_of_a_class_are_one_class(tmp_path):
    """torchvision's ImageNet maps every synonym to its class."""
    data = load_data(DataConfig(data=str(runs.folder(tmp_path))), 0)
    for split in (data.train, data.validation):
        split.reader.class_to_idx = split.reader.class_to_idx | {f'synonym{i}': i for i in range(4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sf_teacher.data.datasets.open_split',
                      lambda config, training, *_: data.train if training else data.validation)
        assert load_data(DataConfig(data='x'), 0).num_classes == 4


def loader(count=40, batch_size=8, **kwargs):
    images = torch.arange(count * 3 * 6 * 6).remainder(251).to(torch.uint8).view(count, 3, 6, 6)
    return InMemoryLoader(images, torch.arange(count), batch_size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), **kwargs)


def collected(source, epoch=0):
    source.set_epoch(epoch)
    batches = list(source)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def reference_crop(images, labels, pad):
    """All crops and flips of each image, one at a time."""
    padded = torch.nn.functional.pad(images, [pad] * 4)
    size = images.shape[-1]
    for label in labels:
        yield [crop for y in range(2 * pad + 1) for x in range(2 * pad + 1)
               for crop in (padded[label, :, y:y + size, x:x + size],
                            padded[label, :, y:y + size, x:x + size].flip(-1))]


def test_evaluation_gives_every_image_in_order_normalised():
    source = loader(count=21)
    x, y = collected(source)
    assert y.tolist() == list(range(21)) and len(source) == 3
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    expected = (source.images.float() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


def test_training_gives_random_crops_and_flips_of_every_image_once():
    source = loader(is_training=True, crop_padding=2)
    x, y = collected(source)
    assert sorted(y.tolist()) == list(range(40)) and y.tolist() != list(range(40))
    pixels = (x * source.std + source.mean).round().to(torch.uint8)
    original = source.images[:, :, 2:-2, 2:-2]
    positions = [next(i for i, crop in enumerate(crops) if torch.equal(crop, got))
                 for got, crops in zip(pixels, reference_crop(original, y, 2), strict=True)]
    assert len(set(positions)) > 20 and 0.2 < np.mean([p % 2 for p in positions]) < 0.8


def test_order_crops_and_flips_are_a_function_of_seed_and_epoch_alone():
    a = collected(loader(is_training=True), 3)
    torch.rand(7)
    assert all(torch.equal(p, q) for p, q in zip(a, collected(loader(is_training=True), 3), strict=True))
    for other in (collected(loader(is_training=True), 4), collected(loader(is_training=True, seed=1), 3)):
        assert not torch.equal(a[1], other[1])
    orders = {tuple(collected(loader(is_training=True, seed=s), e)[1].tolist()) for s in range(5) for e in range(5)}
    assert len(orders) == 25


def test_ranks_share_each_global_batch():
    whole = [y for _, y in loader(is_training=True, batch_size=8)]
    parts = [[y for _, y in loader(is_training=True, batch_size=4, rank=r, world_size=2)] for r in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 5
    for batch, a, b in zip(whole, *parts, strict=True):
        assert torch.equal(batch, torch.cat([a, b]))


def test_ranks_evaluate_every_image_and_know_what_is_padding():
    parts = [loader(count=21, rank=r, world_size=2) for r in (0, 1)]
    labels = [collected(p)[1][:p.sampler.num_valid_samples].tolist() for p in parts]
    assert sorted(labels[0] + labels[1]) == list(range(21)) and len(parts[0]) == len(parts[1])


def test_the_last_incomplete_batch_of_training_is_dropped():
    assert [len(x) for x, _ in loader(count=21, is_training=True)] == [8, 8]


def test_folder_tars_and_memory_agree(tmp_path):
    root = runs.folder(tmp_path / 'folders')
    (tmp_path / 'tars').mkdir()
    for split in ('train', 'test'):
        with tarfile.open(tmp_path / f'tars/{split}.tar', 'w') as tar:
            tar.add(root / split.replace('test', 'validation'), arcname='.')
    found = [load_data(DataConfig(data=str(tmp_path / name))) for name in ('folders', 'tars')]
    assert found[0].num_classes == found[1].num_classes == runs.CLASSES
    for split in ('train', 'validation'):
        a, b = (load_images(getattr(f, split), runs.SIZE) for f in found)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert torch.equal(a[1], torch.as_tensor(targets(getattr(found[0], split)))) and len(a[1]) == 24
        assert list(class_names(getattr(found[1], split))) == [f'class{i}' for i in range(4)]


def test_images_are_resized_and_grey_where_asked(tmp_path):
    data = load_data(DataConfig(data=str(runs.folder(tmp_path, size=20))))
    images, _ = load_images(data.train, (1, 16, 16))
    assert images.shape == (24, 1, 16, 16) and images.float().std() > 1


def test_memory_and_streaming_loaders_evaluate_alike(tmp_path):
    data = load_data(DataConfig(data=str(runs.folder(tmp_path))))
    made = [create_loaders(data, DataConfig(in_memory=m, batch_size=8, workers=0), TrainConfig(), runs.DATA_CONFIG,
                           torch.device('cpu'))[1] for m in (True, False)]
    for (x, y), (p, q) in zip(*made, strict=True):
        torch.testing.assert_close(x, p, atol=1e-5, rtol=1e-5)
        assert torch.equal(y, q)


def test_digits_have_all_classes_in_both_splits_and_are_not_flipped():
    train, validation = DigitsDataset(True), DigitsDataset(False)
    assert len(train) + len(validation) == 1797 and set(validation.targets) == set(range(10)) == set(train.targets)
    assert isinstance(train[0][0], Image.Image)
    assert flip_probability(DataConfig(data='digits')) == 0. and flip_probability(DataConfig()) == 0.5
    assert flip_probability(DataConfig(data='digits', hflip=0.5)) == 0.5


def test_splits_go_by_their_usual_names(tmp_path):
    root = runs.folder(tmp_path)
    (root / 'validation').rename(root / 'val')
    assert len(load_data(DataConfig(data=str(root))).validation) == 24


def test_the_fingerprint_tells_images_and_labels_that_are_others(tmp_path):
    folder = runs.folder(tmp_path / 'data')
    (runs.folder(tmp_path / 'more') / 'train').rename(tmp_path / 'flat')
    config = DataConfig(data=str(folder))

    def found():
        data = load_data(config)
        return fingerprint(data), fingerprint(with_unlabelled(data, config, str(tmp_path / 'flat'), 3))
    first = found()
    assert found() == first and first[0] != first[1]
    seen = [first]
    for change in (lambda: next((folder / 'train').glob('class1/*')).unlink(),
                   lambda: next((folder / 'validation').glob('class2/*')).rename(folder / 'validation/class1/new.png'),
                   lambda: next((tmp_path / 'flat').glob('class3/*')).rename(tmp_path / 'flat/another.png')):
        change()
        seen.append(found())
    assert len({both for _, both in seen}) == 4 and len({alone for alone, _ in seen}) == 3


def test_an_absent_class_is_said(tmp_path, caplog):
    load_data(DataConfig(data=str(runs.folder(tmp_path)), num_classes=7))
    assert '3 of 7 classes have no image in train' in caplog.text


def test_torchvision_datasets_without_download(tmp_path):
    with pytest.raises(SFTeacherError, match=r'torch/cifar100, split train: no images can be read from it .*download'):
        load_data(DataConfig(dataset='torch/cifar100', data=str(tmp_path)))
