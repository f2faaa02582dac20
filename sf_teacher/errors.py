"""What sf_teacher raises. Each message says what was given, where, what is allowed and how to fix it."""


class SFTeacherError(ValueError):
    """Something given to sf_teacher cannot work; nothing was changed, written or trained."""


class SettingError(SFTeacherError):
    """A setting has a wrong name, type or value, or does not go with another one; the command line exits with 2."""


class BoundaryError(SFTeacherError):
    """A model cannot be tapped or cut at the boundary that was asked for."""
