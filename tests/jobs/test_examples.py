"""The examples of launch/examples do what they say, alone and on two ranks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "launch" / "examples"


@pytest.mark.parametrize("script", ["own_loop.py", "survive.py"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_users_own_loop_finds_the_line(door, script, ranks):
    ended = door([EXAMPLES / script], ranks)
    assert ended.status == 0, ended.said
    found = re.search(r"(\d) ranks: slope (\S+), intercept (\S+?),?\s", ended.out + "\n")
    assert found is not None, ended.said
    assert int(found[1]) == max(ranks, 1)
    assert float(found[2]) == pytest.approx(3, abs=0.03) and float(found[3]) == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize("ranks", [0, 2])
def test_the_trainer_learns_digits(door, ranks):
    ended = door([EXAMPLES / "trainer.py"], ranks)
    assert ended.status == 0, ended.said
    found = re.search(r"(\d) ranks, test accuracy (\S+)", ended.out)
    assert found is not None, ended.said
    assert int(found[1]) == max(ranks, 1) and float(found[2]) > 0.93
    assert ended.out.count("test accuracy") == 1  # one rank speaks


def test_a_job_may_consist_of_the_users_own_parts(train):
    words = [str(EXAMPLES / "own.toml"), "--train.epochs=20"]
    ended = train("", 2, *words, environ={"PYTHONPATH": f"{EXAMPLES.parents[1]}:{EXAMPLES}"})
    test = ended.summary["test"]
    assert test["accuracy"] >= 0.95 and 0.5 < test["confidence"] <= 1
    lines = (ended.folder.parent / "losses.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == [50, 100]  # by one rank, once


@pytest.mark.parametrize(
    ("setting", "value", "status", "word"),
    [
        ("data.source", "own:nothing", 2, "own:nothing"),
        ("model.name", "nowhere:network", 2, "nowhere:network"),
        ("model.loss", "own:missing", 2, "own:missing"),
        ("model.metrics", '["own:missing"]', 2, "own:missing"),
        ("train.callbacks", '["own:missing"]', 2, "own:missing"),
        ("model.options.hiden", "3", 2, "hiden"),
    ],
)
def test_an_unknown_part_is_named_in_one_line(train, setting, value, status, word):
    environ = {"PYTHONPATH": f"{EXAMPLES.parents[1]}:{EXAMPLES}"}
    ended = train("", 0, str(EXAMPLES / "own.toml"), f"--{setting}={value}", environ=environ)
    assert ended.status == status and word in ended.said
    assert len(ended.said.strip().splitlines()) == 1
