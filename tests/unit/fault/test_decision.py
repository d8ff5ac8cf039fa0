"""The decision after a failure: one line per case."""

import pytest

from ddl.fault.decision import Action, RankDeath, Situation, decide, fatal_death, has_quorum, repeated_death


def exception(identity, step, shards, error="ValueError: x"):
    return RankDeath(identity, "host", "exception", step, frozenset(shards), error, "traceback")


def situation(last, alive, confirmed=(), **changes):
    return Situation(**{"last": last, "alive": alive, "confirmed": confirmed, "minimum": 1, "committed": 9, **changes})


@pytest.mark.parametrize(
    ("last", "alive", "confirmed", "expected"),
    [
        ([0, 1, 2, 3], [0, 1, 2], [3], True),  # an ordinary death
        ([0, 1, 2, 3], [3], [0, 1, 2], True),  # down to one, all seen to be gone
        ([0, 1, 2, 3], [0, 1, 2], [], True),  # the larger half needs no confirmation
        ([0, 1, 2, 3], [2, 3], [], False),  # a tie: the other side has rank 0
        ([0, 1, 2, 3], [0, 1], [], True),  # a tie: this side has rank 0
        ([0, 1, 2, 3], [3], [], False),  # cut off alone
        ([0, 1, 2, 3], [2, 3], [0], True),  # rank 0 is dead for certain: 2 of 3 voters are here
        ([0, 1, 2], [2], [0], False),  # a tie among the voters 1 and 2: 1 is lower
        ([5, 7], [7], [5], True),
    ],
)
def test_the_larger_half_of_the_voters_continues(last, alive, confirmed, expected):
    assert has_quorum(last, alive, confirmed) is expected


@pytest.mark.parametrize("size", range(1, 7))
def test_two_sides_of_a_partition_never_both_continue(size):
    everyone = list(range(size))
    for mask in range(2**size):
        here = [i for i in everyone if mask >> i & 1]
        there = [i for i in everyone if not mask >> i & 1]
        if here and there:
            assert has_quorum(everyone, here, []) + has_quorum(everyone, there, []) == 1


def test_a_death_is_survived():
    assert decide(situation([0, 1, 2], [0, 2], [1])) is Action.CONTINUE


def test_without_quorum_this_side_leaves():
    assert decide(situation([0, 1, 2], [2])) is Action.LEAVE


def test_below_the_minimum_the_job_stops():
    assert decide(situation([0, 1, 2], [0, 2], [1], minimum=3)) is Action.STOP


def test_an_exception_before_the_first_commit_ends_the_job():
    dead = exception(1, 0, [4])
    assert decide(situation([0, 1], [0], [1], committed=0, deaths=[dead])) is Action.FAIL


def test_a_crash_before_the_first_commit_does_not():
    dead = RankDeath(1, "host", "crash")
    assert decide(situation([0, 1], [0], [1], committed=0, deaths=[dead])) is Action.CONTINUE


def test_one_exception_costs_one_rank():
    assert decide(situation([0, 1], [0], [1], deaths=[exception(1, 9, [4])])) is Action.CONTINUE


def test_the_same_shard_failing_at_the_same_step_again_stops_the_job():
    first, second = exception(1, 9, [4, 5], "ValueError: x"), exception(2, 9, [2, 5], "KeyError: y")
    now = situation([0, 2], [0], [2], deaths=[second], history=[first])
    assert decide(now) is Action.FAIL
    assert fatal_death(now) is second


def test_the_same_error_on_two_ranks_at_once_stops_the_job():
    assert repeated_death([exception(1, 3, [0]), exception(2, 3, [1])], []) is not None


def test_different_errors_of_different_shards_do_not():
    assert repeated_death([exception(2, 9, [1], "KeyError: y")], [exception(1, 9, [4])]) is None


def test_crashes_without_a_trace_never_count_as_errors_of_the_user():
    crash = RankDeath(1, "host", "crash", 9, frozenset([4]))
    assert repeated_death([crash], [crash]) is None


def native(identity, step=15, phase="callback", error="Segmentation fault"):
    return RankDeath(identity, "host", "crash", step, error=error, phase=phase)


def test_a_native_crash_at_the_same_step_and_phase_on_a_second_rank_ends_the_job():
    first, second = native(0), native(1)
    assert decide(situation([0, 1, 2], [1, 2], [0], deaths=[first])) is Action.CONTINUE
    now = situation([1, 2], [2], [1], deaths=[second], history=[first])
    assert decide(now) is Action.FAIL and fatal_death(now) is second


@pytest.mark.parametrize("other", [native(1, step=16), native(1, phase="compute"), native(1, error=""), native(0)])
def test_other_native_crashes_do_not(other):
    assert repeated_death([other], [native(0)]) is None


@pytest.mark.parametrize(("recoveries", "action"), [(0, Action.CONTINUE), (1, Action.CONTINUE), (2, Action.FAIL)])
def test_the_second_recovery_in_a_row_without_a_death_ends_the_job(recoveries, action):
    assert decide(situation([0, 1], [0, 1], without_death=recoveries)) is action


def test_different_errors_on_all_remaining_ranks_end_the_job():
    first, second = exception(0, 9, [1], "ValueError: x"), exception(2, 9, [4], "KeyError: y")
    assert decide(situation([0, 1, 2], [0, 2], [1], deaths=[first, second], leaving=[0, 2])) is Action.FAIL


def test_leaving_ranks_do_not_count_as_remaining():
    now = situation([0, 1, 2], [0, 1, 2], deaths=[exception(1, 9, [4])], leaving=[1], minimum=3)
    assert decide(now) is Action.STOP
