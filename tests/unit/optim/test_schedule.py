"""Schedules by values worked out by hand, and the factor that averages and clips."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ddl.errors import ConfigError
from ddl.optim import Cosine, LearningRate, Linear, StepDecay, Warmup, gradient_scale, resumed_span, scaled_lr, schedule


def test_step_decay():
    assert [StepDecay(3, 0.5)(k) for k in (0, 2, 3, 6, 9)] == [1, 1, 0.5, 0.25, 0.125]
    assert StepDecay(3, 0.5, floor=0.2)(9) == 0.2


def test_linear():
    assert [Linear(4)(k) for k in (0, 1, 4, 9)] == [1, 0.75, 0, 0]
    assert Linear(4, floor=0.5)(2) == 0.75


def test_cosine():
    assert [round(Cosine(6)(k), 12) for k in (0, 2, 3, 4, 6, 7)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert math.isclose(Cosine(6, floor=0.1)(3), 0.55)


def test_warmup_rises_to_one_and_hands_over():
    assert [Warmup(4, Linear(2))(k) for k in range(7)] == [0.25, 0.5, 0.75, 1, 1, 0.5, 0]


def test_a_job_ends_at_the_floor():
    for name in ("cosine", "linear"):
        lr = schedule(name, 110, warmup_steps=10, floor=0.01)
        assert lr(0) == 0.1 and lr(10) == 1 and math.isclose(lr(110), 0.01)
    assert schedule("constant", 5)(99) == 1
    assert schedule("step", 10, step_every=5, step_factor=0.2)(5) == 0.2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cosin", 5), "cosine"),
        (("step", 5), "step_every"),
    ],
)
def test_invalid_arguments_are_named(arguments, says):
    with pytest.raises(ConfigError, match=says):
        schedule(*arguments)
    with pytest.raises(ConfigError, match="warmup_steps"):
        schedule("constant", 5, warmup_steps=-1)


def test_linear_scaling():
    assert scaled_lr(0.1, 1024, 256) == 0.4


def test_the_scale_averages_and_clips():
    gradient = np.array([3.0, 4.0]) * 8  # the sum over a weight of 8; the mean's norm is 5
    for limit, norm in ((0.0, 5.0), (6.0, 5.0), (2.0, 2.0)):
        scale, before = gradient_scale(float(gradient @ gradient), 8.0, limit)
        assert math.isclose(before, 5.0) and math.isclose(np.linalg.norm(gradient * scale), norm)
    assert gradient_scale(0.0, 8.0, 1.0) == (1 / 8, 0.0)


@pytest.mark.parametrize(
    ("choice", "span", "rates"),
    [
        ("rescale", [0, 8], [0.5, 0.375, 0.25, 0.125]),
        ("restart", [4, 8], [1, 0.75, 0.5, 0.25]),
        ("hold", [0, 4], [0, 0, 0, 0]),
    ],
)
def test_a_schedule_that_was_made_for_four_steps_goes_on_for_four_more(choice, span, rates):
    lr = LearningRate(2.0, Linear, 0, 4)
    assert [lr(step) for step in range(4)] == [2, 1.5, 1, 0.5]
    assert resumed_span(choice, [0, 4], 4, 8) == span
    assert [lr.over(*span)(step) for step in range(4, 8)] == [2 * rate for rate in rates]


def test_a_schedule_that_was_restarted_begins_there_when_it_is_rescaled():
    assert resumed_span("rescale", [4, 8], 8, 12) == [4, 12]
