"""A run whose training loss did not fall says so, in one line and in summary.json; a healthy run says nothing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import ddl
from ddl.config import Job, override
from ddl.train.build import build_task
from ddl.train.state import Progress
from ddl.train.verdict import doubt

from .conftest import make_task

X = np.random.default_rng(0).normal(size=(96, 3))
QUIET = {"metrics.console_every_s": 0, "data.prefetch": 0, "fault.tolerance": "off"}


def summary_and_warnings(monkeypatch, tmp_path, y, steps=12, scale_targets=True, **changes):
    monkeypatch.chdir(tmp_path)
    run = ddl.Trainer("linear", (X, y), **changes, settings={**QUIET, "data.scale_targets": scale_targets})
    summary = run.fit(steps=steps)
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return summary, [event["message"] for event in events if event["event"] == "warning"]


@pytest.mark.parametrize(
    ("y", "options", "line"),
    [
        (X[:, 0] > 0, {"optimizer": ddl.optim.SGD(lr=1e-9)}, "nothing was learned: the training loss is"),
        (np.zeros(96), {}, "nothing can be learned: every target is the same"),
        (np.ones(96, int), {}, "nothing can be learned: every target is the same"),
        (
            X[:, 0] * 10 + 100,
            {"steps": 210, "scale_targets": False},
            "little was learned: the training loss, .*, is above that of always pre",
        ),
    ],
)
def test_a_run_that_learned_nothing_says_so_in_one_line(monkeypatch, tmp_path, y, options, line):
    summary, warnings = summary_and_warnings(monkeypatch, tmp_path, y, **options)
    assert summary["status"] == "finished"
    assert warnings == [summary["warning"]]
    assert re.match(line, warnings[0])


@pytest.mark.parametrize("steps", [1, 3, 12, 60])
def test_a_run_that_learned_says_nothing(monkeypatch, tmp_path, steps):
    summary, warnings = summary_and_warnings(monkeypatch, tmp_path, X[:, 0] > 0, steps)
    assert summary["warning"] == "" and warnings == []


def progress(early, last, step=9, **values):
    return Progress(step=step, early_sums=early, results={"train": {"loss": last}}, **values)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (progress([8.0, 4.0], 1.9, step=20), ""),
        (progress([8.0, 4.0], 2.0, step=20), "nothing was learned: the training loss is 2 at the end and was 2 in the"),
        (progress([8.0, 4.0], float("nan"), step=20), "nothing was learned"),
        (progress([-8.0, 4.0], -2.1, step=20), ""),
        (progress([8.0, 4.0], 2.0, step=9), ""),  # a few steps prove nothing,
        (progress([0.0, 4.0], 0.0, step=2), "nothing was learned"),  # but a loss of 0 from the first one on does
        (progress([0.0, 0.0], 2.0, step=20), ""),  # resumed from a checkpoint without early sums
        (Progress(step=3), "nothing was learned: every target is below 0"),
        (Progress(step=3, skipped=3), ""),
        (Progress(), ""),
    ],
)
def test_the_verdict_compares_the_end_with_the_beginning(state, says):
    said = doubt(make_task(), state, {})
    assert said.startswith(says) and bool(said) == bool(says)


def test_the_losses_of_a_game_need_not_fall(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = ddl.Trainer("gan", ddl.data.Arrays(X.astype(np.float32)), settings=QUIET)
    task = make_task(model=run.model)
    assert doubt(task, progress([8.0, 4.0], 3.0, step=20), {}) == ""


def test_a_run_resumed_from_before_targets_were_scaled_is_judged_in_the_units_of_the_data(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,y\n" + "".join(f"{x[1]},{x[0] * 100 + 500}\n" for x in X))
    task = build_task(override(Job(), {"data.source": "files", "data.path": str(path), "model.name": "linear"}))
    end = progress([2000.0, 4.0], 40.0, step=300)
    scaled = {"target_mean": np.array([500.0]), "target_deviation": np.array([100.0])}
    plain = {"target_mean": np.zeros(1), "target_deviation": np.ones(1)}
    assert doubt(task, end, scaled).startswith("little was learned")
    assert doubt(task, end, plain) == ""
