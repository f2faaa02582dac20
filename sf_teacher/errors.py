"""What sf_teacher raises. Each message says what was given, where, what is allowed and how to fix it."""
from __future__ import annotations


class SFTeacherError(ValueError):
    """Something given to sf_teacher cannot work.

    What can be told from the arguments is refused before anything is changed, written or trained; a failure that shows
    only later, such as a full disk, leaves what was there complete.
    """


class SettingError(SFTeacherError):
    """A setting has a wrong name, type or value, or does not go with another one; the command line exits with 2."""


class BoundaryError(SFTeacherError):
    """A model cannot be tapped or cut at the boundary that was asked for."""


def first_line(error: BaseException) -> str:
    """What an error says, as a part of a sentence; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
