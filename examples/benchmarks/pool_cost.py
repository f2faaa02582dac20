"""GTN with a pool of eight students against eight SFTN trainings of as many steps each: time and peak memory.

A path of the pool and SFTN with its student take one step in turn; the sum over the students of each is compared. How
steps are timed, and peak memory, are those of step_cost.py.

    python examples/benchmarks/pool_cost.py --rounds 3 --json step_cost.json
"""
import argparse

from steps import Variant, images, keep_memory, parse, peak, race, spread, store, stored, take_path, wrapped

TEACHER = 'resnet50'
EIGHT = ['resnet10t', 'resnet14t', 'resnet18', 'resnet34', 'mobilenetv3_small_050', 'mobilenetv3_small_100',
         'convnext_atto', 'convnext_femto']


def measure_pool(args):
    """One GTN training with a pool of eight against eight SFTN trainings of as many steps."""
    x, y = images(args)
    pool = wrapped(TEACHER, EIGHT, 'gtn', args)
    gtn = Variant(lambda x, y: pool(x, y)['loss'], pool.parameters())
    rounds, highest = {'gtn': [], 'sftn': []}, 0.
    for member, student in enumerate(EIGHT):
        single = wrapped(TEACHER, [student], 'sftn', args)
        sftn = Variant(lambda x, y, task=single: task(x, y)['loss'], single.parameters())
        times = race({'gtn': gtn, 'sftn': sftn}, x, y, args, lambda name, m=member: take_path(pool, m))
        for name, series in rounds.items():
            series.append(times[name])
        highest = max(highest, peak(sftn, x, y, args.device))
        print(student, spread(times['gtn'], times['sftn']), flush=True)
    one, eight = ([sum(r) for r in zip(*rounds[name], strict=True)] for name in ('gtn', 'sftn'))
    take_path(pool, EIGHT.index('resnet34'))
    return {'teacher': TEACHER, 'pool': EIGHT, 'size': args.size, 'batch_size': args.batch_size, 'rounds': args.rounds,
            'gtn_over_eight_sftn': spread([t / len(EIGHT) for t in one], eight),
            'gtn_step_over_sftn_step': spread(one, eight),
            'peak_over_largest_sftn': round(peak(gtn, x, y, args.device) / highest, 4)}


def main():
    args = parse(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    keep_memory()
    args.warm = 1
    store(args, {**stored(args), 'pool': measure_pool(args)})


if __name__ == '__main__':
    main()
