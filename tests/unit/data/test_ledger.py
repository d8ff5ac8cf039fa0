"""The audit finds every lost, repeated and skipped sample, and follows the history that survived."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddl.data import Ledger, Order, Record, Start, assign, audit
from ddl.data.ledger import read
from ddl.errors import DataError

ORDER = Order(50, 6, 16, seed=2)  # steps of 16, 16, 16 and 2 samples
PLAN = assign(6, 2).owners
SIZES = [16, 16, 16, 2]


def history(*steps, launch="a", plan=PLAN):
    return [Record(launch, 0, step, plan, False, SIZES[step % 4]) for step in steps]


def counts(result):
    return tuple(result.samples.values())


def test_an_undisturbed_run_used_every_sample_once():
    result = audit([Start("a", 0, 0, ORDER), *history(*range(8))])
    assert counts(result) == (100, 100, 0, 0, 0)
    assert result.is_exact
    assert (result.steps, result.epochs, result.launches) == (8, 2.0, 1)


def test_a_recovery_under_another_plan_changes_nothing():
    entries = [Start("a", 0, 0, ORDER), *history(0, 1), Record("a", 1, 2, (0,) * 6, False, 16), *history(3)]
    assert audit(entries).is_exact
    assert audit(entries).generations == 2


def test_a_resume_supersedes_records_after_its_checkpoint():
    entries = [Start("a", 0, 0, ORDER), *history(*range(7)), Start("b", 0, 4, ORDER), *history(4, 5, launch="b")]
    result = audit(entries)
    assert result.steps == 6
    assert counts(result) == (82, 82, 0, 0, 0)
    assert result.is_exact


def test_the_latest_record_of_a_step_counts():
    again = Record("a", 1, 1, PLAN, True, 0)
    result = audit([Start("a", 0, 0, ORDER), *history(0, 1), again, *history(2, 3)])
    assert counts(result) == (50, 34, 0, 0, 16)
    assert result.is_exact  # a skipped step is reported, but the ledger is still exact


def test_a_missing_step_is_named_with_its_samples():
    result = audit([Start("a", 0, 0, ORDER), *history(0, 2, 3)])
    assert counts(result) == (50, 34, 16, 0, 0)
    assert not result.is_exact
    assert "no record of steps 1" in result.problems[0]
    lost = sorted(ORDER.indices(0, 1, range(6))[0].tolist())
    assert f"with samples {lost[0]}, {lost[1]}" in result.problems[0]


def test_the_samples_named_are_the_lowest_of_all_that_are_missing():
    result = audit([Start("a", 0, 0, ORDER), *history(3)])
    lost = sorted(ORDER.table(0, range(6)).numbers[:48].tolist())
    assert f"with samples {', '.join(map(str, lost[:8]))} and 40 more" in result.problems[0]


def test_steps_that_the_job_claims_beyond_its_records_are_missing():
    result = audit([Start("a", 0, 0, ORDER), *history(0, 1, 2)], steps=4)
    assert counts(result) == (50, 48, 2, 0, 0)
    assert not audit([Start("a", 0, 0, ORDER), *history(0, 1, 2)], steps=2).is_exact


@pytest.mark.parametrize(("counted", "want"), [(15, (50, 49, 1, 0, 0)), (18, (50, 52, 0, 2, 0))])
def test_ranks_that_counted_otherwise_are_believed(counted, want):
    result = audit([Start("a", 0, 0, ORDER), *history(0), Record("a", 0, 1, PLAN, False, counted), *history(2, 3)])
    assert counts(result) == want
    assert f"counted {counted} samples, it has 16" in result.problems[0]


@pytest.mark.parametrize("plan", [(0, 0, 1), (0, 0, 0, 1, 1, -1)])
def test_a_shard_without_an_owner_is_found(plan):
    assert "owners" in audit([Start("a", 0, 0, ORDER), *history(0, plan=plan)]).problems[0]


def test_another_order_after_a_resume_is_found():
    entries = [Start("a", 0, 0, ORDER), *history(0, 1), Start("b", 0, 2, Order(50, 6, 8, 2)), *history(2)]
    assert "orders samples" in audit(entries).problems[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), min_size=1, max_size=6))
def test_any_sequence_of_resumes_from_committed_steps_stays_exact(resumes):
    entries, end = [], 0
    for number, (back, forward) in enumerate(resumes):
        begin = max(end - back, 0)
        entries += [Start(str(number), 0, begin, ORDER), *history(*range(begin, begin + forward), launch=str(number))]
        end = begin + forward
    result = audit(entries)
    assert result.is_exact
    assert result.steps == end
    assert result.used == sum(SIZES[step % 4] for step in range(end))


def test_a_ledger_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first = [Start("a", 0, 0, ORDER), *history(0, 1), Record("a", 1, 2, (0,) * 6, True, 16)]
    second = [Start("b", 0, 2, ORDER), *history(2, launch="b")]
    for entries in (first, second):
        with Ledger(path) as ledger:
            for entry in entries:
                ledger.start(entry) if isinstance(entry, Start) else ledger.append(entry)
    assert read(path) == first + second
    assert path.read_text().count('"plan"') == 3  # only where it changed


def test_half_a_line_of_a_killed_writer_does_no_harm(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.start(Start("a", 0, 0, ORDER))
        ledger.append(history(0)[0])
    path.write_text(path.read_text() + '{"step": 1, "lau')
    with Ledger(path) as ledger:
        ledger.start(Start("b", 0, 1, ORDER))
        for record in history(1, 2, 3, launch="b"):
            ledger.append(record)
    assert audit(read(path)).is_exact


def test_a_file_that_is_not_a_ledger_is_rejected(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "step"}\n')
    with pytest.raises(DataError, match=r"ledger.jsonl, line 1: not a line of a ledger"):
        read(path)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match="no start line"):
        audit(history(0))


def test_a_shuffle_of_numpy_agrees_that_epochs_are_whole():
    """The audit's counts against a plain count over all records."""
    uses = np.zeros(50, int)
    for step in range(8):
        uses[ORDER.indices(step // 4, step % 4, range(6))[0]] += 1
    assert (uses == 2).all()


def test_late_records_of_an_older_launch_do_not_count():
    stray = history(3, 4)  # launch a has not noticed yet that b has taken over
    newer = history(2, 3, launch="b")
    entries = [Start("a", 0, 0, ORDER), *history(0, 1, 2), Start("b", 0, 2, ORDER), newer[0], *stray, newer[1]]
    result = audit(entries)
    assert counts(result) == (50, 50, 0, 0, 0)
    assert result.is_exact and result.steps == 4


def test_two_launches_that_write_in_turns_keep_their_plans(tmp_path):
    path, other = tmp_path / "ledger.jsonl", assign(6, 3).owners
    with Ledger(path) as old, Ledger(path) as new:
        old.start(Start("a", 0, 0, ORDER))
        old.append(history(0)[0])
        new.start(Start("b", 0, 0, ORDER))
        new.append(history(0, launch="b", plan=other)[0])
        old.append(history(1)[0])
        new.append(history(1, launch="b", plan=other)[0])
    plans = {(entry.launch, entry.step): entry.plan for entry in read(path) if isinstance(entry, Record)}
    assert plans == {("a", 0): PLAN, ("a", 1): PLAN, ("b", 0): other, ("b", 1): other}
