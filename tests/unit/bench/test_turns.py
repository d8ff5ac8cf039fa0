"""Calls that take long get fewer rounds, and still enough for a median."""

import pytest

from ddl.bench.measure import FEWEST_ROUNDS, in_turns


@pytest.mark.parametrize(("limit_s", "rounds"), [(100.0, 9), (10.0, 5), (0.5, FEWEST_ROUNDS)])
def test_rounds_end_with_the_available_time(limit_s, rounds):
    found = in_turns({"a": int, "b": int}, 9, lambda: None, agree=lambda seconds: 1.0, limit_s=limit_s)
    assert found == {"a": [1.0] * rounds, "b": [1.0] * rounds}
