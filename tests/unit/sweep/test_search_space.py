"""The trials of a sweep follow from its space and seed alone."""

import json
import math

import pytest

from ddl.errors import ConfigError
from ddl.sweep.space import check_space, shuffled, trials_of, words_of

SPACE = {"optim.lr": {"log": [1e-4, 1e-1]}, "train.global_batch": [32, 64], "model.options.units": {"int": [1, 3]}}


def test_a_grid_has_every_combination_once():
    space = {"optim.lr": {"log": [1e-3, 1e-1], "points": 3}, "train.global_batch": [32, 64]}
    check_space(space, "grid")
    found = [(one["optim.lr"], one["train.global_batch"]) for one in trials_of(space, "grid", 0, 1)]
    assert found == [(lr, batch) for lr in (1e-3, 1e-2, 1e-1) for batch in (32, 64)]


def test_a_shuffled_grid_has_the_same_trials_in_an_order_of_the_seed():
    trials = [{"optim.lr": number} for number in range(20)]
    mixed = shuffled(trials, 1)
    assert mixed == shuffled(trials, 1) != shuffled(trials, 2)
    assert mixed != trials and sorted(one["optim.lr"] for one in mixed) == list(range(20))


def test_random_trials_lie_in_the_space_and_repeat_for_a_seed():
    trials = trials_of(SPACE, "random", 7, 300)
    assert trials == trials_of(SPACE, "random", 7, 300) != trials_of(SPACE, "random", 8, 300)
    logs = [math.log10(one["optim.lr"]) for one in trials]
    assert -4 <= min(logs) < -3.8 and -1.2 < max(logs) <= -1
    assert abs(sum(logs) / len(logs) + 2.5) < 0.2  # even over the decades
    assert {one["train.global_batch"] for one in trials} == {32, 64}
    assert {one["model.options.units"] for one in trials} == {1, 2, 3}


def test_more_trials_or_settings_leave_the_others_as_they_are():
    trials = trials_of(SPACE, "random", 0, 5)
    more = trials_of({**SPACE, "optim.decay": {"uniform": [0.1, 0.9]}}, "random", 0, 9)
    assert [{name: one[name] for name in SPACE} for one in more[:5]] == trials


def test_settings_become_words_that_read_back():
    words = words_of({"optim.name": "adam", "optim.lr": 1e-05, "model.options.hidden": [64, 32], "data.shuffle": True})
    assert words[0] == "--optim.name=adam"
    assert [json.loads(word.partition("=")[2]) for word in words[1:]] == [1e-05, [64, 32], True]


@pytest.mark.parametrize(
    "space, sampler, words",
    [
        ({}, "random", "empty"),
        ({"optim.lr": 0.1}, "random", "one value"),
        ({"optim.lr": []}, "random", "empty list"),
        ({"optim.lr": {"log": [0, 1]}, "x.y": {"int": [0.5, 2]}}, "random", r"log = \[0, 1\].*above 0; .*x.y int"),
        ({"optim.lr": {"log": [1, 2], "uniform": [1, 2]}}, "random", "one of uniform, log or int"),
        ({"optim.lr": {"log": [1, 2]}}, "grid", "points = 2"),
        ({"optim.lr": [1]}, "gird", "did you mean 'grid'"),
    ],
)
def test_an_impossible_space_is_one_error(space, sampler, words):
    with pytest.raises(ConfigError, match=words):
        check_space(space, sampler)
