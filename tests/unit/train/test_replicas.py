"""Replicas that differ: a minority is named and repaired, rounding of other hardware only repaired, a tie is fatal."""

import hashlib

import numpy as np
import pytest

from ddl.comm.threads import run_ranks
from ddl.train.replicas import compare


class Held:
    """A state: one array, and which rank's it is."""

    def __init__(self, value, owner):
        self.value, self.owner = value, owner

    def flat_arrays(self):
        return [self.value]

    def meta(self):
        return self.owner

    def take_over(self, arrays, meta):
        self.value, self.owner = arrays[0].copy(), meta


RIGHT = np.linspace(-1, 1, 50).astype("float32")


def compared(kinds, changes, nodes=""):
    """(what compare said, the states after it); changes: rank -> what is added to one of its numbers. nodes: where
    ranks share a replica."""

    def one(group):
        value = RIGHT.copy()
        value[7] += np.float32(changes.get(group.rank, 0.0))
        work = Held(value, group.rank)
        replica = nodes[group.rank] if nodes else str(group.rank)
        verdict = compare(group, work, kinds[group.rank], hashlib.sha256(value).hexdigest(), replica)
        return verdict, work

    results = run_ranks(len(kinds), one)
    verdicts = [verdict for verdict, _ in results]
    assert all(each == verdicts[0] for each in verdicts)
    return verdicts[0], [work for _, work in results]


ROUNDING, WRONG = 1e-6, 0.5


@pytest.mark.parametrize(
    ("kinds", "changes", "named"),
    [
        ("aaa", {}, []),
        ("aaa", {1: ROUNDING}, [1]),
        ("aaa", {0: WRONG}, [0]),
        ("aaaa", {0: WRONG, 1: WRONG}, None),
        ("aab", {2: ROUNDING}, []),
        ("aab", {2: WRONG}, [2]),
        ("aab", {2: np.nan}, [2]),
        ("aaab", {1: WRONG, 3: ROUNDING}, [1]),
        (
            "abb",
            {0: WRONG},
            None,
        ),  # rank 0, alone of its kind, is the reference, and both others disagree
        ("ab", {1: WRONG}, None),
    ],
)
def test_the_minority_is_named(kinds, changes, named):
    verdict, works = compared(kinds, changes)
    assert verdict == named
    if named is not None:
        assert all(np.array_equal(work.value, works[0].value) for work in works)


def test_a_tie_changes_nothing():
    _, works = compared("aa", {1: WRONG})
    assert [work.owner for work in works] == [0, 1]


@pytest.mark.parametrize(
    ("nodes", "changes", "named"),
    [
        ("xxxyy", {0: WRONG, 1: WRONG, 2: WRONG}, None),  # three ranks, but one replica against another
        ("xxxyz", {0: WRONG, 1: WRONG, 2: WRONG}, [0, 1, 2]),
        ("xxx", {1: WRONG}, [1]),  # running averages are each rank's own
        ("xx", {1: WRONG}, None),
        (
            "xxyy",
            {1: WRONG},
            None,
        ),  # x has no majority, and y alone is only half of the replicas
        ("xxyyzz", {1: WRONG}, [1]),
    ],
)
def test_ranks_that_share_a_replica_have_one_vote(nodes, changes, named):
    assert compared("a" * len(nodes), changes, nodes)[0] == named
