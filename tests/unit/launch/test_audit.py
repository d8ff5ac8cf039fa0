"""``python -m ddl.audit`` prints what a ledger proves; its exit status says whether every sample was used once."""

from __future__ import annotations

import json

import pytest

from ddl.audit import main
from ddl.data.ledger import Ledger, Record, Start
from ddl.data.order import Order

ORDER = Order(samples=10, shards=2, global_batch=4, seed=1)
SIZES = (4, 4, 2)


def write(folder, steps, skipped=()):
    with Ledger(folder / "ledger.jsonl") as ledger:
        ledger.start(Start("a", 0, 0, ORDER))
        for step in steps:
            ledger.append(Record("a", 0, step, (0, 1), step in skipped, SIZES[step % 3]))


def test_a_whole_run_is_exact(tmp_path, capsys):
    write(tmp_path, range(6))
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "20 expected, 20 used, 0 missing, 0 repeated, 0 skipped" in printed
    assert printed.endswith("exact: every sample was used once per epoch\n")


def test_a_resume_counts_the_surviving_lineage(tmp_path, capsys):
    write(tmp_path, range(5))
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.start(Start("b", 0, 3, ORDER))
        for step in (3, 4, 5):
            ledger.append(Record("b", 0, step, (0, 0), False, SIZES[step % 3]))
    assert main([str(tmp_path)]) == 0
    assert "2 launches" in capsys.readouterr().out


def test_a_lost_step_is_named(tmp_path, capsys):
    write(tmp_path, [0, 1, 2, 3, 5])
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "no record of steps 4" in printed and printed.endswith("NOT exact\n")


def test_a_summary_that_claims_more_steps_is_not_believed(tmp_path):
    write(tmp_path, range(6))
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 7, "launch": "a"}))
    assert main([str(tmp_path)]) == 1


def test_the_summary_of_an_earlier_launch_is_not_asked(tmp_path):
    write(tmp_path, range(6))
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 3, "launch": "before"}))
    assert main([str(tmp_path)]) == 0


def test_skipped_steps_are_reported(tmp_path, capsys):
    write(tmp_path, range(3), skipped={1})
    assert main([str(tmp_path)]) == 0
    assert "except in skipped steps" in capsys.readouterr().out


def test_json_for_scripts(tmp_path, capsys):
    write(tmp_path, range(3))
    assert main([str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["expected"], report["used"], report["steps"], report["exact"]) == (10, 10, 3, True)


@pytest.mark.parametrize("text", [None, "", '{"step": 1}\n'])
def test_nothing_to_audit_is_status_2(tmp_path, text, capsys):
    if text is not None:
        (tmp_path / "ledger.jsonl").write_text(text)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
