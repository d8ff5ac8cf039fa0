"""Settings that can be on or off take true and false as well; the best state and the files need what they need."""

import pytest

from ddl.config import Job, load, override
from ddl.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "value"),
    [("on", "on"), ("true", "on"), ("yes", "on"), ("off", "off"), ("false", "off"), ("no", "off"), ("auto", "auto")],
)
def test_words_of_a_switch(word, value):
    assert load([f"--metrics.plots={word}"]).metrics.plots == value


@pytest.mark.parametrize(("given", "value"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_values_of_a_switch(given, value):
    assert override(Job(), {"metrics.plots": given}).metrics.plots == value


@pytest.mark.parametrize("given", ["ON!", 1, "maybe"])
def test_anything_else_is_refused_with_the_words(given):
    with pytest.raises(ConfigError, match="it must be one of auto, on or off"):
        override(Job(), {"metrics.plots": given})


@pytest.mark.parametrize(
    ("settings", "restores"),
    [
        ({}, False),
        ({"train.patience": 3}, True),
        ({"train.patience": 3, "train.restore_best": False}, False),
        ({"train.restore_best": "on"}, True),
        ({"train.patience": 3, "checkpoint.keep_best": False}, False),
    ],
)
def test_the_best_state_is_restored_where_patience_waits_for_one(settings, restores):
    assert override(Job(), settings).restores_best is restores


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.restore_best": "on", "checkpoint.keep_best": False}, "keep_best is False: there is no best state"),
        ({"train.restore_best": "on", "data.validation": 0.0}, "data.validation is 0.0: there is no best state"),
        ({"metrics.prometheus": "/nowhere/ddl.prom"}, r"\[metrics\] prometheus: there is no folder /nowhere"),
        ({"metrics.prometheus": "ddl.txt"}, "reads only files that end in .prom"),
    ],
)
def test_settings_that_lack_what_they_need_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        override(Job(), settings)
