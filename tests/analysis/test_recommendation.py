import re

import pytest

from sf_teacher.analysis import halving
from sf_teacher.analysis.pilots import Candidate
from sf_teacher.analysis.report import _compare, _recommend


@pytest.mark.parametrize(('gains', 'kind'), [
    ([1., 1.1, 0.9], 'gain'), ([2., -1., 0.5], 'no gain'), ([-1., -1.1, -0.9], 'loss'), ([0., 0., 0.], 'no gain'),
])
def test_the_verdict_follows_the_paired_interval(gains, kind):
    arms = {'a': [{'top1': 50 + g + s} for s, g in zip((0, 7, 3), gains, strict=True)],
            'b': [{'top1': 50. + s} for s in (0, 7, 3)]}
    found = _compare(arms, 'a', 'b')
    assert found['kind'] == kind and found['verdict'].startswith(f'{kind}: students of a')


def test_halving_keeps_the_better_half_and_the_baseline():
    candidates = [Candidate(folder, t) for folder in 'abcd' for t in (2., 4., 8., 16.)]
    worth = {c: {'a': 0, 'b': 3, 'c': 2, 'd': 1}[c.folder] * 10 + c.temperature for c in candidates}
    asked = []
    rounds = halving.halve(candidates, 'a', 8, lambda c, epochs: asked.append(epochs) or worth[c])
    assert [(r.epochs, len(r.top1)) for r in rounds] == [(4, 16), (8, 8)]
    assert asked == [4] * 16 + [8] * 8
    assert Candidate('a', 16.) in rounds[1].top1 and Candidate('a', 8.) not in rounds[1].top1
    last = halving.finalists(candidates, rounds, 'a')
    assert last == [Candidate('a', 16.), Candidate('b', 16.), Candidate('b', 8.), Candidate('c', 16.)]
    assert halving.finalists([Candidate('a', 4.)], halving.halve([Candidate('a', 4.)], 'a', 8, pytest.fail), 'a') == [
        Candidate('a', 4.)]
    assert halving.pilot_epochs(16, 8, 3) == 16 * 4 + 8 * 8 + 5 * 3 * 8


@pytest.mark.parametrize('gains,chosen,text', [
    ((3., 3.2, 2.9), 'b', r'take b at T = 2: \+3.03 \['),
    ((3., -3.2, 2.9), 'a', r'no difference: take a at T = 2, the baseline at its best temperature; none of 1 others is '
     r'surely better. B led by \+0.90 \[-7.92, \+9.72\]: more epochs or seeds would tell \('),
    ((-3., -3.2, 2.9), 'a', r'no difference: take a at T = 2, the baseline at its best temperature; none of 1 others '
     r'is surely better \('),
])
def test_the_recommendation_is_surely_better_or_the_baseline(gains, chosen, text):
    arms = {'A': [{'top1': 50. + i} for i in range(3)], 'B': [{'top1': 50. + i + g} for i, g in enumerate(gains)]}
    teachers = {'A': {'folder': 'a', 'temperature': 2.}, 'B': {'folder': 'b', 'temperature': 2.}}
    found = _recommend(arms, teachers, [_compare(arms, 'B', 'A')], 'A', 60.)
    assert found['teacher'] == chosen and re.match(text, found['text']) and '1.0 minutes' in found['text']
    assert found['leader'] == {'folder': 'b' if sum(gains) > 0 else 'a', 'temperature': 2.}
