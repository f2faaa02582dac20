"""Student-friendly teachers for knowledge distillation."""
from .version import __version__

__all__ = ["__version__"]
