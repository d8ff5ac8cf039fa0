"""Ranks compare settings, data and model before they train: all raise the same line, or none does."""

from __future__ import annotations

import numpy as np
import pytest

from ddl import Trainer
from ddl.comm.threads import run_ranks
from ddl.config import Job, override
from ddl.errors import ConfigError, DataError
from ddl.models import MLP
from ddl.run.agreement import disagreement, essentials
from ddl.train.build import build_task

COMMON = {"model.name": "mlp", "model.options": {"hidden": [4]}, "data.source": "digits"}
DIFFERENCES = {
    "[train] global_batch is 64 on rank 0 and 32 on rank 2": {"train.global_batch": 32},
    "[run] seed is 0 on rank 0 and 7 on rank 2": {"run.seed": 7},
    '[optim] lr is "auto" on rank 0 and 0.001 on rank 2': {"optim.lr": 0.001},
    "[data] test is 0.2 on rank 0 and 0.5 on rank 2": {"data.test": 0.5},
    "[fault] check_every is 200 on rank 0 and 1 on rank 2": {"fault.check_every": 1},
    "[checkpoint] every_steps is 0 on rank 0 and 5 on rank 2": {"checkpoint.every_steps": 5},
    '[model] loss is "auto" on rank 0 and "cross_entropy" on rank 2': {"model.loss": "cross_entropy"},
    '[train] epochs is "auto" on rank 0 and 3 on rank 2': {"train.epochs": 3},
    '[metrics] trace is "" on rank 0 and "t.json" on rank 2': {"metrics.trace": "t.json"},
    '[comm] algorithm is "auto" on rank 0 and "ring" on rank 2': {"comm.algorithm": "ring"},
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


def test_long_values_are_shown_where_they_differ():
    layers = [1000 + number for number in range(60)]
    one, other = {"layers": layers}, {"layers": [*layers[:50], 7, *layers[51:]]}
    errors = run_ranks(2, lambda group: disagreement(group, None, (one, other)[group.rank]))
    assert "1049, 1050, 1051" in str(errors[0]) and "1049, 7, 1051" in str(errors[0]) and len(str(errors[0])) < 250


def test_given_initial_values_and_functions_for_the_learning_rate_are_compared():
    x = np.zeros((40, 3), "f4")

    def differing(group, **arguments):
        settings = {"train.epochs": 2, "run.dir": "never", "metrics.console_every_s": 0}
        made = {name: values[group.rank] for name, values in arguments.items()}
        run = Trainer(MLP([3, 2]), (x, np.arange(40) % 2), global_batch=8, settings=settings, **made)
        job = override(run.job, {"train.steps": 8})
        return disagreement(group, None, essentials(job, run._task(job)))

    params = Trainer(MLP([3, 2]), (x, np.arange(40) % 2)).model.params
    values = {name: np.zeros(shape) for name, (shape, _) in params.items()}
    for arguments, said in (
        ({"initial": [values, {name: x + 1 for name, x in values.items()}]}, "the given initial values is"),
        ({"schedule": [lambda step: 1.0, lambda step: 1 - 0.5 * (step > 3)]}, "the learning rate at step 4 is 0.001"),
    ):
        errors = run_ranks(2, lambda group, arguments=arguments: differing(group, **arguments))
        assert isinstance(errors[0], ConfigError) and said in str(errors[0]) and str(errors[0]) == str(errors[1])
    assert run_ranks(2, lambda group: differing(group, initial=[values, values])) == [None, None]


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
