"""Dead ranks are replaced, by spares or by new processes, which get the state from a survivor."""

from __future__ import annotations

import shutil

import pytest

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
# What ddl.launch adds.
RECOVERABLE = (
    *("--with-ft", "ulfm", "--prtemca", "state_base_recoverable", "1"),
    *("--prtemca", "state_base_notify_errors", "1"),
)


def assert_calm(ended, calm):
    assert ended.status == 0 and ended.summary["status"] == "finished", ended.said
    assert ended.is_exact()
    assert ended.losses == pytest.approx(calm.losses, rel=1e-8)


def test_spares_step_in(jobs, calm):
    ended = jobs.run("--fault.spares", "2", n=5, chaos="kill rank 1 at step 5; kill rank 0 at step 12")
    assert_calm(ended, calm)
    assert [event["promoted"] for event in ended.of("recovery")] == [[3], [4]]
    assert ended.summary["ranks_finished"] == 3


def test_spares_that_are_not_needed_end_with_the_others(jobs, calm):
    ended = jobs.run("--fault.spares", "2", n=4)
    assert_calm(ended, calm)
    assert ended.lost == []


def test_a_spare_that_dies_costs_nothing(jobs, calm):
    ended = jobs.run("--fault.spares", "1", n=4, chaos="kill rank 3 at point job.spare; kill rank 1 at step 12")
    assert_calm(ended, calm)


def test_spares_do_not_start_training_when_every_worker_is_dead(jobs):
    ended = jobs.run("--fault.spares", "1", n=3, chaos="kill ranks 0,1 at step 5 point step.load")
    assert ended.status == 75, ended.said
    assert not ended.summary


@pytest.mark.parametrize(
    "script",
    [
        "kill rank 1 at step 5",
        "kill rank 0 at step 5; segv rank 2 at step 12",
        "kill ranks 0,1,2 at step 5",
        "kill rank 3 at step 5; kill rank 0 at point recover.level",
        "raise rank 2 at step 5",
        "kill rank 0 at step 29 point step.commit",
    ],
)
def test_new_processes_replace_the_dead(script, jobs, calm):
    ended = jobs.run("--fault.respawn", "true", chaos=script, flags=RECOVERABLE)
    assert_calm(ended, calm)
    assert ended.summary["ranks_finished"] == 4
    assert [rank for event in ended.of("recovery") for rank in event["promoted"]] == [4, 5, 6][: len(ended.lost)]


def test_the_dead_are_replaced_where_all_ranks_are_needed(jobs, calm):
    """A replacement is launched as one process; fault.min_ranks and random scripts still use the job's size."""
    words = ("--fault.respawn", "true", "--fault.min_ranks", "3")
    ended = jobs.run(*words, chaos="random:seed=3,kills=1,steps=20", flags=RECOVERABLE)
    assert_calm(ended, calm)
    assert ended.summary["ranks_finished"] == 4 and len(ended.lost) == 1


def test_a_replacement_can_die_and_be_replaced(jobs, calm):
    (jobs.folder / "mortal.py").write_text(MORTAL)
    chaos = "kill rank 1 at step 5"
    ended = jobs.run("--fault.respawn", "true", program=("mortal.py",), chaos=chaos, flags=RECOVERABLE)
    assert_calm(ended, calm)
    assert [rank for rank, _ in ended.lost] == [1, 4]


MORTAL = """
import os, signal
from ddl.train.loop import Loop
from ddl.train.__main__ import main

advance = Loop.advance

def mortal(self):
    if self.state.progress.step == 12 and self.group.me.identity == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self)

Loop.advance = mortal
raise SystemExit(main())
"""


@pytest.mark.parametrize("victim", ["kill rank 0 at point recover.refill", "kill rank 2 at point recovery.refill.done"])
def test_a_death_while_a_replacement_is_started_ends_well(victim, jobs, calm):
    """In the worst case no rank finishes the start in time, and the supervisor relaunches the job."""
    ended = jobs.supervised(
        *("--fault.respawn", "true", "--fault.recovery_timeout_s", "10", "--checkpoint.every_steps", "4"),
        chaos=f"kill rank 1 at step 5; {victim}",
    ).wait()
    assert_calm(ended, calm)


def test_respawn_is_refused_where_mpirun_would_call_it_a_failure(jobs):
    ended = jobs.run("--fault.respawn", "true", flags=("--with-ft", "ulfm", *jobs.INTOLERANT))
    assert ended.status == 2 and "fault.respawn" in ended.said and ended.said.count("ddl.train:") == 1, ended.said
