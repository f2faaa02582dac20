"""A whole run from its settings: data, models, task, loop, export. `sf-teacher train` and `distill` are this."""
from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from ..data.datasets import Data
from ..data.fingerprint import fingerprint
from ..errors import SettingError, SFTeacherError
from ..exporting.exporter import export
from ..exporting.json_values import metadata
from ..exporting.reload import CONFIG as EXPORTED_CONFIG
from ..exporting.writer import find_place
from ..files import write_atomically
from ..validation import setting
from .components import eval_model
from .fitting import fit
from .header import header
from .interruption import World
from .loop import Row
from .planning import Plan, plan_student, plan_teacher
from .settings import StudentRun, TeacherRun
from .signals import signals

_logger = logging.getLogger(__name__)

TEACHER, STUDENT, IMAGES = 'teacher', 'student', 'images.txt'
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


def check_place(plan: Plan) -> str:
    """Find out before the training that the run would replace a foreign export, or was begun with other images.

    Returns:
        What the run notes of its images.

    Raises:
        SFTeacherError: Says what lies there, and what to do.
    """
    _check_own(plan, _name(plan.config))
    return _check_images(plan)


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


def _check_images(plan: Plan) -> str:
    """What a run notes of its images; a resumed one must have those that it was begun with, all processes the same."""
    seen = '\n'.join([*plan.data.contents, f'fingerprint: {fingerprint(plan.data)}', ''])
    for number, other in enumerate(World.current().gathered(seen)):
        if other != seen:
            here, there = _difference(seen, other)
            raise SFTeacherError(f'process {number} has other images than this one ({there!r} there, {here!r} here): '
                                 f'give all processes the same {setting("data", plan.config.data)}')
    noted = Path(plan.config.output) / IMAGES
    try:
        before = noted.read_text(encoding='utf-8', errors='surrogateescape') if plan.config.resume else seen
    except FileNotFoundError:
        return seen
    except OSError as error:
        raise SFTeacherError(f'{noted} cannot be read: {error}') from error
    if before != seen:
        then, now = _difference(before, seen)
        raise SFTeacherError(f'the run in {plan.config.output} was begun with other images ({then!r} then, {now!r} '
                             f'now): put back those that it had, or start anew in another output')
    return seen


def _difference(first: str, second: str) -> tuple[str, str]:
    """The first line of each that the other does not have."""
    pairs = zip(first.splitlines(), second.splitlines(), strict=False)
    return next(((a, b) for a, b in pairs if a != b), (first, second))


def _note(config: TeacherRun | StudentRun, seen: str) -> None:
    """Write down the images of a run that begins, in place of what another may have left in its folder."""
    path = Path(config.output) / IMAGES
    if not (config.resume and path.exists()):
        write_atomically(path, lambda file: file.write(seen.encode(errors='surrogateescape')))


def _run(plan: Plan) -> tuple[list[Row], Path | None]:
    config, name = plan.config, _name(plan.config)
    seen = check_place(plan)
    _logger.info(header(plan))
    with signals() as stop:
        rows = fit(plan.task, plan.train_loader, plan.eval_loader, config, on_start=lambda: _note(config, seen))
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
