"""Settings of the images, of which flags and YAML come. Names and meanings are timm's, as in its train script."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import SettingError
from ..validation import Checked, option, setting

NO_SPLIT = 'none'       # as train_split: no labelled images to train on


@dataclass(frozen=True)
class DataConfig(Checked):
    """The images: where they are, how they are brought to the network."""
    data: str = option(
        '', "'digits', or the folder that holds the splits, as folders or .tar files (with --dataset: timm's root)")
    dataset: str = option('', "timm's dataset name, e.g. torch/cifar100, hfds/cifar100 (default: folders or tars)")
    train_split: str = option('train', 'training split, or the folder or .tar of that name in --data')
    val_split: str = option('validation', 'validation split; val, valid, eval, test are tried too')
    dataset_download: bool = option(False, 'let torch/* datasets download themselves', free=True)
    class_map: str = option('', "file that maps class names to indices, as timm's")
    num_classes: int | None = option(None, 'classes (default: those of the data)', low=2)
    batch_size: int = option(128, 'images in a batch, on each process', low=1, high=2 ** 20)
    validation_batch_size: int | None = option(
        None, 'the same for validation (default: --batch-size)', low=1, high=2 ** 20)
    input_size: tuple[int, ...] | None = option(
        None, "C H W (default: the model's; a student's: its teacher's)", low=1, high=2 ** 14)
    mean: tuple[float, ...] | None = option(
        None, "mean of the pixels, scaled to 0..1 (default: the model's; a student's: its teacher's)", low=0, high=1)
    std: tuple[float, ...] | None = option(
        None, "standard deviation of the pixels, scaled to 0..1 (default: the model's; a student's: its teacher's)",
        above=0, high=1)
    interpolation: str | None = option(
        None, "how images are resized (default: the model's; a student's: its teacher's)",
        choices=('bilinear', 'bicubic', 'nearest', 'box', 'hamming', 'lanczos'))
    crop_pct: float | None = option(
        None, 'without --in-memory: part of a resized image that validation sees (default: the same)', above=0, high=1)
    in_memory: bool = option(False, 'decode all images once; crop and flip batches on the device (small images)')
    crop_padding: int = option(4, 'with --in-memory: pixels of padding for the random crop (0: no crop)', low=0)
    hflip: float | None = option(None, 'probability of a flip (default: 0.5; digits: 0)', low=0, high=1)
    scale: tuple[float, ...] = option((0.08, 1.), 'without --in-memory: area of the random crop', above=0, high=1)
    color_jitter: float = option(0.4, 'without --in-memory: colour jitter', low=0)
    aa: str = option('', "without --in-memory: timm's AutoAugment policy, e.g. rand-m9-mstd0.5")
    reprob: float = option(0., 'without --in-memory: probability of random erasing', low=0, high=1)
    no_aug: bool = option(False, 'no augmentation at all')
    workers: int = option(4, 'without --in-memory: loading processes', low=0, high=1024, free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        written = self._written
        check_size(self)
        if len(self.scale) != 2 or self.scale[0] > self.scale[1]:
            raise SettingError(f'{written("scale")} must be two fractions of the area, the smaller first: 0.08 1.0')
        if self.data == 'digits' and self.dataset:
            raise SettingError(f'{written("data")} and {written("dataset")} are two sources of images: leave out one')
        of_files = ('color_jitter', 'aa', 'reprob', 'scale')
        for name in self.given(*of_files, 'crop_pct') if self.kept_in_memory else ():
            raise SettingError(
                f'{written(name)} has no effect on images kept in memory, which are resized once and whose '
                f'augmentation is {setting("crop_padding")} and {setting("hflip")}: leave it out, or '
                f'{setting("in_memory")}')
        for name in () if self.kept_in_memory else self.given('crop_padding'):
            raise SettingError(f'{written(name)} has no effect without {setting("in_memory")}: leave it out, or give '
                               f'{setting("in_memory")}')
        for name in self.given('crop_padding', *of_files) if self.no_aug else ():
            raise SettingError(f'{written(name)} has no effect with {setting("no_aug")}: leave out one of them')

    @property
    def kept_in_memory(self) -> bool:
        """Whether images are decoded and resized once."""
        return self.in_memory or self.data == 'digits'


def check_size(config: Any) -> None:
    if config.input_size is not None and len(config.input_size) != 3:
        raise SettingError(f'{setting("input_size", config.input_size)} must be three numbers, channels height width: '
                           f'3 32 32')
