"""Verify an exported teacher, in the process that exported it or later and elsewhere."""
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import SFTeacherError
from . import reload

_logger = logging.getLogger(__name__)

DEFAULT_TOLERANCE = 1e-4
_LOCAL = 'local-dir:'


def run_check(
        folder: Path,
        tolerance: float,
        factory: str | None = None,
        threads: int | None = None,
) -> dict[str, Any]:
    """`reload.report` in a fresh process."""
    command = [sys.executable, '-P', reload.__file__, str(folder), '--tolerance', repr(tolerance)]
    if factory is not None:  # its module may lie beside the caller's script
        command += ['--factory', factory, '--path', json.dumps([os.path.abspath(entry) for entry in sys.path])]
    if threads is not None:
        command += ['--threads', str(threads)]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            command, cwd=elsewhere, env={**os.environ, 'HF_HUB_OFFLINE': '1', 'TIMM_FUSED_ATTN': '1'},
            capture_output=True, text=True,
        )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        tail = ' '.join(done.stderr.split("\n")[-4:]).strip()
        return {'ok': False, 'about': 'build', 'reason': f'the fresh process ended with {done.returncode}: {tail}'}


def is_local(name: object) -> bool:
    """Whether a name of a model is a folder's, ``local-dir:FOLDER``, in letters of any case as timm takes it."""
    return isinstance(name, str) and name.lower().startswith(_LOCAL)


def local_path(folder: str | os.PathLike[str]) -> Path:
    """A folder without the ``local-dir:`` that timm has before it in names of models."""
    return Path(os.fspath(folder)[len(_LOCAL):] if is_local(folder) else folder)


def exported_folder(folder: str | os.PathLike[str]) -> Path:
    """Where the exported files are: the folder itself or, if it is that of a run, the one in it."""
    try:
        path = local_path(folder).expanduser()
        path.resolve()
    except (OSError, ValueError, RuntimeError) as e:    # a NUL, a loop of links, no home
        raise SFTeacherError(f'no folder can be called {os.fspath(folder)!r}: {e}') from e
    places = (path, path / 'teacher', path / 'student')
    return next((place for place in places if os.path.exists(place / reload.CONFIG)), path)


def check_folder(folder: str | os.PathLike[str], files: Collection[str] = (reload.WEIGHTS,)) -> dict[str, Any]:
    """Check a folder before timm loads it: what it asks for, and that it is what was exported.

    Whoever lets timm load a folder that comes from elsewhere calls this first, as everything in this package does.
    Nothing is built and nothing executed; `verify` does that too. A folder that sf_teacher did not export, or an
    earlier version, is checked as far as it can be, and a warning says what was not.

    Args:
        folder: The folder, ``local-dir:`` before it or not.
        files: Which of its files, besides `config.json`, must be what was exported: those that are to be loaded.

    Returns:
        `config.json`.

    Raises:
        SFTeacherError: The folder asks for more than building a model, cannot be read, was changed after its export,
            or holds weights that are not finite.
    """
    path = local_path(folder)
    try:
        config = reload.read_config(path)
        if (path / reload.PROBE).exists():
            for text in reload.check_files(path, reload.read_probe(path)[0], (reload.CONFIG, *files)):
                _logger.warning('%s: %s', path, text)
        else:
            _logger.warning('%s holds no %s, sf_teacher did not export it: whether it is complete and unchanged cannot '
                            'be checked', path, reload.PROBE)
            reload.check_finite(path)
    except reload.CheckError as e:
        raise SFTeacherError(f'{path}: {e}') from e
    return config


def verify(
        folder: str | os.PathLike[str],
        *,
        tolerance: float = DEFAULT_TOLERANCE,
        factory: str | None = None,
) -> dict[str, Any]:
    """Check that an exported folder still gives the teacher that was exported, also on another machine.

    A fresh process, in which sf_teacher cannot be imported, loads the folder as any user would, without executing
    anything pickled, and compares files, weights, preprocessing and the logits of the stored probe.

    Args:
        folder: A folder written by `export`, or that of a run which wrote one; ``local-dir:`` before it or not.
        tolerance: Largest difference of logits allowed, as a fraction of the largest stored logit. Another torch,
            another processor or another number of threads rounds differently; 0 asks for bit-equality.
        factory: "package.module:function" for a teacher that timm cannot build by name.

    Returns:
        The report: architecture, classes, preprocessing, differences, and the versions on both sides.

    Raises:
        SFTeacherError: What differs, is missing, or cannot be read.
    """
    if not 0 <= tolerance < 1:
        raise SFTeacherError(f'tolerance is a fraction of the largest logit, 0 <= tolerance < 1, got {tolerance}')
    folder = exported_folder(folder).resolve()
    report = run_check(folder, tolerance, factory)
    if not report.pop('ok'):
        raise SFTeacherError(f"{folder}: {report['reason']}")
    return report
