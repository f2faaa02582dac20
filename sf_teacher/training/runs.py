"""A whole run from its settings: data, models, task, loop, export. `sf-teacher train` and `distill` are this."""
from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from ..data.datasets import Data
from ..errors import SettingError, SFTeacherError
from ..exporting.exporter import export
from ..exporting.json_values import metadata
from ..exporting.reload import CONFIG as EXPORTED_CONFIG
from ..exporting.writer import find_place
from ..validation import setting
from .components import eval_model
from .fitting import fit
from .header import header
from .interruption import World
from .loop import Row
from .noted import Note, check_noted, write_notes
from .planning import Plan, plan_student, plan_teacher
from .run_folder import check_run
from .settings import StudentRun, TeacherRun
from .signals import signals

_logger = logging.getLogger(__name__)

TEACHER, STUDENT = 'teacher', 'student'
_OF_A_RUN = ('students', 'teacher', 'data', 'seed', 'epochs', 'settings')   # of what export notes


def train_teacher(config: TeacherRun, data: Data | None = None) -> tuple[list[Row], Path | None]:
    """Train a teacher with student branches, or a standard one, and export it to ``output/teacher``.

    Args:
        config: The settings.
        data: What `load_data` gave, so that several runs decode the same images once; by default it is loaded.

    Returns:
        The rows of summary.csv, and the exported folder (None on processes other than the first).
    """
    check_output(config)
    return _run(plan_teacher(config, data))


def distill(config: StudentRun, data: Data | None = None) -> tuple[list[Row], Path | None]:
    """Train a student, from an exported teacher or alone, and export it to ``output/student``; see `train_teacher`."""
    check_output(config)
    return _run(plan_student(config, data))


def check_place(plan: Plan) -> list[Note]:
    """Find out before the training that the run is not the one in its folder, or would replace a foreign export.

    Returns:
        What the run notes of what it is begun with.

    Raises:
        SFTeacherError: Says what lies there, and what to do.
    """
    check_run(Path(plan.config.output), plan.config, plan.config.resume)    # it names the settings that differ
    _check_own(plan, _name(plan.config))
    return check_noted(plan)


def _name(config: TeacherRun | StudentRun) -> str:
    return TEACHER if isinstance(config, TeacherRun) else STUDENT


def check_output(config: TeacherRun | StudentRun) -> None:
    """Find out before anything is built that the export would replace something that is not this run's."""
    if not config.output:
        raise SettingError(f'no output: give the folder for the results, e.g. {setting("output", "runs/first")}')
    try:
        output = Path(config.output)
        with suppress(FileNotFoundError):
            os.stat(output)
        if blocking := [path for path in (output, *output.parents) if path.exists() and not path.is_dir()]:
            raise NotADirectoryError(f'Not a directory: {blocking[0]}')
    except (OSError, ValueError) as error:      # a NUL, a name that is too long
        raise SFTeacherError(f'cannot write to {setting("output", config.output)}: {error}') from error
    if not config.resume:
        check_run(output, config, resume=False)
    name = _name(config)
    try:
        target = find_place(output / name, overwrite=True)
        taken = target.exists() and any(target.iterdir())
    except SFTeacherError as error:
        raise SFTeacherError(f'the {name} could not be exported after training: {error}; move it away, or choose '
                             f'another output') from error
    if taken and not config.resume:
        raise SFTeacherError(f'{target} holds something that is not of this run, and its export would replace it: move '
                             f'it away, or choose another output')


def _check_own(plan: Plan, name: str) -> None:
    """The same for a resumed run, which may have exported before: what is there must have been trained as it is."""
    target = Path(plan.config.output) / name
    if not plan.config.resume or not target.exists():
        return
    try:
        there = json.loads((target / EXPORTED_CONFIG).read_text(encoding='utf-8')).get('sf_teacher', {})
    except (OSError, ValueError, AttributeError):
        there = {}
    ours = metadata(plan.metadata)
    differ = [key for key in _OF_A_RUN if key in ours and (not isinstance(there, dict) or there.get(key) != ours[key])]
    if differ:
        raise SFTeacherError(f'{target} is not an earlier export of this run (another {", ".join(differ)}), and its '
                             f'export would replace it: move it away, or choose another output')


def _run(plan: Plan) -> tuple[list[Row], Path | None]:
    config, name = plan.config, _name(plan.config)
    notes = check_place(plan)
    _logger.info(header(plan))
    with signals() as stop:
        rows = fit(plan.task, plan.train_loader, plan.eval_loader, config, on_start=lambda: write_notes(config, notes))
        if World.current().rank != 0:
            return rows, None
        stop.where = f'before the {name} was exported; {len(rows)} complete epochs are saved'
        try:
            folder = _export(plan, name, rows)
        except SFTeacherError:
            stop.check()        # the signal reached the process that verifies first
            raise
    return rows, folder


def _export(plan: Plan, name: str, rows: list[Row]) -> Path:
    model = eval_model(plan.task, plan.config.model_ema)
    metrics = {k: v for k, v in rows[-1].items() if k.startswith(('train_', 'eval_')) and '/' not in k}
    return export(
        model, Path(plan.config.output) / name, **{k: plan.data_config[k] for k in ('input_size', 'mean', 'std')},
        metadata=plan.metadata | {'metrics': metrics}, class_names=plan.data.class_names, overwrite=True)
