from itertools import pairwise

import numpy as np
import pytest

from sf_teacher.analysis import halving
from sf_teacher.analysis.intervals import half_width_with_images, interval
from sf_teacher.analysis.pilots import Candidate
from sf_teacher.analysis.verdicts import compare, recommend


def student(top1, images=100_000):
    """A pilot that is right about the first images: so many of them that other images would not change much."""
    right = round(top1 * images / 100)
    return {'top1': top1, 'right': '1' * right + '0' * (images - right)}


@pytest.mark.parametrize(('gains', 'kind'), [
    ([1., 1.1, 0.9], 'gain'), ([2., -1., 0.5], 'no gain'), ([-1., -1.1, -0.9], 'loss'), ([0., 0., 0.], 'no gain'),
])
def test_the_verdict_follows_the_paired_interval(gains, kind):
    arms = {'a': [student(50 + g + s) for s, g in zip((0, 7, 3), gains, strict=True)],
            'b': [student(50. + s) for s in (0, 7, 3)]}
    found = compare(arms, 'a', 'b')
    assert found['kind'] == kind and found['verdict'].startswith(f'{kind}: students of a')


def test_the_same_gain_on_few_images_is_not_sure():
    for images, kind in ((100_000, 'gain'), (50, 'no gain')):
        arms = {'a': [student(52. + s, images) for s in (0, 7, 3)], 'b': [student(50. + s, images) for s in (0, 7, 3)]}
        found = compare(arms, 'a', 'b')
        assert found['gains'] == [2., 2., 2.] and found['kind'] == kind and found['half_width'] > 0


def test_the_interval_for_other_images_is_that_of_the_wider_variance():
    seeds, images = np.array([[-1.], [0.], [1.]]), np.linspace(-3, 3, 50)[None]
    assert half_width_with_images(seeds + 0 * images) == pytest.approx(4.302653 * 1 / 3 ** 0.5)   # t of 2 degrees
    assert half_width_with_images(0 * seeds + images) == pytest.approx(2.009575 * images.std(ddof=1) / 50 ** 0.5)
    both = half_width_with_images(seeds + images)
    assert both < 4.302653 / 3 ** 0.5 + 2.009575 * images.std(ddof=1) / 50 ** 0.5     # variances, not widths, are added
    assert half_width_with_images(np.zeros((3, 50))) == 0


TEMPERATURES = (2., 4., 8., 16.)


def choose(folders, temperatures, epochs, worth):
    asked = []

    def pilot(candidate, of_round):
        asked.append((candidate, of_round))
        return worth(candidate)
    return halving.choose(folders, temperatures, epochs, pilot), asked


def test_the_baseline_gets_its_temperature_then_the_best_other_teacher_gets_its_own():
    best = {'a': 8., 'b': 2., 'c': 16.}
    worth = {Candidate(f, t): 10 * 'acb'.index(f) - abs(t - best[f]) for f in best for t in TEMPERATURES}
    (rounds, finalists), asked = choose('abc', TEMPERATURES, 6, worth.__getitem__)
    assert [list(r.top1) for r in rounds] == [
        [Candidate('a', t) for t in TEMPERATURES], [Candidate('b', 8.), Candidate('c', 8.)],
        [Candidate('b', t) for t in TEMPERATURES]]
    assert {r.epochs for r in rounds} == {6} and rounds[0].top1[Candidate('a', 2.)] == worth[Candidate('a', 2.)]
    assert finalists == [Candidate('a', 8.), Candidate('b', 2.)]
    assert len(set(asked)) * 6 + (2 + 1) * 5 * 6 == halving.pilot_epochs(3, 4, 6, 5, beside=1)


@pytest.mark.parametrize(('teachers', 'expected'), [
    (9, [(10, 8)]), (18, [(3, 17), (10, 6)]), (76, [(1, 75), (1, 25), (3, 9), (10, 3)])])
def test_many_teachers_are_thinned_out_by_successive_halving(teachers, expected):
    folders = [f'{i:02d}' for i in range(teachers)]
    (rounds, finalists), asked = choose(folders, (4.,), 10, lambda c: int(c.folder))
    assert [(r.epochs, len(r.top1)) for r in rounds] == expected
    assert finalists == [Candidate('00', 4.), Candidate(folders[-1], 4.)]
    assert all(set(after.top1) < set(before.top1) for before, after in pairwise(rounds))
    assert sum(epochs for _, epochs in set(asked)) + 2 * 5 * 10 == halving.pilot_epochs(teachers, 1, 10, 5)


def test_thinning_out_costs_less_than_long_pilots_of_all():
    long = {n: 90 * (n - 1 + 2) for n in range(3, 100)}
    assert all(halving.pilot_epochs(n, 1, 90, 1) == long[n] for n in range(3, 10))
    assert all(halving.pilot_epochs(n, 1, 90, 1) <= 0.8 * long[n] for n in range(10, 100))


@pytest.mark.parametrize(('folders', 'temperatures'), [('a', (4.,)), ('ab', (4.,)), ('a', TEMPERATURES), (
    'ab', TEMPERATURES), ('abc', (4.,)), ('abcdefgh', TEMPERATURES), ('abcdef', (2., 4.))])
def test_a_report_costs_what_it_says(folders, temperatures):
    (rounds, finalists), asked = choose(folders, temperatures, 8, lambda c: ord(c.folder) + c.temperature)
    assert [c.folder for c in finalists] == sorted({'a', folders[-1]})
    assert {c.temperature for c in finalists} == {temperatures[-1]}
    assert bool(rounds) == (len(temperatures) > 1 or len(folders) > 2)     # else there is nothing to choose
    assert sum(e for _, e in set(asked)) + len(finalists) * 3 * 8 == halving.pilot_epochs(
        len(folders), len(temperatures), 8, 3)


MORE = 'more validation images, seeds or epochs may tell'


@pytest.mark.parametrize(('gains', 'candidates', 'text'), [
    ((3., 3.2, 2.9), 3, 'take b at T = 4, the best of 2 others: +3.03 [+2.65, +3.41] points over A'),
    ((3., 3.2, 2.9), 2, 'take b at T = 4: +3.03 [+2.65, +3.41] points over A'),
    ((3., -3.2, 2.9), 3,
     f'no sure difference: take b at T = 4, the best of 2 others: +0.90 [-7.92, +9.72] points over A; {MORE}'),
    ((-3., 3.2, -2.9), 2, f'no sure difference: take a at T = 2, the baseline at its best temperature: B made -0.90 '
                          f'[-9.72, +7.92] points; {MORE}'),
    ((-3., -3.2, -2.9), 3, 'take a at T = 2, the baseline at its best temperature: the best of 2 others, B, made -3.03 '
                           '[-3.41, -2.65] points'),
])
def test_the_recommendation_is_the_better_one_and_says_whether_it_is_sure(gains, candidates, text):
    arms = {'A': [student(50. + i) for i in range(3)], 'B': [student(50. + i + g) for i, g in enumerate(gains)]}
    teachers = {'A': {'folder': 'a', 'temperature': 2.}, 'B': {'folder': 'b', 'temperature': 4.}}
    found = recommend(teachers, [compare(arms, 'B', 'A')], 'A', candidates, 60.)
    assert found['text'] == f'{text} (1.0 minutes of training)' and found['sure'] == (not text.startswith('no sure'))
    led = sum(gains) > 0
    assert (found['teacher'], found['temperature']) == (('b', 4.) if led else ('a', 2.))
    assert (found['gain'], found['half_width']) == (
        (pytest.approx(sum(gains) / 3), pytest.approx(interval(gains)[1])) if led else (None, None))


@pytest.mark.parametrize(('branches', 'text'), [
    (1., 'take b at T = 4, the best of 2 others: +1.00 [-1.48, +3.48] points over A; +0.50 [+0.47, +0.53] over C, '
         'trained on for as long'),
    (0., 'take c at T = 4, the best of 2 others: +0.50 [-1.98, +2.98] points over A; B, trained on for as long, made '
         '-0.50 [-0.53, -0.47] points over it'),
])
def test_of_two_that_were_trained_on_the_better_one_is_named(branches, text):
    gains = (-1., 0., 1.)
    arms = {'A': [student(50.)] * 3, 'B': [student(50. + branches + g) for g in gains],
            'C': [student(50.5 + g) for g in gains]}
    teachers = {'A': {'folder': 'a', 'temperature': 2.}, 'B': {'folder': 'b', 'temperature': 4.},
                'C': {'folder': 'c', 'temperature': 4.}}
    comparisons = [compare(arms, 'B', 'A'), compare(arms, 'C', 'A'), compare(arms, 'B', 'C')]
    assert recommend(teachers, comparisons, 'A', 3, 60.)['text'] == (
        f'no sure difference: {text}; {MORE} (1.0 minutes of training)')


def test_a_report_of_one_teacher_recommends_its_temperature():
    found = recommend({'A': {'folder': 'a', 'temperature': 2.}}, [], 'A', 1, 60.)
    assert found['text'] == 'take a at T = 2, the only teacher (1.0 minutes of training)' and found['gain'] is None
