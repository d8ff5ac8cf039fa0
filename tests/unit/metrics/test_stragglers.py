"""The rank that waits least in sums is the one that the others wait for; equal ranks are not named."""

from __future__ import annotations

import json

import pytest

from ddl.audit import main


def written(folder, *epochs, more=()):
    events = []
    for number, waited in enumerate(epochs, 1):
        events += [{"event": "step", "step": number, "seconds": 5.0}] * 2
        events.append({"event": "epoch", "epoch": number, "waited": waited})
    lines = [json.dumps(event) for event in [*events, *more]]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_the_slow_rank_is_named_with_what_it_costs_each_other_rank(tmp_path, capsys):
    run = written(tmp_path, {"0": 4.0, "1": 0.5, "2": 4.5}, {"0": 4.0, "1": 0.5, "2": 4.5})
    assert main([run, "--stragglers"]) == 0
    said = capsys.readouterr().out
    assert "rank 0 waited 8 s (40 %): 7 s for rank 1" in said and "rank 2 waited 9 s (45 %): 8 s for rank 1" in said
    assert said.splitlines()[-1] == "2 other ranks waited for rank 1, on average 7.5 s (38 % of the time)"


def test_ranks_that_are_slow_in_different_epochs_are_both_named(tmp_path, capsys):
    run = written(tmp_path, {"0": 3.0, "1": 0.0}, {"0": 0.0, "1": 2.0})
    assert main([run, "--stragglers"]) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first == "1 other rank waited for rank 1, on average 3 s (15 % of the time)"
    assert second == "1 other rank waited for rank 0, on average 2 s (10 % of the time)"


def test_equal_ranks_wait_for_nobody_and_recoveries_are_listed(tmp_path, capsys):
    recovery = {"event": "recovery", "phases": {"agree": 0.25, "level": 0.5}}
    run = written(tmp_path, {"0": 0.2, "1": 0.3}, more=[recovery])
    assert main([run, "--stragglers"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("the ranks wait equally long\n")
    assert "all ranks waited in recoveries: agree 0.25 s, level 0.5 s" in said


@pytest.mark.parametrize("text", ['{"event":"epoch","waited":3}\n', '{"event":"step"}\n'])
def test_a_file_that_no_run_wrote_is_refused_in_one_line(tmp_path, capsys, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert main([str(tmp_path), "--stragglers"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([str(tmp_path / "absent"), "--stragglers"]) == 2
