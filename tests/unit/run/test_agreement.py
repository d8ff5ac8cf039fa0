"""Ranks compare settings, data and model before they train: all raise the same line, or none does."""

from __future__ import annotations

import numpy as np
import pytest

from ddl.comm.threads import run_ranks
from ddl.config import Job, override
from ddl.errors import DataError
from ddl.run.agreement import disagreement, essentials
from ddl.train.build import build_task

COMMON = {"model.name": "mlp", "model.options": {"hidden": [4]}, "data.source": "digits"}
DIFFERENCES = {
    "[train] global_batch is 64 on rank 0 and 32 on rank 2": {"train.global_batch": 32},
    "[run] seed is 0 on rank 0 and 7 on rank 2": {"run.seed": 7},
    "[optim] lr is 0.002 on rank 0 and 0.001 on rank 2": {"optim.lr": 0.001},
    "[data] test is 0.2 on rank 0 and 0.5 on rank 2": {"data.test": 0.5},
    '[model] options is {"hidden": [4]} on rank 0 and {"hidden": [5]} on rank 2': {"model.options": {"hidden": [5]}},
}
HARMLESS = {"metrics.console_every_s": 5.0, "data.prefetch": 0, "train.compiled": "off", "run.dir": "elsewhere"}


def mine(settings):
    job = override(Job(), {**COMMON, **settings})
    return essentials(job, build_task(job))


def outcome(settings_of_rank_2, problem=None):
    usual, other = mine({}), mine(settings_of_rank_2)

    def rank(group):
        own = other if group.rank == 2 else usual
        return disagreement(group, problem if group.rank == 2 else None, own)

    return run_ranks(3, rank)


@pytest.mark.parametrize("message", DIFFERENCES)
def test_all_ranks_name_the_first_difference(message):
    assert [str(error) for error in outcome(DIFFERENCES[message])] == [f"ranks disagree: {message}"] * 3


def test_a_single_row_that_differs_is_noticed(tmp_path):
    x, y = np.arange(4000.0).reshape(1000, 4), np.arange(1000) % 2
    np.savez(tmp_path / "usual.npz", x=x, y=y)
    np.savez(tmp_path / "other.npz", x=np.where(np.arange(1000)[:, None] == 500, 0, x), y=y)
    usual, other = (
        mine({"data.source": "files", "data.path": str(tmp_path / f"{name}.npz")}) for name in ("usual", "other")
    )
    errors = run_ranks(3, lambda group: disagreement(group, None, other if group.rank == 1 else usual))
    assert all(str(error).startswith("ranks disagree: the hash of the training data is") for error in errors)


def test_ranks_that_agree_or_differ_in_rank_specific_settings_may_train():
    assert outcome({}) == [None] * 3
    assert outcome(HARMLESS) == [None] * 3


def test_a_problem_of_one_rank_takes_precedence_over_differences():
    errors = outcome({"run.seed": 7}, DataError("torn"))
    assert [str(error) for error in errors] == ["torn"] * 3
