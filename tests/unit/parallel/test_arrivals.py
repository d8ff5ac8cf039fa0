"""Waiting for the node's ranks before the barrier: it ends when all have come, or when patience does."""

import threading

import numpy as np

from ddl.parallel.sums import Arrivals


def test_all_go_on_when_the_last_has_come_round_after_round():
    counts, reached = np.zeros(3, np.int64), []

    def rank(me):
        arrivals = Arrivals(counts, me)
        arrivals.PATIENCE_S = 60.0
        for number in range(1, 20):
            arrivals.wait()
            reached.append(int(counts.min()) >= number)

    ranks = [threading.Thread(target=rank, args=(me,)) for me in range(3)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(60)
    assert len(reached) == 57 and all(reached)


def test_a_death_is_not_waited_for():
    asked = []

    def lives(place):
        asked.append(place)
        return len(asked) < 3

    counts = np.array([0, 1, 0])
    arrivals = Arrivals(counts, 0, lives)
    arrivals.PATIENCE_S, arrivals.LOOK_S = 60.0, 0.0
    arrivals.wait()
    assert asked == [2, 2, 2] and counts.tolist() == [1, 1, 0]


def test_who_waits_for_the_dead_goes_on_to_the_barrier():
    arrivals = Arrivals(np.zeros(2, np.int64), 0)
    arrivals.PATIENCE_S = 0.0
    arrivals.wait()
    assert arrivals._counts.tolist() == [1, 0]
