"""`sf-teacher train`: a teacher with student branches, trained and exported."""
import argparse

from ..training.settings import TeacherRun
from ._training import add_run, run_training
from .flags import settings

HELP = 'train a teacher together with student branches and export it'
EXAMPLE = 'sf-teacher train resnet18 --student resnet10t --data digits --epochs 5 --output runs/teacher'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, TeacherRun)


def run(args: argparse.Namespace) -> None:
    with settings(args, TeacherRun) as config:
        from ..training.planning import plan_teacher
        from ..training.runs import train_teacher

        folder = run_training(args, config, plan_teacher, train_teacher)
        if folder is not None:
            print(f'for torchdistill, {folder / "torchdistill.yaml"} has the lines; for timm, --kd-model-name '
                  f'local-dir:{folder}; here, sf-teacher distill --teacher {folder}')
