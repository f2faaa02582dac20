"""`--factory MODULE:FUNCTION`, who builds a teacher that timm cannot build by name."""
import argparse
import os
import sys


def add_factory(parser: argparse.ArgumentParser) -> None:
    """Add the flag to a command that loads an exported folder."""
    parser.add_argument(
        '--factory', metavar='MODULE:FUNCTION', help='builds a teacher that timm cannot build by name; its code is run')


def find_modules_here() -> None:
    """Let modules of the working directory be imported, as `python -m` does, here and by the process that verifies."""
    sys.path.insert(0, os.getcwd())
