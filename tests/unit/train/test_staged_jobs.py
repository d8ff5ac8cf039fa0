"""Whole jobs in stages: their checkpoints are those of the whole model, whatever grid wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddl.checkpoint import Store
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.models import MLP

RUN = {"run.dir": "runs/staged"}
DEEP = {"network": MLP([5, 8, 7, 6, 2])}
# The learning rate grows until the loss does: the best state is neither the first nor the newest.
WORSENS = {**DEEP, "lr": lambda step: 0.01 if step < 8 else 5.0, "total_steps": 16, "restore_best": True}


def ends(whole_job, size, stages, death=None, **changes):
    """(the arrays of the newest checkpoint, the summary) of a job that ends well."""
    job = lambda group: whole_job(group, RUN, stages=stages, **{**DEEP, **changes})  # noqa: E731
    results = [one for one in run_ranks(size, job, death=death) if not isinstance(one, Killed)]
    assert len(results) == size - (death is not None)
    for result in results:
        assert not isinstance(result, BaseException) and result[1] is None, result
    return Store("runs/staged/checkpoints").load()[0], json.loads(Path("runs/staged/summary.json").read_text())


def assert_same(arrays, others):
    assert arrays.keys() == others.keys()
    for name, value in others.items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-7, atol=1e-9, err_msg=name)


def test_any_grid_resumes_from_any_other(whole_job):
    wanted, _ = ends(whole_job, 1, 1)
    shutil.rmtree("runs")
    for steps, (size, stages) in enumerate([(4, 2), (1, 1), (3, 3), (2, 1), (4, 4)], 1):
        arrays, summary = ends(whole_job, size, stages, total_steps=min(2 * steps, 9))
        assert summary["steps"] == min(2 * steps, 9) and len(summary["parameters_sha256"]) == 64
    assert_same(arrays, wanted)


def test_the_best_state_is_restored_in_all_stages(whole_job):
    _, alone = ends(whole_job, 1, 1, **WORSENS)
    shutil.rmtree("runs")
    _, summary = ends(whole_job, 4, 2, **WORSENS)
    assert summary["final"]["step"] == alone["final"]["step"] < 16
    assert summary["test"]["loss"] == pytest.approx(alone["test"]["loss"], rel=1e-7)


def test_a_death_while_the_best_state_is_restored_changes_nothing(whole_job):
    passed: list[str] = []

    def listening(rank):
        return passed.append if rank == 3 else lambda point: None

    run_ranks(4, lambda group: whole_job(group, RUN, stages=2, **WORSENS), probe=listening)
    first = passed.index("end.restore") + 1
    barrier = passed.index("job.barrier", first) + 1
    for count in (first + 4, barrier + 1, barrier + 2):
        shutil.rmtree("runs")
        _, summary = ends(whole_job, 4, 2, death=Death(3, count), **WORSENS)
        assert summary["final"]["checkpoint"] == "best" and summary["final"]["step"] < 16
        assert summary["test"]["loss"] == pytest.approx(summary["validation"]["loss"], rel=1e-9)  # one split
