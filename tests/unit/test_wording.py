"""Counts and lists in messages read as English."""

import pytest

from ddl.wording import counted, listed, numbered


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "rank", "1 rank"), (0, "epoch", "0 epochs"), (12345, "sample", "12,345 samples"), (2, "launch", "2 launches")],
)
def test_a_count_agrees_with_its_noun(number, noun, text):
    assert counted(number, noun) == text


def test_numbered_things():
    assert numbered("rank", []) == "an unknown rank"
    assert numbered("rank", [3]) == "rank 3"
    assert numbered("shard", {7, 2, 5}) == "shards 2, 5 and 7"
    assert numbered("shard", [8, 0, 3, 4, 5, 9]) == "shards 0, 3-5, 8 and 9"
    assert numbered("shard", range(24)) == "shards 0-23"
    assert listed(["a", "b", "c"]) == "a, b or c"
