"""A rank of a real job dies at every kill point: of a step, of a recovery, of an evaluation, a checkpoint and the end.

Whatever dies, the job ends with the result of the undisturbed one. Several deaths share a job, since starting
one takes longer than training does; DDL_SWEEP=full gives every kill point a job of its own, on 4 ranks."""

from __future__ import annotations

import os
import shutil

import pytest

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
FULL = os.environ.get("DDL_SWEEP") == "full"
LAST = 30

# "POINT:N": the N-th time in that step, recovery, ... that the rank passes it.
STEP = [
    *("step.load:1", "step.compute:1", "step.sum:1", "allreduce.barrier:1", "allreduce.barrier.done:1"),
    *("allreduce.block:1", "allreduce.barrier:2", "allreduce.barrier.done:2", "step.commit:1"),
]
RECOVERY = [
    *("recover.fence:1", "recover.revoke:1", "recovery.revoke:1", "recovery.revoke.done:1", "recover.shrink:1"),
    *("recovery.agree:1", "recovery.agree.done:1", "recovery.shrink:1", "recovery.shrink.done:1", "recover.agree:1"),
    *("recovery.gather:1", "recovery.gather.done:1", "recover.level:1", "recover.reassign:1", "recovery.gather:2"),
    *("recovery.gather.done:2", "recovery.gather:3", "recovery.gather.done:3", "recovery.share:1"),
    *("recovery.share.done:1", "recovery.agree:2", "recovery.agree.done:2"),
]
EVALUATION = ["evaluate.batch:1", "job.gather:1", "job.gather.done:1"]
CHECKPOINT = [
    *("checkpoint.mkdir:1", "checkpoint.mkdir.done:2", "checkpoint.open:1", "checkpoint.open.done:2"),
    *("checkpoint.write:1", "checkpoint.write.done:3", "checkpoint.fsync:1", "checkpoint.fsync.done:2"),
    *("checkpoint.fsync:3", "checkpoint.rename:1", "checkpoint.rename.done:1", "checkpoint.fsync:4"),
]
END = ["end.checkpoint:1", "end.barrier:1", "job.gather:3", "job.gather.done:3", "job.agree:1"]


def chunks(points: list[str], size: int) -> list[list[str]]:
    return [points[i : i + size] for i in range(0, len(points), size)]


def cases() -> dict[str, tuple[int, list[str]]]:
    """name -> ranks and script."""
    made: dict[str, tuple[int, list[str]]] = {}
    for place, points in enumerate(chunks(STEP, 1 if FULL else 3)):
        for first in (0, 1):  # the leader dies first, or lives longest
            victims = list(range(first, first + len(points)))
            made[f"step-{place}-{first}"] = (
                4,
                [f"kill rank {v} at step {4 + 6 * i} point {p}" for i, (v, p) in enumerate(zip(victims, points))],
            )
    for place, points in enumerate(chunks(RECOVERY, 1 if FULL else 2)):
        # A death, and another one in the recovery from it; then the same again with the leader.
        script = ["kill rank 4 at step 4 point step.compute", f"kill rank 1 at step 4 point {points[0]}"]
        script += ["kill rank 2 at step 9 point step.compute", f"kill rank 0 at step 9 point {points[-1]}"]
        made[f"recovery-{place}"] = (5, script)
    for place, point in enumerate(EVALUATION):
        made[f"evaluation-{place}"] = (
            4,
            [f"kill rank {victim} at step {step} point {point}" for victim, step in ((1, 5), (0, 10), (2, 20))],
        )
    for place, points in enumerate(chunks(CHECKPOINT, 1 if FULL else 3)):
        # Whoever leads writes; the next leader's first checkpoint is its own.
        made[f"checkpoint-{place}"] = (4, [f"kill rank {v} at point {p}" for v, p in enumerate(points)])
    for place, points in enumerate(chunks(END, 1 if FULL else 2)):
        made[f"end-{place}"] = (4, [f"kill rank {v} at step {LAST} point {p}" for v, p in enumerate(points, 1)])
    made["end-leader"] = (4, [f"kill rank {v} at step {LAST} point {p}" for v, p in enumerate(END[:3])])
    made["end-summary"] = (4, [f"kill rank 0 at step {LAST} point end.summary"])
    return made


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_the_job_ends_like_an_undisturbed_one(name, jobs, calm):
    ranks, script = CASES[name]
    ended = jobs.run("--checkpoint.every_steps", "7", n=ranks, chaos="; ".join(script))
    assert ended.status == 0 and ended.summary["status"] == "finished", ended.said
    assert sorted(ended.lost) == sorted((int(line.split()[2]), "crash") for line in script), ended.said
    assert ended.summary["steps"] == LAST and ended.is_exact()
    assert ended.summary["test"]["loss"] == pytest.approx(calm.summary["test"]["loss"], rel=1e-8)
    assert ended.summary["test"]["accuracy"] == calm.summary["test"]["accuracy"]
    assert ended.losses == pytest.approx(calm.losses, rel=1e-8)
