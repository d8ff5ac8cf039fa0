"""Recovery on thread-ranks: wherever a rank dies, the survivors hold the newest state and all shards."""

import contextlib
import itertools

import numpy as np
import pytest

from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.data import assign
from ddl.errors import CommError, PeerLost, QuorumLost, Stop, UserCodeError
from ddl.fault.driver import Driver
from ddl.fault.recover import RecoverySettings, detection_s
from ddl.fault.work import Program, Recoverable

SHARDS, STEPS = 12, 4


class Counting(Recoverable):
    """State whose right value is known: every step adds, over all shards, (shard + 1) * (step + 1)."""

    def __init__(self):
        self.value, self.step, self.shards = np.zeros(3), 0, []

    def position(self):
        return self.step, 0

    def flat_arrays(self):
        return [self.value]

    def meta(self):
        return self.step

    def take_over(self, arrays, meta):
        self.value, self.step = arrays[0].copy(), meta

    def attach(self, group, plan):
        group.barrier()
        self.shards = plan.shards_of(group.rank)

    def advance(self, group):
        total = np.full(3, sum(shard + 1.0 for shard in self.shards) * (self.step + 1))
        group.native_allreduce(total)
        group.barrier()
        self.value, self.step = self.value + total, self.step + 1


class Count(Program):
    """Steps of ``Counting`` until STEPS. before_step(step, group): called before each."""

    def __init__(self, group, settings, before_step):
        self.work, self.before_step = Counting(), before_step
        self.driver = Driver(self, group, assign(SHARDS, group.size), settings)

    def run(self):
        while self.work.step < STEPS:
            self.before_step(self.work.step, self.driver.group)
            self.work.advance(self.driver.group)
        self.driver.group.barrier()


def right_value(steps):
    return sum(range(1, SHARDS + 1)) * sum(range(1, steps + 1))


def job(group, settings=None, before_step=lambda step, group: None):
    """(state, group, reports) at the end, or the error that ended the job early on all ranks."""
    program = Count(group, settings, before_step)
    failure = program.driver.run()
    return failure or (program.work, program.driver.group, program.driver.reports)


def check(results):
    done = [r for r in results if not isinstance(r, Killed)]
    for result in done:
        assert not isinstance(result, BaseException), repr(result)
    workers = [r for r in done if not r[1].is_spare]
    assert all((work.value == right_value(STEPS)).all() for work, *_ in workers)
    # The shards of a rank that dies after the agreement on the end are not reassigned.
    died_after_the_end = any(isinstance(r, Killed) and str(r).endswith("agree.done") for r in results)
    if workers and not died_after_the_end:
        held = sorted(shard for work, *_ in workers for shard in work.shards)
        assert held == list(range(SHARDS))
        counts = [len(work.shards) for work, *_ in workers]
        assert max(counts) - min(counts) <= 1
    return done


def points_of(size, rank, **options):
    """How many kill points ``rank`` passes in an undisturbed run."""
    passed = [0]

    def probe(number):
        def count(point):
            passed[0] += number == rank

        return count

    run_ranks(size, job, probe=probe, **options)
    return passed[0]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_death_at_any_point_loses_nothing(size):
    for rank in {0, size - 1}:
        for count in range(1, points_of(size, rank) + 1):
            results = run_ranks(size, job, death=Death(rank, count))
            assert sum(isinstance(r, Killed) for r in results) == 1
            check(results)


@pytest.mark.parametrize("first", [3, 20])
def test_a_second_death_at_any_point_of_the_recovery_costs_nothing(first):
    for count in range(first, first + 60):
        results = run_ranks(4, job, death=[Death(3, first), Death(1, count)])
        check(results)


def test_all_but_one_may_die_one_after_another():
    results = run_ranks(4, job, death=[Death(0, 8), Death(1, 60), Death(2, 120)])
    check(results)


def test_a_spare_steps_in_and_takes_the_state_from_a_survivor():
    results = check(run_ranks(2, job, spares=1, death=Death(1, 20)))
    assert [group.size for _, group, *_ in results] == [2, 2]
    report = results[0][2][0]
    assert report.promoted == [2] and sorted(report.moved[2]) == [6, 7, 8, 9, 10, 11]


def test_a_dead_spare_is_let_go():
    results = check(run_ranks(2, job, spares=2, death=Death(3, 1)))
    assert len(results) == 3


def test_below_the_minimum_all_survivors_stop():
    results = run_ranks(3, lambda g: job(g, RecoverySettings(min_ranks=3)), death=Death(1, 20))
    assert all(isinstance(r, Stop | Killed) for r in results)


def test_the_report_names_the_dead_ranks_and_the_moved_shards():
    results = check(run_ranks(3, job, death=Death(1, 20)))
    report = results[0][2][0]
    assert [death.identity for death in report.deaths] == [1]
    assert report.deaths[0].shards == {4, 5, 6, 7}
    assert sorted(shard for shards in report.moved.values() for shard in shards) == [4, 5, 6, 7]
    assert set(report.phases) >= {"fence", "revoke", "shrink", "agree", "level", "reassign"}


def test_an_error_before_the_first_commit_ends_the_job_everywhere():
    note = {"kind": "exception", "step": 0, "error": "ValueError: bad", "traceback": "Traceback ..."}
    settings = RecoverySettings(notes=lambda identity: note)
    results = run_ranks(3, lambda g: job(g, settings), death=Death(2, 2))
    survivors = [r for r in results if not isinstance(r, Killed)]
    assert all(isinstance(r, UserCodeError) and "ValueError: bad" in str(r) for r in survivors)


def test_no_rank_continues_without_quorum():
    # The dead were on hosts where no survivor can confirm a death, so the two left are the smaller side.
    results = run_ranks(5, lambda g: job(abroad(g)), death=[Death(0, 9), Death(1, 9), Death(2, 9)])
    survivors = [r for r in results if not isinstance(r, Killed)]
    assert len(survivors) == 2 and all(isinstance(r, QuorumLost) for r in survivors)


def abroad(group):
    from dataclasses import replace

    group.members[:] = [replace(m, node=f"node{m.identity}") for m in group.members]
    return group


@pytest.mark.parametrize(
    ("note", "seconds"),
    [
        ({"time": 99.0}, 1.0),  # its companion saw it end
        ({"time": 98.0, "after_s": 2.0}, 4.0),  # it hung for two seconds before it was killed
        ({"time": 50.0, "after_s": 120.0}, 9.0),  # it took part in what was 9 s ago, whatever clocks say
        ({"time": 103.0}, 0.0),  # it died while the others recovered from another's death
        (None, 0.5),  # no companion saw it end: counts from the failed call
        ({"kind": "crash"}, 0.5),
    ],
)
def test_a_failure_counts_from_the_death_if_its_time_is_known(note, seconds):
    assert detection_s(note, raised_s=99.5, began_s=100.0, longest_s=9.0) == pytest.approx(seconds)


class Limits:
    """Which part of a recovery a rank was in when it passed each of its kill points."""

    def __init__(self):
        self.now, self.seen = None, []

    @contextlib.contextmanager
    def recovering(self, part):
        self.now = part
        yield
        self.now = None

    def probe(self, point):
        if self.now is not None:
            self.seen.append((self.now, point))


def test_only_collective_parts_of_a_recovery_have_the_short_limit():
    """Until all ranks have arrived, one may compute as long as in any step. Reading shards has its own limit."""
    limits = [Limits() for _ in range(3)]
    results = run_ranks(
        3,
        lambda group: job(group, RecoverySettings(recovering=limits[group.rank].recovering)),
        death=Death(2, 4),
        probe=lambda rank: limits[rank].probe,
    )
    check(results)
    for rank in (0, 1):
        parts = [part for part, _ in limits[rank].seen]
        assert [part for part, _ in itertools.groupby(parts)] == ["meet", "", "read"]
        where = dict(reversed([(point, part) for part, point in limits[rank].seen]))
        assert where["recovery.agree"] == "meet" and where["recovery.shrink"] == ""
        assert where["recover.agree"] == "" and where["recovery.barrier"] == "read"
    assert limits[2].seen == []


def failing_call(steps):
    """A call that fails once in each of ``steps`` on rank 1 although no rank has died."""
    left = list(steps)

    def before_step(step, group):
        if group.me.identity == 1 and left and step == left[0]:
            left.pop(0)
            raise PeerLost([], group.generation, "job.native") from OSError("MPI_ERR_TRUNCATE: message truncated")

    return before_step


def test_an_mpi_error_without_a_death_is_recovered_once():
    results = check(run_ranks(3, lambda group: job(group, before_step=failing_call([1, 2]))))
    assert all([report.deaths for report in reports] == [[], []] for *_, reports in results)


def test_the_second_mpi_error_in_a_row_without_a_death_ends_the_job_with_rank_and_call():
    for failure in run_ranks(3, lambda group: job(group, before_step=failing_call([2, 2]))):
        assert isinstance(failure, CommError) and failure.exit_status == 1
        assert "MPI_ERR_TRUNCATE: message truncated in job.native on rank 1" in str(failure)
        assert "came back at step 2" in str(failure)
