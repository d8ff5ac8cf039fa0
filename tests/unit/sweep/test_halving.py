"""Successive halving stops the trials that the published rule stops, whenever and in whatever order they report."""

import random
from math import ceil

from ddl.sweep.halving import Seen, rungs, stops


def seen(values, upto=None, is_over=False):
    return Seen(dict(enumerate(values[:upto], 1)), is_over)


def test_rungs_grow_by_the_factor_and_end_below_the_last_epoch():
    assert rungs(1, 3, 20) == [1, 3, 9]
    assert rungs(2, 2, 8) == [2, 4]


def test_a_trial_continues_if_it_is_among_the_best_third():
    better, worse = [0.5, 0.4, 0.3], [1.0, 0.9, 0.8]
    assert stops([seen(better), seen(worse)], [1, 3], 3) == [None, 1]
    assert stops([seen(worse), seen(better)], [1, 3], 3) == [None, None]
    # Beaten at the second rung only: there the earlier trial is better.
    assert stops([seen([1.0, 0.9, 0.1]), seen(better)], [1, 3], 3) == [None, 3]


def test_a_decision_waits_for_earlier_trials_and_not_for_dead_ones():
    assert stops([seen([]), seen([1.0])], [1], 2) == [None, None]
    assert stops([seen([0.5]), seen([1.0])], [1], 2) == [None, 1]
    assert stops([seen([], is_over=True), seen([0.5]), seen([1.0])], [1], 2) == [None, None, 1]


def by_the_rule(curves, at, factor):
    """The decisions one trial after another, each with the whole curves of those before it."""
    decided, at_rung = [], {rung: [] for rung in at}
    for curve in curves:
        stop = None
        for rung in at:
            at_rung[rung].append(curve[rung - 1])
            if sorted(at_rung[rung]).index(curve[rung - 1]) >= ceil(len(at_rung[rung]) / factor):
                stop = rung
                break
        decided.append(stop)
    return decided


def test_decisions_do_not_depend_on_who_reports_first():
    draw = random.Random(0)
    for _ in range(50):
        curves = [[draw.random() for _ in range(10)] for _ in range(8)]
        wanted = by_the_rule(curves, [1, 3, 9], 3)
        done = [0] * 8
        decided = [None] * 8
        while min(done) < 10:
            trial = draw.choice([one for one in range(8) if done[one] < 10])
            done[trial] += 1
            now = stops([seen(curve, upto) for curve, upto in zip(curves, done, strict=True)], [1, 3, 9], 3)
            assert all(now[one] == old for one, old in enumerate(decided) if old is not None)  # never revised
            decided = now
        assert decided == wanted
