"""Failures do not change the results of a job: same samples in every step, same losses, same accuracy."""

from __future__ import annotations

import shutil

import pytest

from ddl.data.ledger import lineage, read

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
TEST_IMAGES = 359
AFTER = 20  # steps after a failure in which float32 must not drift


def samples(job) -> dict[int, list[int]]:
    """step -> indices of the samples used in it, according to the job's ledger."""
    records, order, problems = lineage(read(job.folder / "ledger.jsonl"))
    assert order is not None and not problems
    found = {}
    for step, record in records.items():
        epoch, place = divmod(step, order.steps_per_epoch)
        # No rank computed a shard that is missing from the plan.
        numbers, _ = order.indices(epoch, place, range(len(record.plan)))
        assert record.samples == len(numbers) and not record.skipped, step
        found[step] = sorted(numbers.tolist())
    return found


def test_the_main_job_in_float32_with_two_deaths(jobs, main_job):
    calm = main_job(4)
    chaos = "kill rank 2 at step 100 point allreduce.block; kill rank 0 at step 300 point step.commit"
    ended = jobs.run(n=4, chaos=chaos, quick=False)
    assert ended.status == 0 and ended.lost == [(2, "crash"), (0, "crash")], ended.said
    assert ended.is_exact() and samples(ended) == samples(calm)
    for step in range(101, 101 + AFTER):
        assert ended.losses[step] == pytest.approx(calm.losses[step], rel=1e-4), step
    right, wanted = (round(job.summary["test"]["accuracy"] * TEST_IMAGES) for job in (ended, calm))
    assert abs(right - wanted) <= 2


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_whole_run_in_float64_with_three_deaths(model, jobs, undisturbed):
    words = ("--model.name", model, "--train.steps=60", "--train.dtype=float64", "--metrics.console_every_s=0")
    calm = undisturbed(*words, quick=False)
    chaos = "kill rank 3 at step 7 point step.sum; segv rank 0 at step 20; kill rank 1 at step 59 point allreduce.block"
    ended = jobs.run(*words, chaos=chaos, quick=False)
    assert ended.status == 0 and [rank for rank, _ in ended.lost] == [3, 0, 1], ended.said
    assert ended.is_exact() and samples(ended) == samples(calm)
    assert list(ended.losses) == list(calm.losses) == list(range(1, 61))
    assert ended.losses == pytest.approx(calm.losses, rel=1e-8)
    ours, theirs = ended.summary["test"], calm.summary["test"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-8)
    assert abs(ours["accuracy"] - theirs["accuracy"]) * TEST_IMAGES <= 2
