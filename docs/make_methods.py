"""Write the table of all methods into docs/methods.md: `python docs/make_methods.py`. A test checks it."""
from __future__ import annotations

from pathlib import Path

from sf_teacher.methods import METHODS
from sf_teacher.methods.registry import PHASES

FILE = Path(__file__).with_name('methods.md')
BEGIN, END = '<!-- table of methods: made by docs/make_methods.py -->', '<!-- end of the table -->'
HEAD = """\
| key | class | phase | takes students | starts from trained | method |
|---|---|---|---|---|---|
"""


def table() -> str:
    """One row for each method of the package."""
    order = {key: (PHASES.index(METHODS[key].phase), key) for key in METHODS if _of_the_package(key)}
    return HEAD + '\n'.join(_row(key) for key in sorted(order, key=order.__getitem__)) + '\n'


def page() -> str:
    """The text of methods.md."""
    text = FILE.read_text(encoding='utf-8')
    before, rest = text.split(BEGIN)
    return f'{before}{BEGIN}\n\n{table()}\n{END}{rest.split(END)[1]}'


def _of_the_package(key: str) -> bool:
    return METHODS[key].__module__.startswith('sf_teacher.methods.')


def _row(key: str) -> str:
    cls = METHODS[key]
    trained = ['teacher'] * cls.trained_teacher + ['students'] * cls.trained_students
    cells = [f'`{key}`', f'[{cls.__name__}](methods/{key}.md)', cls.phase, 'yes' if cls.takes_students else 'no',
             ' and '.join(trained) or '—', cls.title]
    return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    FILE.write_text(page(), encoding='utf-8')
