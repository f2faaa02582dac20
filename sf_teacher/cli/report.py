"""`sf-teacher report`: which of exported teachers to take, and at which temperature."""
import argparse
import logging
from pathlib import Path

from ..analysis.settings import ReportRun
from .flags import add_settings, settings

HELP = 'say which of exported teachers to take, by short students of each'
EXAMPLE = 'sf-teacher report runs/teacher/teacher --student resnet10t --data digits --output runs/report'
LEFT_OUT = ('teacher', 'resume', 'tensorboard', 'log_with', 'kd_temperature')     # a report has no use for them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, ReportRun, LEFT_OUT)


def run(args: argparse.Namespace) -> None:
    with settings(args, ReportRun, LEFT_OUT) as config:
        from ..analysis.report import report
        from ..analysis.verdicts import table

        logging.basicConfig(format='%(message)s', level=logging.INFO)
        print(table(report(config)))
        print(f'written: {Path(config.output) / "report.json"} and report.png')
