"""More ranks than shards, with shards on auto or in a resumed run: some ranks are idle, and one line says so."""

from __future__ import annotations

import json

import pytest

QUIET = ("--metrics.console_every_s=1", "--train.compiled=off")


def warnings(ended):
    lines = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["message"] for line in lines if line["event"] == "warning" and "nothing to compute" in line["message"]]


def test_with_shards_on_auto_ranks_beyond_them_are_idle(train):
    words = ("--train.global_batch=4", "--train.steps=6", "--train.dtype=float64", *QUIET)
    alone, many = train("mlp", 1, *words, name="alone"), train("mlp", 4, *words, name="many")
    assert many.summary["shards"] == alone.summary["shards"] == 2
    assert many.summary["samples"] == alone.summary["samples"] and many.summary["ranks_finished"] == 4
    assert many.summary["train"]["loss"] == pytest.approx(alone.summary["train"]["loss"], rel=1e-9)
    assert warnings(many) == ["4 ranks for 2 shards: ranks 2 to 3 have nothing to compute (data.shards)"]
    assert many.said.count("nothing to compute") == 1 and not warnings(alone)


def test_a_resumed_run_may_have_more_ranks_than_shards(train):
    words = ("--train.global_batch=8", "--data.shards=2", *QUIET)
    refused = train("mlp", 3, *words, "--train.steps=4", name="refused")
    assert refused.status == 2 and "[data] shards is 2, but 3 ranks were started" in refused.said
    first = train("mlp", 2, *words, "--train.steps=4", "--optim.schedule=constant")
    assert first.summary["steps"] == 4
    again = train("mlp", 3, *words, "--train.steps=9", "--optim.schedule=constant")
    assert again.summary["steps"] == 9 and len(warnings(again)) == 1
