"""Options check themselves, and messages speak as the user wrote."""
import math
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Any

import pytest

from sf_teacher import SFTeacherError
from sf_teacher.errors import SettingError
from sf_teacher.methods import METHODS
from sf_teacher.training.settings import TeacherRun, TrainConfig
from sf_teacher.training.settings_file import read_yaml, to_yaml
from sf_teacher.validation import Checked, Spelling, from_dict, like_it, option, setting, spelled


@dataclass(frozen=True)
class Wobble(Checked):
    """A method's options."""
    weight: float = option(1., 'weight of a term', source='paper', low=0)
    temperature: float = option(4., 'tau', above=0)
    width: int | None = option(128, 'channels', low=1)
    sampler: str = option('uniform', 'how students are chosen', choices=('uniform', 'learned'))
    detach: bool = option(False, 'whether it is detached')
    rates: tuple[float, ...] = option((), 'rates', above=0, high=1)
    kwargs: dict[str, Any] = option({}, 'further')
    plain: int = 3      # a field like any other


NUMBER = 'must be a finite number'
REFUSED = [
    (dict(weight=-1), f'Wobble(weight=-1): weight {NUMBER} >= 0'),
    (dict(weight=math.nan), f'Wobble(weight=nan): weight {NUMBER} >= 0'),
    (dict(weight=math.inf), f'Wobble(weight=inf): weight {NUMBER} >= 0'),
    (dict(weight=10 ** 400), f'...): weight {NUMBER} >= 0'),
    (dict(weight=True), f'Wobble(weight=True): weight {NUMBER} >= 0'),
    (dict(weight='1e-3'), f"Wobble(weight='1e-3'): weight {NUMBER} >= 0, e.g. weight=0.001"),
    (dict(weight='nan'), f"Wobble(weight='nan'): weight {NUMBER} >= 0"),
    (dict(weight=None), f'Wobble(weight=None): weight {NUMBER} >= 0'),
    (dict(temperature=0), f'Wobble(temperature=0): temperature {NUMBER} > 0'),
    (dict(width=0), 'Wobble(width=0): width must be a whole number >= 1 or None'),
    (dict(width=1.), 'Wobble(width=1.0): width must be a whole number >= 1 or None'),
    (dict(width=True), 'Wobble(width=True): width must be a whole number >= 1 or None'),
    (dict(width=10 ** 20), 'width must be a whole number >= 1 and <= 2147483647 or None'),
    (dict(sampler='learnt'), "Wobble(sampler='learnt'): sampler must be one of uniform, learned; like it: learned"),
    (dict(sampler=''), "Wobble(sampler=''): sampler must be one of uniform, learned"),
    (dict(sampler=1), 'Wobble(sampler=1): sampler must be one of uniform, learned'),
    (dict(detach=0), 'Wobble(detach=0): detach must be True or False'),
    (dict(rates=0.5), 'rates must be a list of finite numbers > 0 and <= 1, e.g. rates=[0.5]'),
    (dict(rates=[0.5, 2.]), 'Wobble(rates=[0.5, 2.0]): rates must be a list of finite numbers > 0 and <= 1'),
    (dict(rates='x'), "rates must be a list of finite numbers > 0 and <= 1"),
    (dict(kwargs=[1]), "kwargs must be settings by name, e.g. kwargs={'NAME': 'VALUE'}"),
    (dict(kwargs={1: 2}), "Wobble(kwargs={1: 2}): kwargs must be settings by name"),
    (dict(plain='x'), "Wobble(plain='x'): plain must be a whole number"),
]


@pytest.mark.parametrize(('values', 'message'), REFUSED, ids=[str(v)[:40] for v, _ in REFUSED])
def test_wrong_types_and_ranges(values, message):
    with pytest.raises(SettingError) as error:
        Wobble(**values)
    assert message in str(error.value) and len(str(error.value)) < 300
    assert isinstance(error.value, SFTeacherError | ValueError)


def test_what_is_allowed_is_taken_as_annotated():
    config = Wobble(weight=2, rates=[1, 0.5], width=None, kwargs={'a': [1]})
    assert config == Wobble(2., width=None, rates=(1., 0.5), kwargs={'a': [1]})
    assert type(config.weight) is float and type(config.rates) is tuple and type(config.rates[0]) is float


def test_defaults_are_not_shared():
    assert Wobble().kwargs is not Wobble().kwargs
    given = {'a': 1}
    assert Wobble(kwargs=given).kwargs is not given


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(SettingError, match=r'(?s)Wobble\(weight=-1\).*\nWobble\(width=0\)'):
        Wobble(weight=-1, width=0)


def test_a_rule_of_its_own_speaks_the_same_way():
    with pytest.raises(SettingError, match=r'^Wobble\(weight=1.0\): weight must be 0 without a width$'):
        Wobble()._require(False, 'weight', '0 without a width')


def test_settings_are_spelled_as_they_were_given():
    class Loud(Spelling):
        def name(self, name):
            return name.upper()

        def line(self, name, value):
            return f'{name.upper()} IS {value}'

        def subject(self, owner, name, value):
            return self.value(name, value)

    with spelled(Loud()):
        assert setting('lr', 3) == 'LR IS 3' and setting('lr') == 'LR'
        with pytest.raises(SettingError, match=r'^WEIGHT IS -1 must be a finite number >= 0$'):
            Wobble(weight=-1)
    assert setting('lr', 3) == 'lr=3' and setting('lr') == 'lr'


def test_names_like_an_unknown_one():
    assert like_it('widht', ['weight', 'width']) == '; like it: width, weight'
    assert like_it('Width', ['weight', 'width']).startswith('; like it: width')
    assert like_it('zzz', ['weight', 'width']) == '; there are weight, width'
    assert like_it('zzz', ['weight', 'width'], '; ask') == '; ask'
    assert like_it('zzz', map(str, range(100))) == ''
    with pytest.raises(SettingError, match=r"^here: there is no setting 'widht'; like it: width"):
        from_dict(Wobble, {'widht': 3}, 'here')


def test_yaml_gives_rates_as_people_write_them(tmp_path):
    (tmp_path / 'c.yaml').write_text('lr: 1e-3\nmin_lr: 1e-5\n')
    config = from_dict(TrainConfig, read_yaml(tmp_path / 'c.yaml'), 'c')
    assert (config.lr, config.min_lr) == (1e-3, 1e-5)
    with pytest.raises(SettingError, match=r"^TrainConfig\(lr='fast'\): lr must be a finite number > 0 and <= 100$"):
        TrainConfig(lr='fast')


def test_what_yaml_cannot_hold():
    with pytest.raises(SettingError, match='cannot be written to YAML: give numbers, texts, lists and mappings only'):
        to_yaml(TeacherRun(model_kwargs={'act_layer': object()}))


def test_options_are_read_without_pydantic():
    """So that --help is quick."""
    code = "import sys, sf_teacher.training.settings as s; assert s.TrainConfig; assert 'pydantic' not in sys.modules"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_options_of_every_method_say_what_they_are_and_refuse_what_is_no_number():
    for cls in METHODS.values():
        for f in fields(cls):
            assert len(f.metadata['help']) > 5, f'{cls.__name__}.{f.name}'
            assert f.metadata['source'] in ('', 'paper', 'code', 'reported', 'abstract', 'ours'), f.name
            if f.type in ('float', 'int', 'bool'):
                with pytest.raises(SettingError, match=rf'^{cls.__name__}\({f.name}=nan\): {f.name} must be '):
                    cls(**{f.name: math.nan})
