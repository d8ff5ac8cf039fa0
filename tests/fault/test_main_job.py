"""The main job, without an argument: the same steps, samples and accuracy on any number of ranks."""

from __future__ import annotations

import json
import shutil

import pytest

from ddl.data.ledger import Record, read

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
TEST_IMAGES = 359


def test_it_reaches_its_accuracy_on_four_ranks(main_job):
    job = main_job(4)
    assert job.status == 0 and job.summary["status"] == "finished", job.said
    assert job.summary["test"]["samples"] == TEST_IMAGES
    # One image is 0.28 points of accuracy, and which images are in the test part counts: the loss says more.
    assert job.summary["test"]["accuracy"] >= 0.97 and job.summary["test"]["loss"] <= 0.06
    assert job.summary["ranks_started"] == job.summary["ranks_finished"] == 4
    for name in ("config.toml", "metrics.jsonl", "ledger.jsonl", "checkpoints"):
        assert (job.folder / name).exists()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_it_is_the_same_job_on_any_number_of_ranks(main_job, ranks):
    job, four = main_job(ranks), main_job(4)
    assert job.status == 0, job.said
    for name in ("status", "steps", "epochs", "global_batch", "shards", "samples"):
        assert job.summary[name] == four.summary[name], name
    assert job.is_exact()
    right, wanted = (round(run.summary["test"]["accuracy"] * TEST_IMAGES) for run in (job, four))
    assert abs(right - wanted) <= 2
    records = [entry for entry in read(job.folder / "ledger.jsonl") if isinstance(entry, Record)]
    assert {rank for record in records for rank in record.plan} == set(range(ranks))


def test_the_keys_that_scripts_read_keep_their_names(main_job):
    job = main_job(4)
    step = next(json.loads(line) for line in (job.folder / "metrics.jsonl").open() if '"event":"step"' in line)
    assert {"event", "time", "step", "epoch", "loss", "lr", "samples", "seconds"} <= set(step)
    wanted = "status launch steps epochs global_batch shards ranks_started ranks_finished train validation test samples"
    wanted += " failures parameters_sha256 samples_per_s wall_s versions"
    assert set(wanted.split()) <= set(job.summary)
