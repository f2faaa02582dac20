"""Settings of what looks at models: `sf-teacher inspect`, and `sf-teacher report`, which trains pilots."""
from __future__ import annotations

from dataclasses import dataclass

from ..data.settings import check_size
from ..training.settings import MethodConfig, StudentRun
from ..validation import option


@dataclass(frozen=True)
class Inspection(MethodConfig):
    """`sf-teacher inspect`: where branches would go, before anything is trained."""
    teacher: str = option('', "timm's name of an architecture", positional=True)
    students: tuple[str, ...] = option((), "timm's names of students", positional=True)
    num_classes: int | None = option(None, "classes (default: the architecture's own)", low=1)
    input_size: tuple[int, ...] | None = option(
        None, 'C H W of the images (default: what the teacher was made for)', low=1, high=2 ** 14)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self)


@dataclass(frozen=True)
class ReportRun(StudentRun):
    """`sf-teacher report`: which teacher to take, and at which temperature, by pilot students of a few epochs."""
    output: str = option('', 'folder for report.json and report.png', free=True)
    teachers: tuple[str, ...] = option((), 'exported folders of the teachers', positional=True)
    baseline: str = option('', 'exported folder of the teacher to compare with (default: the first one)')
    temperatures: tuple[float, ...] = option(
        (2., 4., 8., 16.), 'temperatures of the distillation to try', above=0, high=100)
    seeds: int = option(5, 'pilot students of the two teachers that are compared, --seed and the following', low=2)
    epochs: int = option(5, 'epochs of a pilot student', low=1)
    fine_tune: int = option(0, 'also try the baseline trained on for so many epochs, by SFTN with the student as its '
                               'branch and by cross entropy alone', low=0)
    fine_tune_lr: float = option(0.005, 'with --fine-tune: its learning rate', above=0, high=100)
    budget: str = option('', 'time for about all of it, e.g. 20m; --epochs is lowered to fit (default: no limit)')
    batch_size: int = option(64, 'images in a batch', low=1, high=2 ** 20)
