"""What an exported folder holds, and where it may be put."""
import os
from pathlib import Path

from ..errors import SFTeacherError
from .reload import CONFIG, PROBE, TEACHER, TORCHVISION, WEIGHTS, ZOO

README = 'README.md'
TORCHDISTILL = 'torchdistill.yaml'
FILES = (README, CONFIG, WEIGHTS, TEACHER, TORCHVISION, PROBE, TORCHDISTILL, ZOO)      # all that an export writes


def find_place(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """The absolute path of a folder to write, or an error before any work is done; see `check_place`."""
    try:
        target = Path(folder).expanduser()
        linked = target.is_symlink()
        resolved = target.resolve()
    except (OSError, ValueError, RuntimeError) as e:    # a NUL, a loop of links, no home
        raise SFTeacherError(f'cannot write {os.fspath(folder)!r}: {e}') from e
    if linked:
        raise SFTeacherError(f'{target} is a link: give the folder that it points to, {resolved}')
    if not resolved.name.isprintable():
        raise SFTeacherError(f'cannot write {str(resolved)!r}: its name holds characters that cannot be printed')
    check_place(resolved, overwrite)
    return resolved


def check_place(target: Path, overwrite: bool) -> None:
    """Refuse a place where a folder cannot be put, before any work is done."""
    try:
        parent = next((path for path in target.parents if path.exists()), target)
        exists = target.exists()
    except OSError as e:    # a name that is too long
        raise SFTeacherError(f'cannot write {target}: {e}') from e
    if around := [path for path in target.parents if (path / PROBE).is_file()]:
        raise SFTeacherError(f'cannot write {target}: {around[0]} is an exported teacher, and its next export would '
                             f'remove what lies in it; choose a place outside')
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SFTeacherError(f'cannot write {target}: {parent} is not a folder that can be written to')
    if not exists:
        return
    if not target.is_dir():
        raise SFTeacherError(f'{target} exists and is not a folder')
    if any(target.iterdir()):
        if not overwrite:
            raise SFTeacherError(f'{target} exists and is not empty; pass overwrite=True (--overwrite) to replace an '
                                 f'earlier export')
        if not (target / PROBE).is_file():
            raise SFTeacherError(f'{target} is not an exported teacher (no {PROBE}), overwrite=True leaves it alone')
        if foreign := sorted(p.name for p in target.iterdir() if p.name not in FILES or p.is_dir()):
            raise SFTeacherError(f'{target} holds {", ".join(foreign[:3])}{" ..." if len(foreign) > 3 else ""}, which '
                                 f'no export wrote: overwrite=True replaces an earlier export and nothing else, so '
                                 f'move it elsewhere first')
    if target == Path.cwd():
        raise SFTeacherError(f'{target} is the working directory, and an export takes the place of its folder as a '
                             f'whole: start it elsewhere, or give another folder')
