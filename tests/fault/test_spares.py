"""The places of the dead are taken: by spare ranks, or by a start of the whole job on all its ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
ROOT = Path(__file__).parents[2]


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


def test_a_signal_during_a_recovery_stops_the_job_at_a_checkpoint(jobs):
    (jobs.folder / "signalled.py").write_text(SIGNALLED)
    ended = jobs.run("--fault.spares", "1", n=4, program=("signalled.py",), chaos="kill rank 1 at step 5")
    assert ended.status == 75 and ended.summary["status"] == "stopped", ended.said
    assert (ended.lost, ended.summary["ranks_finished"]) == ([(1, "crash")], 3)


SIGNALLED = """
import os, signal
from ddl import early_signals
from ddl.fault.recover import Recovery

settle = Recovery._settle

def signalled(self, *words):
    os.kill(os.getpid(), signal.SIGUSR1)
    return settle(self, *words)

Recovery._settle = signalled
early_signals.install()
from ddl.train.__main__ import main
raise SystemExit(main())
"""


def test_without_a_worker_the_spares_start_nothing_of_their_own(jobs):
    ended = jobs.run("--fault.spares", "1", n=3, chaos="kill ranks 0,1 at step 5 point step.load")
    assert ended.status == 75, ended.said
    assert not ended.summary


def test_a_lost_rank_is_regained_by_a_start_on_all_ranks_while_restarts_are_left(jobs, calm):
    """Rank 1 of the first launch dies, rank 2 of the second, rank 3 of the third, which has no such restart left."""
    (jobs.folder / "sitecustomize.py").write_text(MORTAL)
    words = ("--fault.respawn", "true", "--restarts", "3")
    ended = jobs.supervised(*words, environ={"PYTHONPATH": f"{jobs.folder}:{ROOT}"}).wait()
    assert_calm(ended, calm)
    assert ended.said.count("starting again on 4 ranks") == 2, ended.said
    assert [event["ranks"] for event in ended.of("start")] == [4, 4, 4]
    assert (ended.summary["ranks_finished"], ended.lost) == (3, [(3, "crash")])
    assert ended.said.count("a rank lost from here on is not regained") == 1


MORTAL = """
import os
attempt, rank = os.environ.get("DDL_LAUNCH", "").rpartition("-")[2], os.environ.get("OMPI_COMM_WORLD_RANK", "")
if attempt.isdecimal() and rank and int(rank) == int(attempt) + 1:
    import sys
    sys.argv += ["--fault.chaos", f"kill rank {rank} at step {5 + 8 * int(attempt)}"]
"""


def test_respawn_is_rejected_without_a_supervisor_that_restarts_the_ranks(jobs):
    ended = jobs.run("--fault.respawn", "true")
    assert ended.status == 2 and ended.said.count("ddl.train:") == 1, ended.said
    assert "MPI_Comm_spawn" in ended.said and "python -m ddl.launch" in ended.said
    assert not ended.folder.exists()
