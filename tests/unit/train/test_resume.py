"""Resuming from the memory checkpoint: from this run's, whatever the job's length, rate and ranks are by now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddl.arrays import Device
from ddl.checkpoint import Store, open_memory_checkpoint, owner_of
from ddl.checkpoint.memory import FOLDER_VARIABLE
from ddl.comm.threads import run_ranks
from ddl.run.resume import resume
from ddl.train.__main__ import main as train
from ddl.train.state import TrainingState

HERE = {"run.dir": "here"}


@pytest.fixture
def lost_disk(whole_job, tmp_path, monkeypatch):
    """A run of 9 steps whose newest checkpoint is in memory, while the disk has that of step 4; and that of step 9."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "memory"))
    run_ranks(2, lambda g: whole_job(g, {**HERE, "checkpoint.keep": 9}))
    disk = Store("here/checkpoints")
    saved = disk.load()
    for entry in disk.entries():
        if entry.step > 4:
            shutil.rmtree(entry.path)
    return saved


def keep_in_memory(arrays, meta, run=None):
    open_memory_checkpoint(run or owner_of(Path("here")).run).save(meta["progress"]["step"], arrays, meta)


def resumed_at():
    starts = [json.loads(line) for line in Path("here/ledger.jsonl").read_text().splitlines()]
    return [line["start"] for line in starts if "start" in line][-1]


@pytest.mark.parametrize("changes", [{"total_steps": 12}, {"lr": lambda step: 0.5, "total_steps": 10}])
@pytest.mark.parametrize("ranks", [1, 3])
def test_more_steps_another_rate_or_rank_count_still_resume(lost_disk, whole_job, changes, ranks):
    keep_in_memory(*lost_disk)
    assert run_ranks(ranks, lambda g: whole_job(g, HERE, **changes))[0][1] is None
    assert resumed_at() == 9


def test_a_copy_that_another_run_has_written_is_not_believed(lost_disk, whole_job):
    arrays, meta = lost_disk
    keep_in_memory({name: np.zeros_like(value) for name, value in arrays.items()}, meta, "another")
    run_ranks(2, lambda g: whole_job(g, HERE, total_steps=10))
    assert resumed_at() == 4


@pytest.mark.parametrize("what", ["shards", "samples", "global_batch", "seed", "shuffle", "shape", "name"])
def test_a_copy_that_does_not_fit_is_passed_over_with_a_line(lost_disk, small_task, what):
    arrays, meta = lost_disk
    order = {"shards": 6, "samples": 50, "global_batch": 16, "seed": 1, "shuffle": True}
    name = next(name for name in arrays if name.startswith("params/"))
    if what == "shape":
        arrays = {**arrays, name: np.zeros(3)}
    elif what == "name":
        arrays = {"params/other" if one == name else one: value for one, value in arrays.items()}
    else:
        meta = {**meta, **order, what: not order[what] if what == "shuffle" else order[what] + 1}
    keep_in_memory(arrays, meta)
    task, said = small_task(settings=order), []
    state = TrainingState(task.model, task.optimizer.slots, task.dtype, task.seed, Device())
    assert resume(state, task, "auto", Path("here"), said.append)
    assert state.progress.step == 4
    (line,) = said
    assert line.startswith("the checkpoint in memory was skipped: ") and (what in line or "lacks" in line)


@pytest.mark.parametrize("metrics", ["[]", "precision"])
def test_other_metrics_in_the_middle_of_an_epoch_begin_anew(tmp_path, monkeypatch, metrics):
    monkeypatch.chdir(tmp_path)
    words = ["--model.name=mlp", "--model.options.hidden=[4]", "--run.dir=here", "--metrics.console_every_s=0"]
    words += ["--fault.tolerance=off", "--train.compiled=off", "--optim.schedule=constant"]
    assert train([*words, "--train.steps=5", "--model.metrics=accuracy"]) == 0
    assert train([*words, "--train.steps=8", f"--model.metrics={metrics}"]) == 0
    events = [json.loads(line) for line in Path("here/metrics.jsonl").read_text().splitlines()]
    told = [event["message"] for event in events if event["event"] == "warning"]
    assert told == ["the metrics are not the checkpoint's: training figures of this epoch are of its remaining steps"]
    assert train([*words, "--train.steps=9", f"--model.metrics={metrics}"]) == 0  # the same as the checkpoint's now
    assert resumed_at() == 8 and Path("here/metrics.jsonl").read_text().count("remaining steps") == 1
