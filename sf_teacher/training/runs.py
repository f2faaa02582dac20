"""A whole run from its settings: data, models, task, loop, export. `sf-teacher train` and `distill` are this."""
from __future__ import annotations

from pathlib import Path

from ..errors import SFTeacherError
from ..exporting.exporter import export
from .components import eval_model
from .data import Data
from .fitting import fit
from .interruption import World
from .loop import Row
from .planning import Plan, plan_student, plan_teacher
from .settings import StudentRun, TeacherRun


def train_teacher(config: TeacherRun, data: Data | None = None) -> tuple[list[Row], Path | None]:
    """Train a teacher with student branches, or a standard one, and export it to ``output/teacher``.

    Args:
        config: The settings.
        data: What `load_data` gave, so that several runs decode the same images once; by default it is loaded.

    Returns:
        The rows of summary.csv, and the exported folder (None on processes other than the first).
    """
    _check_output(config)
    return _run(plan_teacher(config, data), 'teacher')


def distill(config: StudentRun, data: Data | None = None) -> tuple[list[Row], Path | None]:
    """Train a student, from an exported teacher or alone, and export it to ``output/student``; see `train_teacher`."""
    _check_output(config)
    return _run(plan_student(config, data), 'student')


def _check_output(config: TeacherRun | StudentRun) -> None:
    if not config.output:
        raise SFTeacherError('no output: give the folder for the results, e.g. output=runs/first')


def _run(plan: Plan, name: str) -> tuple[list[Row], Path | None]:
    config = plan.config
    rows = fit(plan.task, plan.train_loader, plan.eval_loader, config)
    if World.current().rank != 0:
        return rows, None
    metrics = {k: v for k, v in rows[-1].items() if k.startswith(('train_', 'eval_')) and '/' not in k}
    model = eval_model(plan.task, config.model_ema)
    folder = export(
        model, Path(config.output) / name, **{k: plan.data_config[k] for k in ('input_size', 'mean', 'std')},
        metadata=plan.metadata | {'metrics': metrics}, overwrite=True)
    return rows, folder
