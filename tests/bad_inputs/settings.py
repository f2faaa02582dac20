"""Settings of runs and reports that are given in Python, and paths in them."""
from functools import partial

from sf_teacher.analysis.report import report
from sf_teacher.analysis.settings import ReportRun
from sf_teacher.errors import SettingError
from sf_teacher.training.runs import distill, train_teacher
from sf_teacher.training.settings import StudentRun, TeacherRun

from .row import Row, rows

LONG = 'x' * 300


def path(run, **kwargs):
    """A run whose settings hold a path."""
    cls = TeacherRun if run is train_teacher else StudentRun
    given = {'teacher': 'test_resnet', 'method': 'none'} if run is train_teacher else {'student': 'test_resnet'}
    return run(cls(**{'data': 'digits', 'epochs': 1, 'device': 'cpu', 'input_size': (3, 16, 16), 'output': 'run',
                      'batch_size': 256, **given, **kwargs}))


PATHS = {
    **{f'{name} in {key} of {run.__name__}': (partial(path, run, **{key: value}), message)
       for run in (train_teacher, distill) for name, value in (('NUL', 'a\0b'), ('over-long', LONG))
       for key, message in (('output', 'cannot write to output='), ('data', 'is no folder|cannot be read'))},
    'the root as output': (lambda: path(train_teacher, output='/proc/x'), 'cannot write'),
    'a teacher with NUL': (lambda: path(distill, teacher='a\0b'), 'no folder can be called'),
    'an over-long teacher': (lambda: path(distill, teacher=LONG), 'is no exported timm folder|cannot'),
}
NUMBERS = {f'{name}={value}': (partial(TeacherRun, **{name: value}), 'must be a') for name, value in (
    ('workers', 100000), ('batch_size', 10 ** 9), ('input_size', (3, 10 ** 6, 9)), ('epochs', 10 ** 12), ('seed', -1))}
PIXELS = {
    'a mean of 0..255': (partial(TeacherRun, mean=(123.675, 116.28, 103.53)), r'mean must be .* >= 0 and <= 1'),
    'a std of 0..255': (partial(StudentRun, std=(58.4, 57.1, 57.4)), r'std must be a list of .* > 0 and <= 1'),
    'crop_pct of images in memory': (partial(TeacherRun, in_memory=True, crop_pct=0.9), 'crop_pct=0.9 has no effect'),
    'crop_pct of digits': (partial(StudentRun, data='digits', crop_pct=0.9), 'crop_pct=0.9 has no effect'),
}
REPORTS = [
    (dict(teachers=()), 'no teacher: give the exported folder of at least one'),
    (dict(output=''), 'no output: give the folder for report.json'),
    (dict(teachers=('nowhere',)), "^teachers='nowhere' is no exported timm folder"),
    (dict(baseline='nowhere'), "^baseline='nowhere' is no exported timm folder"),
    (dict(seeds=1), r'^ReportRun\(seeds=1\): seeds must be a whole number >= 2'),
    (dict(kd_temperature=2.), r'kd_temperature=2.0 is a setting of distill: give the temperatures of'),
    (dict(temperatures=()), 'temperatures is empty: give at least one'),
    (dict(budget='soon'), "budget='soon' must be a time such as 90s, 20m or 2h"),
    (dict(teacher='x'), "teacher='x' is a setting of distill: give the teachers of a report as `teachers`"),
    (dict(resume=True, log_with='wandb'), 'resume, log_with: a report has no use for it.*leave it out'),
    (dict(student=''), 'no student: give the timm name of one'),
    (dict(fine_tune_lr=0.1), 'fine_tune_lr=0.1 has no effect without fine_tune: give fine_tune, or leave it out'),
]


def reported(kwargs, message):
    def call(place):
        report(ReportRun(**{'teachers': (str(place.teacher),), 'student': 'test_resnet', 'data': str(place.data),
                            'in_memory': True, 'output': 'out', **kwargs}))
    return Row('report', str(kwargs), call, message)


ROWS = [
    *rows('a run', PATHS), *rows('TeacherRun', NUMBERS, SettingError), *rows('images', PIXELS, SettingError),
    *(reported(kwargs, message) for kwargs, message in REPORTS),
]
