"""`sf-teacher`: the command line.

A command is the module of its name in this folder: `HELP` is one line, `EXAMPLE` what to try first, `add_arguments` its
flags and `run` its work, which returns nothing and raises what is wrong as SFTeacherError. Only `run` imports torch.
"""
from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from ..errors import SettingError, SFTeacherError
from ..training.signals import Interrupted, signals
from ..validation import like_it
from ..version import __version__

COMMANDS = ('inspect', 'train', 'distill', 'report', 'export', 'verify', 'push')
FAILED, MISUSED = 1, 2      # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or, with the reason on stderr, 1 if it failed, 2 if it was asked for something that cannot be, and 130 or 143
        if Ctrl-C or SIGTERM stopped it.
    """
    real = argv is None
    if isinstance(sys.stdout, TextIOWrapper):       # names of files need not be text that it can encode
        sys.stdout.reconfigure(errors='backslashreplace')
    argv = sys.argv[1:] if argv is None else list(argv)
    parser, commands = parsers()
    if len(argv) == 0 or (len(argv) == 1 and argv[0] in commands):
        given = commands[argv[0]] if argv else parser
        print(given.format_help() if given is parser else _introduction(given), file=sys.stderr)
        return MISUSED
    if not argv[0].startswith('-') and argv[0] not in commands:
        parser.error(f'there is no command {argv[0]!r}{like_it(argv[0], commands)}')
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        command = commands[args.command]
        flags = [flag for action in command._actions for flag in action.option_strings]
        command.error(f'{" ".join(unknown)} is not understood' + like_it(unknown[0], flags))
    with signals() as stop:
        try:
            args.run(args)
        except (Exception, Interrupted) as error:
            if stop.signum:     # an error after a signal follows from it
                print(f'sf-teacher: {Interrupted(stop.signum, stop.where)}', file=sys.stderr)
            elif isinstance(error, SFTeacherError):
                print(f'sf-teacher: {error}', file=sys.stderr)
                return MISUSED if isinstance(error, SettingError) else FAILED
            else:
                raise
        finally:
            if stop.signum and real:        # what is left is the interpreter's own end
                stop.ignore()
    return 128 + stop.signum if stop.signum else 0


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands by name."""
    parser = _Parser(prog='sf-teacher', description='Teachers from which students learn more.')
    parser.add_argument('--version', action='version', version=f'sf_teacher {__version__}')
    parser.add_argument('--print-completion', action=_Completion, metavar='SHELL', choices=('bash', 'zsh'),
                        help='print the completion of this shell: bash or zsh')
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', dest='command', required=True)
    for name in COMMANDS:
        module = importlib.import_module(f'.{name}', __package__)
        command = commands.add_parser(
            name, help=module.HELP, description=module.HELP, epilog='for example:\n  ' + module.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser, dict(commands.choices)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without a page of usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f'{self.prog}: {message} ({self.prog} --help lists all)\n')


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        import shtab

        print(shtab.complete(parser, values))
        parser.exit()


def _introduction(command: argparse.ArgumentParser) -> str:
    known = {flag for action in command._actions for flag in action.option_strings}
    more = {'--help': 'lists all flags', '--dry-run': 'checks everything and stops',
            '--print-config': 'prints a commented YAML file of settings to start from'}
    lines = [f'  {flag:14} {text}' for flag, text in more.items() if flag in known]
    return '\n'.join([f'{command.prog}: {command.description}', '', str(command.epilog), '', *lines])
