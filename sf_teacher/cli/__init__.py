"""`sf-teacher`, the command line: flags in, one call into the library, text out. No logic of its own."""
from .app import main

__all__ = ['main']
