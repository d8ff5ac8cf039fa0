"""Kinds of failure, each on a real job: exceptions, stopped and hung ranks, several deaths, too few ranks left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest

from ddl.fault.inject import parse
from ddl.launcher.mca_files import enable_fault_tolerance

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]

USER_CODE = '''
"""A user's callbacks and model, with bugs in them."""
import os

def each_step(outcome):
    if outcome.step >= int(os.environ["FAIL_AT"]):
        raise ValueError(f"user error at step {outcome.step}")

def broken_model(*args, **options):
    if os.environ.get("FAIL_ON", "all") in ("all", os.environ["OMPI_COMM_WORLD_RANK"]):
        raise ZeroDivisionError("mistake in the model")
    from ddl.models.zoo import mlp
    return mlp(*args, **options)

def crash_natively(outcome):
    if outcome.step == 15:
        import ctypes
        ctypes.string_at(0)

def long_once(outcome):
    if outcome.step == 5:
        import time
        time.sleep(12)
'''


def assert_calm(ended, calm):
    assert ended.status == 0 and ended.summary["status"] == "finished", ended.said
    assert ended.is_exact()
    assert ended.losses == pytest.approx(calm.losses, rel=1e-8)


# Exceptions.


def test_an_exception_costs_one_rank(jobs, calm):
    ended = jobs.run(chaos="raise rank 1 at step 5")
    assert_calm(ended, calm)
    assert ended.lost == [(1, "exception")]
    assert ended.said.count("InjectedError: injected") == 1 and "Traceback" in ended.said
    (failure,) = ended.of("failure")
    assert "InjectedError" in failure["error"]


def test_the_same_native_crash_on_a_second_rank_ends_the_job(jobs):
    """A callback that crashes would otherwise kill every leader in turn, and leave no rank to report it."""
    (jobs.folder / "mistakes.py").write_text(USER_CODE)
    ended = jobs.run("--train.callbacks", '["mistakes:crash_natively"]')
    assert ended.summary["status"] == "failed" and ended.summary["exit_status"] == 1, ended.said
    assert ended.lost == [(0, "crash"), (1, "crash")]
    assert "rank 1 crashed (Segmentation fault) at step 15 in callback" in ended.summary["error"]
    assert "Segmentation fault" in ended.said and "crash_natively" in ended.said
    assert ended.seconds < 60


def test_the_same_exception_on_a_second_rank_stops_the_job(jobs):
    (jobs.folder / "mistakes.py").write_text(USER_CODE)
    ended = jobs.run("--train.callbacks", '["mistakes:each_step"]', environ={"FAIL_AT": "5"})
    assert ended.status == 1, ended.said
    assert ended.summary["status"] == "failed" and "user error at step 5" in ended.summary["error"]
    assert "each_step" in ended.said  # the traceback
    assert ended.summary["ranks_finished"] >= 2  # a bug that every rank hits does not kill the ranks one by one


@pytest.mark.parametrize("overlap", [(), ("--comm.overlap=on", "--comm.bucket_mib=0.05")], ids=["", "overlapping"])
def test_an_exception_on_all_ranks_at_once_stops_the_job(overlap, jobs):
    ended = jobs.run(*overlap, chaos="raise ranks 0,1,2,3 at step 5 point step.compute")
    assert ended.status == 1 and ended.summary["status"] == "failed", ended.said


def test_an_exception_before_the_first_commit_ends_the_job(jobs):
    ended = jobs.run(chaos="raise rank 2 at step 0 point step.compute")
    assert ended.status == 1 and "InjectedError" in ended.said
    assert ended.summary["steps"] == 0


@pytest.mark.parametrize("where", ["all", "1", "0"])
@pytest.mark.parametrize("flags", [("--with-ft", "ulfm"), ()])
def test_an_exception_while_the_model_is_made_ends_the_job_with_one_traceback(jobs, where, flags):
    (jobs.folder / "mistakes.py").write_text(USER_CODE)
    ended = jobs.run("--model.name", "mistakes:broken_model", environ={"FAIL_ON": where}, flags=flags)
    assert ended.status == 1, ended.said
    assert ended.said.count("Traceback") == 1, ended.said
    assert ended.seconds < 30


# Ranks that stand still.


def test_a_stopped_rank_is_replaced_within_seconds(jobs, calm):
    ended = jobs.run(chaos="stop rank 1 at step 5")
    assert_calm(ended, calm)
    assert ended.lost == [(1, "stopped")]
    assert ended.summary["failures"][0]["detect_s"] < 10


def test_a_hung_rank_is_killed_and_says_where_it_hung(jobs, calm):
    ended = jobs.run("--fault.hang_timeout_s", "3", chaos="hang rank 2 at step 5 point step.compute")
    assert_calm(ended, calm)
    assert ended.lost == [(2, "hang")]
    note = json.loads((ended.folder / "notes" / ended.summary["launch"] / "rank-2.json").read_text())
    assert note["step"] == 5 and note["phase"] == "compute" and note["kind"] == "hang"
    assert "inject.py" in note["stack"] and "perform" in note["stack"]
    (failure,) = ended.summary["failures"]
    assert failure["phase"] == "compute" and failure["note"].endswith("rank-2.json")
    (first,) = ended.of("first_step")
    assert first["step"] == 6 and first["seconds"] > 0


PAUSES = """
import os, time
from ddl.comm import Group
from ddl.train.__main__ import main

agree = Group.agree

def pausing(self, flags):
    vote = agree(self, flags)
    if self.doing == "recovery" and os.environ["OMPI_COMM_WORLD_RANK"] == "0":
        time.sleep(0.3)
    return vote

Group.agree = pausing
raise SystemExit(main())
"""


def test_a_hang_and_a_death_in_one_step_cost_two_ranks(jobs, calm):
    """A rank that has noticed the death waits for the one that hangs, until that one's own companion has ended it.
    After the long wait rank 0 pauses, as on a busy machine, while its companion sees that it waits no longer."""
    (jobs.folder / "pauses.py").write_text(PAUSES)
    limits = ("--fault.hang_timeout_s", "10", "--fault.recovery_timeout_s", "6")
    script = "hang rank 1 at step 5 point step.compute; kill rank 3 at step 5 point step.compute"
    ended = jobs.run(*limits, chaos=script, program=("pauses.py",))
    assert_calm(ended, calm)
    assert sorted(ended.lost) == [(1, "hang"), (3, "crash")] and ended.summary["ranks_finished"] == 2


def test_a_rank_that_computes_on_through_a_death_is_waited_for(jobs, calm):
    (jobs.folder / "mistakes.py").write_text(USER_CODE)
    words = ("--fault.recovery_timeout_s", "6", "--train.callbacks", '["mistakes:long_once"]')
    ended = jobs.run(*words, chaos="kill rank 2 at step 5")
    assert_calm(ended, calm)
    assert ended.lost == [(2, "crash")] and ended.summary["ranks_finished"] == 3


def test_a_job_that_is_suspended_as_a_whole_lives(jobs, calm):
    running = jobs.start("--train.callbacks", '["slow:step"]', "--fault.hang_timeout_s", "5", environ=slow(jobs))
    running.until(3)
    everything = running.everything()
    for pid in everything:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(8)  # longer than any limit of the companions'
    for pid in everything:
        os.kill(pid, signal.SIGCONT)
    ended = running.wait()
    assert_calm(ended, calm)
    assert ended.lost == []


def slow(jobs, seconds: float = 0.1) -> dict[str, str]:
    """Makes the callback slow:step, so that a job lasts long enough to be struck from outside."""
    (jobs.folder / "slow.py").write_text(f"import time\ndef step(outcome): time.sleep({seconds})\n")
    return {}


# Several deaths.


@pytest.mark.parametrize(
    "script",
    [
        "kill rank 0 at step 5",
        "kill ranks 0,1,2 at step 5",
        "kill ranks 1,3 at step 0 point step.compute; kill rank 0 at step 29 point step.commit",
        "segv rank 0 at step 5; exit rank 1 at step 9; kill rank 2 at step 10",
    ],
)
def test_one_rank_is_enough_to_finish(script, jobs, calm):
    ended = jobs.run(chaos=script)
    assert_calm(ended, calm)
    assert ended.summary["ranks_finished"] == 4 - len(ended.lost)


def test_a_seed_determines_the_random_faults(jobs, calm):
    script = "random:seed=7,kills=3,steps=25"
    ended = jobs.run(chaos=script)
    assert_calm(ended, calm)
    drawn = parse(script, ranks=4)
    recorded = (ended.folder / "notes" / ended.summary["launch"] / "faults").read_text().splitlines()
    assert recorded == [str(fault) for fault in drawn.faults] and len(recorded) == 3
    assert [rank for rank, _ in ended.lost] == [fault.rank for fault in drawn.faults]


READS_AHEAD = """
import os, signal, threading
from ddl.data.loader import Loader
from ddl.train.__main__ import main

make = Loader._make

def struck(self, key, slot):
    made = make(self, key, slot)
    if os.environ["OMPI_COMM_WORLD_RANK"] == os.environ["VICTIM"] and key[1] == 4:
        assert threading.current_thread().name == "ddl-prefetch"
        os.kill(os.getpid(), signal.SIGKILL)
    return made

Loader._make = struck
raise SystemExit(main())
"""


@pytest.mark.parametrize("victim", [0, 2])
def test_a_death_in_the_middle_of_a_prefetch(victim, jobs, undisturbed):
    """The batch that is being read is of a later step than the one that is computed."""
    words = ("--data.augment", '["noise:0.1"]')
    (jobs.folder / "reads_ahead.py").write_text(READS_AHEAD)
    ended = jobs.run(*words, program=("reads_ahead.py",), environ={"VICTIM": str(victim)})
    assert_calm(ended, undisturbed(*words))
    assert ended.lost == [(victim, "crash")]


def test_killed_from_outside_at_any_moment(jobs, calm):
    running = jobs.start("--train.callbacks", '["slow:step"]', environ=slow(jobs, 0.05))
    for step, rank in ((3, 2), (9, 0), (15, 3)):
        running.until(step)
        os.kill(running.ranks()[rank], signal.SIGKILL)
    ended = running.wait()
    assert_calm(ended, calm)
    assert ended.lost == [(2, "crash"), (0, "crash"), (3, "crash")]


def test_fewer_than_min_ranks_end_with_a_checkpoint_and_75(jobs, calm):
    ended = jobs.run("--fault.min_ranks", "3", chaos="kill rank 0 at step 5; kill rank 3 at step 10")
    assert ended.status == 75, ended.said
    assert ended.summary["status"] == "stopped" and ended.summary["steps"] == 10
    again = jobs.run(n=2, folder=ended.folder)
    assert_calm(again, calm)


# A recovery that fails.


def test_a_recovery_that_hangs_is_ended_by_the_companions_and_the_supervisor_starts_again(jobs, calm):
    ended = jobs.supervised(
        "--fault.recovery_timeout_s",
        "3",
        "--checkpoint.every_steps",
        "4",
        chaos="kill rank 2 at step 9; hang ranks 0,1,3 at point recover.shrink",
    ).wait()
    assert_calm(ended, calm)
    assert "starting again" in ended.said


@pytest.mark.parametrize("point", ["recover.shrink", "recover.reassign"])
def test_one_rank_that_hangs_in_a_recovery_is_lost_and_the_others_continue(point, jobs, calm):
    ended = jobs.run("--fault.recovery_timeout_s", "12", chaos=f"kill rank 2 at step 9; hang rank 1 at point {point}")
    assert_calm(ended, calm)
    assert ended.lost == [(1, "recovery"), (2, "crash")]  # of one recovery, by rank


# Tolerance by parameter files of the environment, as launch/local.sh writes them.


def test_plain_mpirun_is_tolerant_if_the_environment_says_so(jobs, calm):
    home = jobs.folder / "home"
    enable_fault_tolerance(home / ".prte" / "mca-params.conf")
    ended = jobs.run(chaos="kill rank 0 at step 5; segv rank 2 at step 9", flags=(), environ={"HOME": str(home)})
    assert_calm(ended, calm)
    assert ended.lost == [(0, "crash"), (2, "crash")]


# What a failure does to the numbers.


def test_in_float32_the_losses_after_a_failure_agree_to_four_digits(jobs):
    words = ("--train.dtype=float32", "--train.steps=40")
    undisturbed = jobs.run(*words)
    ended = jobs.run(*words, chaos="kill rank 1 at step 10 point allreduce.block; kill rank 0 at step 30")
    assert ended.status == 0 and len(ended.lost) == 2, ended.said
    for step in range(11, 31):
        assert ended.losses[step] == pytest.approx(undisturbed.losses[step], rel=1e-4), step
    ours, theirs = ended.summary["test"], undisturbed.summary["test"]
    assert abs(ours["accuracy"] - theirs["accuracy"]) * ours["samples"] <= 2
