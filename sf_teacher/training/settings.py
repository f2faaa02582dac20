"""Settings of a run; flags and YAML come from them. Names and meanings are those of timm's train script wherever it has
them.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data.settings import DataConfig
from ..errors import SettingError
from ..validation import Checked, option, setting

SIMPLIFIER_LR = 0.0005    # StudentFriendlyKD's own, repeated so that the settings need no torch; a test compares them
_NEEDS = {'amp_dtype': 'amp', 'model_ema_decay': 'model_ema', 'model_ema_warmup': 'model_ema', 'clip_mode': 'clip_grad',
          'warmup_lr': 'warmup_epochs'}     # no effect without
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'none')
_FALLING = ('cosine', 'tanh', 'poly', 'wsd', 'rsqrt')
_OF_SCHEDULES = {'warmup_epochs': SCHEDULES[:-1], 'sched_on_updates': SCHEDULES[:-1], 'min_lr': _FALLING,
                 'decay_milestones': ('multistep',), 'decay_epochs': ('step', 'wsd', 'rsqrt'),
                 'decay_rate': ('step', 'multistep', 'poly')}


def idle_of_schedule(sched: str) -> list[str]:
    """Settings that have no effect on this schedule."""
    return [name for name, schedules in _OF_SCHEDULES.items() if sched not in schedules]


@dataclass(frozen=True)
class TrainConfig(Checked):
    """The loop: how long, with which optimizer and schedule, in which precision, and what is written where."""
    output: str = option('', 'folder of the run: config.yaml, summary.csv, checkpoints, the exported model', free=True)
    resume: bool = option(False, 'continue the run in --output from its newest complete checkpoint', free=True)
    seed: int = option(42, 'seed of weights, sampler and augmentation', low=0)
    device: str = option('', 'cpu, cuda, mps ... (default: cuda where there is one, else cpu)', free=True)
    threads: int | None = option(None, 'threads on the CPU (default: the cores that are really available, fewer for '
                                 'small batches of small images)', low=1, high=1024, free=True)
    epochs: int = option(100, 'epochs to train', low=1)
    opt: str = option('sgd', "optimizer, any of timm's")
    lr: float = option(0.05, 'learning rate', above=0, high=100)
    momentum: float = option(0.9, 'momentum', low=0, high=1)
    weight_decay: float = option(5e-4, 'weight decay', low=0, high=10)
    layer_decay: float | None = option(
        None, 'factor of the learning rate from each layer to the one below it (default: none)', above=0, high=1)
    sched: str = option('cosine', 'schedule of the learning rate', choices=SCHEDULES)
    sched_on_updates: bool = option(False, 'change the learning rate at every update, not every epoch')
    warmup_epochs: int = option(0, 'epochs of linear warm-up, counted within --epochs', low=0)
    warmup_lr: float = option(1e-5, 'learning rate at the start of the warm-up', low=0, high=100)
    min_lr: float = option(0., 'lowest learning rate of the schedule', low=0, high=100)
    decay_milestones: tuple[int, ...] = option((150, 180, 210), 'epochs at which multistep decays', low=1)
    decay_epochs: float = option(30., 'epochs between decays (step), or length of the decay (wsd, rsqrt)', above=0)
    decay_rate: float = option(0.1, 'factor of a decay', above=0, high=10)
    clip_grad: float | None = option(None, 'clip gradients to this (default: no clipping)', above=0)
    clip_mode: str = option('norm', 'how gradients are clipped', choices=('norm', 'value', 'agc'))
    grad_accum_steps: int = option(1, 'batches for one update', low=1)
    smoothing: float = option(0., 'label smoothing', low=0, high=0.99)
    mixup: float = option(0., 'alpha of mixup (0: none)', low=0)
    cutmix: float = option(0., 'alpha of cutmix (0: none)', low=0)
    amp: bool = option(False, 'mixed precision')
    amp_dtype: str = option('float16', 'lower precision of --amp', choices=('float16', 'bfloat16'))
    channels_last: bool = option(False, 'channels_last memory layout')
    torchcompile: str = option('', 'compile with this backend, e.g. inductor')
    model_ema: bool = option(False, 'keep a moving average of the weights; it is what is evaluated and exported')
    model_ema_decay: float = option(0.9998, 'its decay', above=0, high=0.999999)
    model_ema_warmup: bool = option(False, 'let its decay grow from small values')
    sync_bn: bool = option(False, 'synchronise batch norm between GPUs')
    log_interval: int = option(50, 'updates between lines of progress outside of a terminal', low=1, free=True)
    tensorboard: bool = option(False, 'the same as --log-with tensorboard', free=True)
    log_with: str = option('none', 'where each row of summary.csv goes too, by the extra track',
                           choices=('none', 'tensorboard', 'wandb', 'mlflow'), free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        written = self._written
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise SettingError(f'{written("warmup_epochs")} leaves nothing of {written("epochs")}: the warm-up counts '
                               f'within the epochs; make it shorter or train longer')
        for name, needed in _NEEDS.items():
            if self.given(name) and not getattr(self, needed):
                raise SettingError(f'{written(name)} has no effect without {setting(needed)}: give {setting(needed)}, '
                                   f'or leave it out')
        for name in self.given(*idle_of_schedule(self.sched)):
            raise SettingError(f'{written(name)} has no effect with {written("sched")}: leave it out, or give '
                               f'{setting("sched")} one of {", ".join(_OF_SCHEDULES[name])}')
        if self.sched == 'multistep' and min(self.decay_milestones, default=self.epochs) >= self.epochs:
            raise SettingError(f'{written("decay_milestones")}: none is within {written("epochs")}, so the learning '
                               f'rate would never fall; give earlier ones')
        if self.tensorboard and self.log_with not in ('none', 'tensorboard'):
            raise SettingError(f'{written("tensorboard")} and {written("log_with")} are two trackers: give one')
        if self.min_lr > self.lr:
            raise SettingError(f'{written("min_lr")} is above {written("lr")}: the schedule goes down to it')

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that targets are soft."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class MethodConfig(Checked):
    """The method: which, with which options, and where."""
    method: str = option('sftn', 'name of the method')
    method_kwargs: dict[str, Any] = option({}, 'settings of the method, e.g. kl_weight=1. temperature=4.')
    boundaries: tuple[str, ...] | None = option(
        None, "where branches go: TEACHER or TEACHER=STUDENT, timm's indices or module paths (default: chosen)")

    def __post_init__(self) -> None:
        if isinstance(self.boundaries, list | tuple):       # in YAML an index is a number
            named = tuple(str(b) if isinstance(b, int) and not isinstance(b, bool) else b for b in self.boundaries)
            object.__setattr__(self, 'boundaries', named)
        super().__post_init__()


def _check_kwargs(config: DataConfig, *names: str) -> None:
    """Refuse among the arguments of models a number of classes, which is the data's, and other channels than theirs."""
    for name in names:
        kwargs: dict[str, Any] = getattr(config, name)
        if config.input_size and kwargs.get('in_chans', config.input_size[0]) != config.input_size[0]:
            raise SettingError(f'{setting(name, kwargs)} does not go with {setting("input_size", config.input_size)}, '
                               f'whose first number is that of the channels: leave in_chans out')
        if 'num_classes' in kwargs:
            raise SettingError(f'{setting(name, kwargs)}: models have as many classes as the data; leave num_classes '
                               f'out, or give {setting("num_classes")} where the data have more than their images show')


@dataclass(frozen=True)
class TeacherRun(MethodConfig, DataConfig, TrainConfig):
    """`sf-teacher train`: a teacher with student branches, or, without a student, the standard teacher."""
    teacher: str = option('', 'timm name of the teacher', positional=True)
    student: tuple[str, ...] = option((), 'timm name of the student, or of several')
    method: str = option('sftn', "name of the method, or 'none': a standard teacher")
    pretrained: bool = option(False, 'start the teacher from pretrained weights, as local-dir:FOLDER always does')
    model_kwargs: dict[str, Any] = option({}, 'arguments of the teacher for timm.create_model, e.g. drop_path_rate=0.1')
    student_kwargs: dict[str, Any] = option({}, 'the same for the students, e.g. pretrained=True')

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_kwargs(self, 'model_kwargs', 'student_kwargs')


def parse_boundaries(texts: Sequence[str] | None) -> list[Any] | None:
    """Boundaries as `wrap` takes them, from ``TEACHER`` or ``TEACHER=STUDENT`` each.

    Where no name has a colon of its own (``layer1:0``, an output of a module), ``TEACHER:STUDENT`` does as well; a
    teacher's name with a colon that goes alone ends in ``=``.

    Raises:
        SettingError: A text can be read in several ways.
    """
    def pair(text: str) -> tuple[str, ...]:
        parts = text.removesuffix('=').split('=') if '=' in text else text.split(':')
        if len(parts) > 2 or not all(parts):
            raise SettingError(f'boundaries: {text!r} is not TEACHER, TEACHER=STUDENT or TEACHER:STUDENT; where a '
                               f"name has a colon, write 'layer1:0=layer2:0', or 'layer1:0=' for a teacher's alone")
        return tuple(parts)

    keys = [tuple(int(name) if name.isdecimal() else name for name in pair(text)) for text in texts or ()]
    return [names if len(names) == 2 else names[0] for names in keys] or None


@dataclass(frozen=True)
class StudentRun(DataConfig, TrainConfig):
    """`sf-teacher distill`: a student from an exported teacher, or, without one, alone."""
    teacher: str = option('', 'exported folder of the teacher (none: the student learns alone)')
    student: str = option('', 'timm name of the student')
    unlabelled: str = option('', 'folder or .tar of images without labels, to learn from the teacher on too (on these '
                             'only: with --train-split none)')
    kd: str = option('plain', "kind of distillation; student_friendly: by a simplifier of the teacher's logits",
                     choices=('plain', 'student_friendly'))
    kd_temperature: float = option(4., 'temperature of the softened predictions', above=0, high=100)
    simplifier_lr: float = option(
        SIMPLIFIER_LR, "with --kd student_friendly: the simplifier's learning rate, as a fraction of the student's",
        above=0, high=1)
    task_loss_weight: float = option(0.1, 'weight of the cross entropy', low=0)
    distill_loss_weight: float = option(0.9, 'weight of the distillation loss', low=0)
    pretrained: bool = option(False, 'start the student from pretrained weights, as local-dir:FOLDER always does')
    model_kwargs: dict[str, Any] = option({}, 'arguments of the student for timm.create_model')

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_kwargs(self, 'model_kwargs')
