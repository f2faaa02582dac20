"""`sf-teacher distill`: a student of an exported teacher, or one that learns alone."""
import argparse

from ..training.settings import StudentRun
from ._training import add_run, run_training
from .flags import settings

HELP = 'train a student from an exported teacher, or alone, and export it'
EXAMPLE = 'sf-teacher distill --teacher runs/teacher --student resnet10t --data digits --epochs 5 --output runs/student'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, StudentRun)


def run(args: argparse.Namespace) -> None:
    with settings(args, StudentRun) as config:
        from ..training.planning import plan_student
        from ..training.runs import distill

        run_training(args, config, plan_student, distill)
