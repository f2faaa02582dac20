"""What is given to `fit`: loaders, images, labels, criteria; and what the loaders of a run are made from."""
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.task import ClassificationTask
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from sf_teacher import training
from sf_teacher.data.datasets import Data
from sf_teacher.data.in_memory import InMemoryLoader, load_images
from sf_teacher.data.loaders import create_loaders
from sf_teacher.data.settings import DataConfig
from sf_teacher.training import TrainConfig
from tests.training import training_runs as runs

from .row import rows


def batches(count=16, images=None, target=None, batch_size=8, **kwargs):
    x = torch.randn(count, *runs.SIZE) if images is None else images
    y = torch.arange(count) % runs.CLASSES if target is None else target
    return DataLoader(TensorDataset(x, y), batch_size, **kwargs)


def plain(criterion=None, model='test_resnet'):
    net = timm.create_model(model, num_classes=runs.CLASSES)
    return ClassificationTask(net, criterion if criterion is not None else torch.nn.CrossEntropyLoss(), verbose=False)


def fit(train=None, evaluation=None, task=None, **settings):
    task = task or plain()
    return training.fit(task, batches() if train is None else train, evaluation, TrainConfig(epochs=1, **settings))


class Mapped:
    """Batches of another kind."""

    def __init__(self, change, loader=None):
        self.change, self.loader = change, loader or batches()

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return map(self.change, self.loader)


def as_dict(batch):
    return {'image': batch[0], 'label': batch[1]}


def as_three(batch):
    return (*batch, batch[1])


def multi(count=16):
    return (torch.rand(count, runs.CLASSES) > 0.5).float()


def labelled(where, label):
    """16 labels of which one is another."""
    target = torch.arange(16) % 4
    target[where] = label
    return target


def streamed(target):
    """A loader whose labels nobody knows before they come."""
    return Mapped(lambda batch: batch, batches(target=target))


class NeverRead(Mapped):
    """A training loader for what is refused before the first step."""

    def __init__(self):
        super().__init__(None)

    def __iter__(self):
        raise AssertionError('a step was made')


class ImageFolderLike(Dataset):
    """Knows its labels as torchvision's image folders do."""

    def __init__(self, target, target_transform=None):
        self.samples = [(f'{i}.png', int(label)) for i, label in enumerate(target)]
        self.target_transform = target_transform or int

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return torch.randn(*runs.SIZE), self.target_transform(self.samples[index][1])


def stream():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(batches().dataset)
    return DataLoader(Stream(), 8)


def text(batch):
    return batch[0], ['cat'] * len(batch[1])


IGNORE = torch.tensor([0, 1, -100, 2] * 4)
FIT = {
    # loaders
    'dicts': (lambda: fit(Mapped(as_dict)), r"training loader gives mappings with 'image', 'label': give \(images"),
    'dicts in validation': (lambda: fit(evaluation=Mapped(as_dict)), "validation loader gives mappings with 'image'"),
    'three values': (lambda: fit(Mapped(as_three)), 'training loader gives 3 values a batch: give'),
    'three values in validation': (lambda: fit(evaluation=Mapped(as_three)), 'validation loader gives 3 values'),
    'images alone': (lambda: fit(Mapped(lambda b: b[0])), 'training loader gives a Tensor a batch: give'),
    'texts as labels': (lambda: fit(Mapped(text)), 'gives a Tensor and a list, not tensors: give'),
    'no length': (lambda: fit(stream()), r'training loader has no length .*give it a __len__'),
    'a generator': (lambda: fit(b for b in batches()), 'loader is a generator, which cannot be gone through in every'),
    'no loader': (lambda: fit(7), 'training loader is a int, which cannot'),
    'empty': (lambda: fit([]), 'training loader has no batch: fewer images than one batch'),
    'empty validation': (lambda: fit(evaluation=[]), 'validation loader has no batch: give images, or None'),
    'counts differ': (lambda: fit(Mapped(lambda b: (b[0], b[1][:3]))), 'gives 8 images and 3 targets in a batch'),
    'last batch of one': (lambda: fit(batches(17)), r'last batch of an epoch holds one image.*drop_last=True'),
    'batches of one': (lambda: fit(batches(3, batch_size=1)), 'batch_size=1 does not go with batch norm'),
    # images
    'uint8 images': (lambda: fit(batches(images=torch.zeros(16, *runs.SIZE, dtype=torch.uint8))),
                     r'gives images uint8 \[8, 3, 16, 16\]: .*float.*/ 255 less mean'),
    'double images': (lambda: fit(batches(images=torch.randn(16, *runs.SIZE).double())), 'gives images float64'),
    'double images in validation': (lambda: fit(evaluation=batches(images=torch.randn(16, *runs.SIZE).double())),
                                    'validation loader gives images float64'),
    'half images': (lambda: fit(batches(images=torch.randn(16, *runs.SIZE).half())),
                    r'batch 1 of epoch 1 failed \(RuntimeError: .*images float16 \[8, 3, 16, 16\]'),
    'channels last': (lambda: fit(batches(images=torch.randn(16, 16, 16, 3))), r'images float32 \[8, 16, 16, 3\]'),
    'one image channel': (lambda: fit(batches(images=torch.randn(16, 1, 16, 16))), r'images float32 \[8, 1, 16, 16\]'),
    'no batch dimension': (lambda: fit([(torch.randn(3, 16, 16), torch.zeros(3).long())]), 'float32 .3, 16, 16.'),
    'nan images': (lambda: fit(batches(images=torch.full((16, *runs.SIZE), float('nan')))), 'images hold values that'),
    # labels
    'ignore_index': (lambda: fit(batches(target=IGNORE), task=plain(torch.nn.CrossEntropyLoss(ignore_index=-100))),
                     'training loader gives label -100 for image 2 of .*whose labels are -100..2., which must lie in '
                     '0..3: an ignore_index is not supported'),
    'ignore_index in validation': (lambda: fit(evaluation=batches(target=IGNORE)), 'validation loader gives labels -1'),
    'labels from one': (lambda: fit(batches(target=torch.arange(16) % 4 + 1)),
                        r'whose labels are 1..4., which must lie'),
    'a label in a later batch': (lambda: fit(streamed(labelled(12, 9))),
                                'training loader gives labels 0..9 in batch 2, which must lie in 0..3'),
    'a label of a later image': (lambda: fit(batches(target=labelled(13, 9))),
                                 'training loader gives label 9 for image 13 of its dataset .whose labels are '
                                 '0..9., which must lie in 0..3'),
    'a label of a later image in validation': (
        lambda: fit(NeverRead(), batches(target=labelled(13, -100))),
        r'validation loader gives label -100 for image 13 of its dataset \(whose labels are -100..3\), which must'),
    'a label of a subset in validation': (
        lambda: fit(NeverRead(), DataLoader(Subset(ImageFolderLike(labelled(13, 9)), [0, 13]), 1)),
        'validation loader gives label 9 for image 1 of its dataset'),
    'a label in memory in validation': (
        lambda: fit(NeverRead(), InMemoryLoader(torch.zeros(16, *runs.SIZE, dtype=torch.uint8), labelled(13, 9), 4,
                                                [0.5] * 3, [0.5] * 3)), 'validation loader gives labels 0..9, which'),
    'a label in a later batch in validation': (
        lambda: fit(evaluation=streamed(labelled(12, 9))),
        'validation loader gives labels 0..9 in batch 2, which must lie in 0..3'),
    'an image in a later batch in validation': (
        lambda: fit(evaluation=[(torch.zeros(2, c, 16, 16), torch.zeros(2).long()) for c in (3, 3, 1)]),
        r'batch 3 of validation failed \(RuntimeError: .*images float32 \[2, 1, 16, 16\]'),
    'too many classes in validation': (lambda: fit(evaluation=batches(target=torch.arange(16))), 'labels 0..7, which'),
    'float labels': (lambda: fit(batches(target=torch.rand(16))), r'gives targets float32 \[8\] in batch 1: give'),
    'boolean labels': (lambda: fit(batches(target=torch.ones(16).bool())), r'gives targets bool \[8\] in batch 1'),
    'labels in columns': (lambda: fit(batches(target=torch.zeros(16, 1).long())),
                          r'targets int64 \[8, 1\] in batch 1: give'),
    'multi-label': (lambda: fit(batches(target=multi()), task=plain(torch.nn.BCEWithLogitsLoss())),
                    r'whose rows do not sum to 1: data with several labels an image \(multi-label\) are not supported'),
    'multi-label in validation': (lambda: fit(batches(target=multi()), batches(target=multi()),
                                              plain(torch.nn.BCEWithLogitsLoss())), 'multi-label. are not supported'),
    'one-hot validation': (lambda: fit(evaluation=batches(target=torch.eye(4).repeat(4, 1))),
                           r'validation loader gives targets float32 \[8, 4\]: accuracy is that of one label an image'),
    'whole-number multi-label': (lambda: fit(batches(target=multi().long())),
                                 r'targets int64 \[8, 4\] in batch 1: give labels'),
    # criteria
    'per-sample losses': (lambda: fit(task=plain(torch.nn.CrossEntropyLoss(reduction='none'))),
                          r"loss is of shape \[8\], not one number: give a criterion that averages .*reduction='mean'"),
    'a criterion for other targets': (lambda: fit(task=plain(torch.nn.BCEWithLogitsLoss())),
                                      r'batch 1 of epoch 1 failed \(ValueError.*int64 \[8\].*BCEWithLogitsLoss'),
    'soft targets for hard ones': (lambda: fit(batches(target=torch.eye(4).repeat(4, 1)),
                                               task=plain(LabelSmoothingCrossEntropy(0.1))),
                                   r'batch 1 of epoch 1 failed .*float32 \[8, 4\].*LabelSmoothingCrossEntropy'),
    'a function that gives a number': (lambda: fit(task=plain(lambda x, y: 1.)), 'loss is a float, not one number'),
    'another number of classes': (lambda: fit(task=ClassificationTask(torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(768, 2)), verbose=False)), r'batch 1 of epoch 1 failed \(IndexError'),
    # settings that only fail with the data
    'mixup of odd batches': (lambda: fit(batches(14, batch_size=7), mixup=0.2), 'batch 1 has 7: use an even'),
    'mixup of the last batch': (lambda: fit(batches(7, batch_size=4), mixup=0.2),
                                'batch 2 has 3: use an even batch_size and drop_last=True'),
    'mixup without a number of classes': (lambda: fit(mixup=0.2, task=ClassificationTask(torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(768, 4)), verbose=False)), 'mixup and cutmix need the number of classes'),
}
LOADERS = {
    'images too large for memory': (lambda: load_images([None] * 10 ** 6, (3, 1024, 1024)),
                                    r'need .* GiB of memory and .* are free: choose a smaller input_size'),
    'more processes than images': (
        lambda: create_loaders(Data([None] * 3, [None] * 3, 2), DataConfig(batch_size=1), TrainConfig(), {},
                               torch.device('cpu'), 0, 4),
        '3 training images are fewer than one batch of 1 on each of 4 processes: choose a batch_size of at most 1, and '
        'fewer than 4 processes'),
}
ROWS = [*rows('fit', FIT), *rows('create_loaders', LOADERS)]
