"""No number is typed by hand, and intervals are what they say."""
import numpy as np
import torch

from .tiny_run import FOLDER, PROTOCOLS, ROOT


def test_results_are_made_of_the_json_files_alone(modules):
    results = modules['results']
    assert (FOLDER / 'RESULTS.md').read_text(encoding='utf-8') == results.document()
    assert (ROOT / 'docs/results.md').read_text(encoding='utf-8') == results.overview()


def test_every_result_belongs_to_a_protocol(modules):
    planned = set()
    for name in PROTOCOLS:
        protocol = modules['protocol'].read(FOLDER / f'{name}.yaml')
        known = modules['chosen'].results_of(protocol)
        planned |= {f'{protocol.results}/{run.key}.json' for part in ('select', 'report')
                    for chain in modules['plan'].chains(protocol, known, part) for run in chain}
        planned |= {f'{protocol.results}/{run.key}.json' for t in protocol.temperatures for pair in protocol.pairs
                    for arm in protocol.arms for seed in protocol.seeds for nested in range(protocol.students)
                    for run in modules['runs'].student_runs(protocol, pair, arm, seed, t, nested)}   # an earlier choice
    found = {f'{path.parent.name}/{path.name}' for path in (FOLDER / 'results').glob('*/*.json')
             if path.parent.name != modules['regret'].ADVISOR}
    assert found and found <= planned


def test_verdicts(modules):
    verdict = modules['results'].verdict
    assert verdict([1., 1.1, 0.9]).endswith('gain') and 'no gain' not in verdict([1., 1.1, 0.9])
    assert verdict([-1., -1.1, -0.9]).endswith('loss')
    assert verdict([1., -1., 0.2]).endswith('no gain')
    assert verdict([1.]) == '+1.00 (1 seed)' and verdict([1., 2.]) == '+1.50 (2 seeds)' and verdict([]) == '-'


def test_gains_respect_the_nesting(modules):
    module = modules['gains']

    def row(*accuracies):
        return module.Row(None, {}, {seed: [{'top1': a} for a in each] for seed, each in enumerate(accuracies)})

    standard = row((50., 52.), (40., 42.), (45., 45.))
    assert module.nested_gains(row((52., 52.), (43., 43.), (47., 45.)), standard) == [1., 2., 1.]
    assert module.nested_gains(row((52., 52.)), standard) == [1.] and module.nested_gains(standard, None) == []
    assert module.verdict([1., 1.1, 0.9]).endswith('] gain') and module.verdict([1., -1., 0.2]).endswith('no gain')
    assert module.verdict([1.], 'teacher') == '+1.00 (1 teacher)'
    assert module.verdict([1., 2.], 'teacher') == '+1.50 (2 teachers)'
    assert module.verdict([1., 1.1, 0.9], wide=2.) == '+1.00 [+0.75, +1.25], with images [-1.00, +3.00] no gain'


def test_holm_is_the_step_down_of_the_p_values(modules):
    from scipy.stats import ttest_1samp
    module, generator, lost = modules['gains'], np.random.default_rng(0), 0
    standard = module.Row(None, {}, {seed: [{'top1': 50.}] for seed in range(5)})
    for _ in range(50):
        values = generator.normal(generator.choice([0., 1.5, 4.], (6, 1)), 1., (6, 5))
        rows = [module.Row(None, {}, {seed: [{'top1': 50. + v}] for seed, v in enumerate(each)}) for each in values]
        p = ttest_1samp(values, 0, axis=1).pvalue
        ordered, expected = np.argsort(p), []
        for rank, i in enumerate(ordered):
            if p[i] > 0.05 / (6 - rank):
                break
            expected.append(int(i))
        assert module.holm([(row, standard) for row in rows]) == sorted(expected)
        lost += int((p < 0.05).sum()) - len(expected)
    assert lost > 0 and module.holm([]) == []


def test_a_row_has_the_epochs_and_minutes_of_what_its_teacher_came_of(modules):
    tables, machine = modules['tables'], {'device': 'd', 'threads': 1, 'torch': '2', 'timm': '1'}

    def result(epochs, seconds, **settings):
        return {'settings': {'train': {'epochs': epochs}, 'after': None, **settings}, 'seconds': seconds,
                'machine': machine}
    first, guide = result(50, 540.), result(40, 60.)
    chain = {'a': first, 'g': guide, 'b': result(10, 120., after='a', guide='g')}
    assert tables._epochs(chain, False) == '50 + 10, its guide 40' and tables._epochs({}, False) == '-'
    assert tables._epochs({'a': first}, True) == '25' and tables._epochs({'a': first}, False) == '50'
    assert tables._minutes([list(chain.values()), [first]], ['d']) == '10.5 / 10.5'
    elsewhere = {**first, 'machine': {**machine, 'device': 'e'}}
    assert tables._minutes([[first], [elsewhere]], ['d', 'e']) == '-' == tables._minutes([], ['d'])


def test_the_interval_for_other_images_holds_the_truth_as_often_as_it_says(modules):
    module = modules['gains']
    generator, means, halves = np.random.default_rng(0), [], []

    def row(chance):
        right = [torch.from_numpy(generator.random(404) < chance + 0.02 * generator.normal()) for _ in range(5)]
        again = module.unpacked(module.packed(right[0]), 100 * right[0].float().mean().item())
        assert (again == right[0].numpy()).all()
        return module.Row(None, {}, {seed: [{'top1': 100 * each.float().mean().item(), 'right': module.packed(each)}]
                                     for seed, each in enumerate(right)})
    for _ in range(300):
        base, gain = generator.uniform(0.35, 0.55, 404), generator.uniform(-0.3, 0.4, 404)      # 5 points on average
        standard, other = row(base), row(base + gain)
        means.append(np.mean(module.nested_gains(other, standard)))
        halves.append(module.with_images(other, standard))
    covered = np.mean(np.abs(np.array(means) - 5) < halves)
    assert covered >= 0.94 and np.mean(halves) < 1.5 * 1.96 * np.std(means)
    few = module.Row(None, {}, {seed: other.students[seed] for seed in (0, 1)})
    assert module.with_images(few, standard) is None        # as where a result does not say what was right
