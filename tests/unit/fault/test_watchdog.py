"""When a companion judges that its rank hangs, and what the rank reports to it. tests/fault uses real processes."""

from __future__ import annotations

import ast
import sys
import time
from pathlib import Path

import pytest

import ddl.fault.companion as companion
from ddl.fault.companion import (
    ENDED,
    FIRST,
    FIRST_S,
    HANG_MS,
    MEDIAN_NS,
    RECOVERING,
    RECOVERY_MS,
    SLOTS,
    STOP_MS,
    WAITING,
    Watch,
)
from ddl.fault.watchdog import Heartbeat, read_note


def test_the_companion_imports_only_the_standard_library():
    tree = ast.parse(Path(companion.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)


# The judgement itself, without processes: one look per tenth of a second of the companion's running time.


def judge(seconds, state="S", beats=lambda t: 1, cpu=lambda t: 0.0, **slots):
    """(kind, at which second) of the first verdict within ``seconds``, or ("", seconds)."""
    page, watch = [0] * SLOTS, Watch()
    for name, value in slots.items():
        page[getattr(companion, name)] = value
    for tick in range(round(seconds * 10)):
        page[companion.BEATS] = beats(tick / 10)
        if kind := watch.look(page, state if isinstance(state, str) else state(tick / 10), 0.1, cpu(tick / 10)):
            return kind, tick / 10
    return "", seconds


def test_a_stop_of_two_seconds_is_a_hang_and_shorter_ones_are_not():
    assert judge(10, "T", STOP_MS=2000) == ("stopped", pytest.approx(2.0, abs=0.15))
    assert judge(60, lambda t: "T" if t % 3 < 1.5 else "S", STOP_MS=2000)[0] == ""


def test_the_limit_counts_from_the_last_beat():
    assert judge(300, HANG_MS=120_000, beats=lambda t: 1 + int(min(t, 50))) == ("hang", pytest.approx(170, abs=1))


def test_a_minute_of_computing_without_a_beat_is_not_a_hang():
    assert judge(3600, "R", beats=lambda t: 1 + t // 60, HANG_MS=120_000)[0] == ""


def test_the_limit_is_never_below_twenty_median_steps():
    assert judge(100, HANG_MS=2000, MEDIAN_NS=10**9) == ("hang", pytest.approx(20, abs=0.3))


def test_before_the_first_beat_nothing_is_a_hang():
    assert judge(1000, HANG_MS=2000, beats=lambda t: 0)[0] == ""


def test_limits_of_zero_switch_off():
    assert judge(1000, "S")[0] == ""
    assert judge(1000, "T")[0] == ""
    assert judge(1000, "S", RECOVERING=1)[0] == ""


def test_a_set_up_may_last_as_long_as_it_computes_and_hangs_when_it_does_not():
    words = {"HANG_MS": 2000, "FIRST": 1, "STEP": -1}
    assert judge(10 * FIRST_S, cpu=lambda t: int(t) / 100, **words)[0] == ""
    assert judge(FIRST_S, **words) == ("hang", pytest.approx(2.0, abs=0.15))


def test_the_first_pass_of_a_phase_has_time_to_compile():
    """Two cores and many ranks: each gets a hundredth of a second of CPU now and then."""
    assert judge(FIRST_S - 1, HANG_MS=2000, FIRST=1, cpu=lambda t: int(t) / 100) == ("", FIRST_S - 1)
    assert judge(1000, HANG_MS=2000, FIRST=1, cpu=lambda t: t) == ("hang", pytest.approx(FIRST_S, abs=0.3))
    assert judge(1000, HANG_MS=300_000, FIRST=1, cpu=lambda t: t) == ("hang", pytest.approx(300, abs=0.3))


def test_sleeping_in_a_new_phase_does_not_count_as_compiling():
    assert judge(100, HANG_MS=2000, FIRST=1) == ("hang", pytest.approx(2, abs=0.3))
    assert judge(100, HANG_MS=2000, FIRST=1, cpu=lambda t: min(t, 9)) == ("hang", pytest.approx(11, abs=0.3))


def test_a_phase_met_before_has_the_ordinary_limit_busy_or_not():
    assert judge(100, HANG_MS=2000, cpu=lambda t: t) == ("hang", pytest.approx(2, abs=0.3))


def test_a_phase_is_new_once_a_generation():
    heartbeat = Heartbeat(0)

    def is_new(step, phase):
        heartbeat.beat(step, phase)
        return bool(heartbeat._slots[FIRST])

    assert [is_new(0, phase) for phase in ("load", "compute", "compute", "sum")] == [True] * 4
    assert [is_new(1, phase) for phase in ("load", "compute", "sum")] == [False] * 3
    assert [is_new(1, "evaluate") for _ in range(3)] == [True] * 3  # batch by batch: one phase, which is still new
    assert not is_new(2, "load")
    with heartbeat.recovering():
        heartbeat.beat(2, "recover fence")
    assert [is_new(2, phase) for phase in ("load", "compute")] == [True] * 2


def test_a_recovery_is_judged_by_its_own_limit():
    waiting = judge(100, HANG_MS=2000, RECOVERY_MS=30_000, RECOVERING=5, WAITING=1)
    assert waiting == ("recovery", pytest.approx(30, abs=0.3))


def test_in_a_recovery_a_rank_that_waits_for_no_peer_is_judged_before_its_waiters():
    assert judge(100, HANG_MS=2000, RECOVERY_MS=30_000, RECOVERING=5) == ("recovery", pytest.approx(20, abs=0.3))


def test_the_last_wait_is_longer_than_any_hang_of_another_and_its_recovery():
    heartbeat = Heartbeat(0)
    heartbeat.limits(2.0, 30.0)
    heartbeat.part()
    slots = heartbeat._slots
    assert slots[RECOVERING] and slots[WAITING] and slots[ENDED]
    assert slots[RECOVERY_MS] == pytest.approx(1e3 * (FIRST_S + 30))
    unlimited = Heartbeat(0)
    unlimited.part()
    assert unlimited._slots[WAITING] and not unlimited._slots[RECOVERING]


IN_RECOVERY = {"HANG_MS": 120_000, "RECOVERY_MS": 30_000, "RECOVERING": 5}


def test_a_rank_that_waits_in_a_recovery_outlasts_a_hang_of_another():
    """A rank that has not heard of the death may compute for as long as any, and is killed only after that."""
    meeting = {**IN_RECOVERY, "PART": companion.MEETING}
    assert judge(200, **meeting, WAITING=1) == ("recovery", pytest.approx(150, abs=0.3))
    assert judge(400, **{**meeting, "MEDIAN_NS": 10 * 10**9}, WAITING=1) == ("recovery", pytest.approx(230, abs=0.3))
    assert judge(200, **meeting) == ("recovery", pytest.approx(20, abs=0.3))  # this one is held up by itself
    assert judge(1000, **{**meeting, "HANG_MS": 0}, WAITING=1)[0] == ""


@pytest.mark.parametrize("part, waited_s", [("MEETING", 119), ("READING", 34), ("", 19)])
def test_what_a_rank_waited_for_others_in_a_recovery_is_not_held_against_it_afterwards(part, waited_s):
    """A loaded machine may stop a rank for a moment when its wait is over, before it can report the next part."""

    def verdict(alone_s):
        page, watch = [0] * SLOTS, Watch()
        for name, value in {**IN_RECOVERY, "PART": getattr(companion, part, 0)}.items():
            page[getattr(companion, name)] = value
        for tick in range((waited_s + alone_s) * 10):
            page[WAITING] = int(tick < waited_s * 10)
            if kind := watch.look(page, "S", 0.1):
                return kind
        return ""

    assert verdict(alone_s=10) == ""
    assert verdict(alone_s=35) == "recovery"


def test_a_companion_reads_the_slots_of_one_moment():
    """Otherwise the long wait of one part of a recovery could be judged by the limit of the next part."""
    states = iter([["old", "old"], ["old", "new"], ["new", "new"], ["new", "new"]])

    class Page:
        def tolist(self):
            return next(states)

    assert companion.snapshot(Page()) == ["new", "new"]


def test_reading_new_shards_has_a_separate_recovery_limit():
    """It does not depend on the hang timeout, and ranks that wait for the reader have a longer one."""
    for hang_ms in (0, 2000, 120_000):
        reading = {**IN_RECOVERY, "PART": companion.READING, "HANG_MS": hang_ms}
        assert judge(300, **reading) == ("recovery", pytest.approx(30, abs=0.3))
        assert judge(300, **reading, WAITING=1) == ("recovery", pytest.approx(45, abs=0.3))


def test_a_part_of_a_recovery_ends_with_it():
    heartbeat = Heartbeat(0)
    with heartbeat.recovering("read"):
        assert heartbeat._slots[companion.PART] == companion.READING
    assert not heartbeat._slots[companion.PART] and not heartbeat._slots[RECOVERING]


def test_each_recovery_counts_from_its_own_beginning():
    page, watch = [0] * SLOTS, Watch()
    page[RECOVERY_MS] = 3000
    for tick in range(1000):
        page[RECOVERING] = 1 + tick // 20
        assert watch.look(page, "S", 0.1) == ""


def test_waiting_for_others_is_life():
    assert judge(1000, HANG_MS=2000, WAITING=1)[0] == ""
    assert WAITING != HANG_MS != STOP_MS != MEDIAN_NS


def test_waiting_may_be_nested():
    heartbeat = Heartbeat(0)
    with heartbeat.waiting():
        with heartbeat.waiting():
            pass
        assert heartbeat._slots[WAITING]
    assert not heartbeat._slots[WAITING]


def test_the_median_step_is_that_of_the_steps(monkeypatch):
    clock = iter(range(10**6, 10**9, 10**6))
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(clock))
    heartbeat = Heartbeat(0)
    for step in range(5):
        heartbeat.beat(step, "load")
        heartbeat.beat(step, "sum")
    assert heartbeat._slots[MEDIAN_NS] == 10**6
    assert heartbeat.phase == "sum"


def test_more_phases_than_the_page_holds_do_no_harm():
    heartbeat = Heartbeat(0)
    for number in range(2000):
        heartbeat.beat(0, f"a phase with a long name {number}")
    heartbeat.beat(0, "a phase with a long name 3")
    assert heartbeat.phase == "a phase with a long name 3"


def test_equal_exceptions_leave_equal_notes(tmp_path):
    class Model:
        def forward(self):
            raise RuntimeError(f"bad {self!r}")

    notes = []
    for rank in (0, 1):
        heartbeat = Heartbeat(rank)
        heartbeat.leave_notes_in(tmp_path)
        try:
            Model().forward()
        except RuntimeError as error:
            heartbeat.note_exception(error, step=4, shards={3, 2})
        notes.append(read_note(tmp_path, rank))
    assert notes[0]["error"] == notes[1]["error"]
    assert notes[0]["error"].startswith("RuntimeError: bad <") and "test_watchdog.py:" in notes[0]["error"]
    assert "in forward" in notes[0]["traceback"]
    assert [(n["rank"], n["kind"], n["step"], n["shards"]) for n in notes] == [
        (r, "exception", 4, [2, 3]) for r in (0, 1)
    ]
    assert read_note(tmp_path, 2) is None


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"kind": 3}', '{"step": "x"}', '{"error": null}', '{"kind": "hang", "kind": "crash"}', "\\xff"]
)
def test_a_malformed_note_counts_as_none(tmp_path, text):
    (tmp_path / "rank-1.json").write_text(text)
    assert read_note(tmp_path, 1) is None
