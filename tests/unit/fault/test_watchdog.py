"""A rank that hangs is killed by its companion; one that computes, waits or was suspended is not."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
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
    look_at,
)
from ddl.fault.watchdog import Heartbeat, read_note, start_companion

DEADLINE_S = 60

PRELUDE = """
import os, signal, sys, threading, time
from ddl.fault.watchdog import start_companion
beat = start_companion(3, hang_timeout_s={hang}, recovery_timeout_s={recovery}, stop_timeout_s={stop})
beat.leave_notes_in({notes!r})
beat.beat(7, "load")
beat.beat(8, "compute")
print(beat.companion_pid, flush=True)
"""


class Rank:
    """A process with a companion, running ``code``; leads a process group of its own."""

    def __init__(self, tmp_path, code, hang=0.0, recovery=0.0, stop=0.0, before=""):
        self.notes = tmp_path / "notes"
        text = before + PRELUDE.format(hang=hang, recovery=recovery, stop=stop, notes=str(self.notes)) + code
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.companion = int(self.process.stdout.readline())

    def end(self):
        """The exit status; the companion has ended as well when this returns."""
        status = self.process.wait(DEADLINE_S)
        wait_until(lambda: state_of(self.companion) in "XZ")
        return status

    @property
    def note(self):
        return read_note(self.notes, 3)


def state_of(pid):
    return look_at(pid)[0]


def wait_until(true):
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def watches(pid):
    """Whether a companion has begun to watch: it holds its rank's pidfd."""
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it starts, and opens and closes files
            if os.readlink(entry.path).endswith("[pidfd]"):
                return True
    return False


@pytest.fixture
def rank(tmp_path):
    made = []

    def make(code, **limits):
        made.append(Rank(tmp_path, code, **limits))
        return made[-1]

    yield make
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait()
        each.process.stdin.close()
        each.process.stdout.close()


def test_a_stopped_rank_is_killed_and_named(rank):
    stopped = rank("time.sleep(1000)", stop=0.3)
    os.kill(stopped.process.pid, signal.SIGSTOP)
    assert stopped.end() == -signal.SIGKILL
    note = stopped.note
    assert (note["kind"], note["rank"], note["step"], note["phase"]) == ("stopped", 3, 8, "compute")
    assert note["host"] == os.uname().nodename


def test_a_suspended_and_resumed_job_lives(rank):
    """The whole process group stops for far longer than the limit, its companion with it."""
    job = rank("sys.stdin.readline(); time.sleep(0.3); beat.end(); sys.exit(5)", stop=0.4)
    os.killpg(job.process.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(job.companion) == "T" and state_of(job.process.pid) == "T")
    time.sleep(0.8)
    os.killpg(job.process.pid, signal.SIGCONT)
    job.process.stdin.write("\n")
    job.process.stdin.flush()
    assert job.end() == 5
    assert job.note is None


def test_a_rank_that_stands_still_is_killed_with_its_stack(rank):
    hung = rank("def waits_for_godot():\n    threading.Event().wait()\nwaits_for_godot()", hang=0.3)
    assert hung.end() == -signal.SIGKILL
    assert (hung.note["kind"], hung.note["step"]) == ("hang", 8)
    assert "waits_for_godot" in hung.note["stack"]


@pytest.fixture
def old_system(tmp_path):
    """Code that takes pidfd and memfd away from a rank and its companion."""
    old = tmp_path / "old_companion.py"
    text = Path(companion.__file__).read_text()
    old.write_text(text.replace("import os\n", "import os\nos.__dict__.pop('pidfd_open', None)\n", 1))
    code = "import os\nfor name in ('pidfd_open', 'memfd_create'): os.__dict__.pop(name, None)\n"
    return f"{code}import ddl.fault.companion\nddl.fault.companion.__file__ = {str(old)!r}\n"


@pytest.mark.parametrize("hangs", [True, False])
def test_without_pidfd_and_memfd_a_rank_is_watched_as_well(rank, old_system, hangs):
    code = "time.sleep(1000)" if hangs else "os.kill(os.getpid(), signal.SIGKILL)"
    watched = rank(code, hang=0.3 if hangs else 30.0, before=old_system)
    assert not watches(watched.companion)
    assert watched.end() == -signal.SIGKILL
    assert (watched.note["kind"], watched.note["step"]) == ("hang" if hangs else "crash", 8)


def test_a_rank_that_waits_for_others_is_not_the_victim(rank):
    waiting = rank("with beat.waiting():\n    time.sleep(0.8)\nbeat.end(); sys.exit(5)", hang=0.3)
    assert waiting.end() == 5
    assert waiting.note is None


def test_a_waiting_rank_can_still_be_found_stopped(rank):
    waiting = rank("with beat.waiting(): print(1, flush=True); time.sleep(1000)", hang=0.3, stop=0.3)
    waiting.process.stdout.readline()
    os.kill(waiting.process.pid, signal.SIGSTOP)
    assert waiting.end() == -signal.SIGKILL
    assert waiting.note["kind"] == "stopped"


def test_a_rank_that_computes_below_the_limit_lives(rank):
    busy = rank("end = time.monotonic() + 0.4\nwhile time.monotonic() < end: pass\nsys.exit(5)", hang=30)
    assert busy.end() == 5


def test_a_recovery_that_takes_too_long_ends_the_rank(rank):
    stuck = rank("with beat.recovering(), beat.waiting():\n    time.sleep(1000)", recovery=0.3)
    assert stuck.end() == -signal.SIGKILL
    assert stuck.note["kind"] == "recovery"


def test_a_recovery_in_time_is_left_alone(rank):
    fine = rank("with beat.recovering():\n    time.sleep(0.6)\nsys.exit(5)", recovery=30, hang=0.2)
    assert fine.end() == 5


ENDS = ["sys.exit(0)", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGSEGV)"]


@pytest.mark.parametrize("end", ENDS)
def test_the_companion_ends_with_its_rank_and_notes_when_that_was(rank, end):
    before = time.time()
    dead = rank(end)
    dead.end()
    note = dead.note
    assert (note["kind"], note["rank"], note["step"], note["phase"]) == ("crash", 3, 8, "compute")
    assert before < note["time"] < time.time()


@pytest.mark.parametrize("end", ENDS)
def test_an_end_that_all_agreed_on_is_not_noted(rank, end):
    done = rank(f"beat.end(); {end}")
    done.end()
    assert done.note is None


def test_what_a_rank_said_itself_is_not_written_over(rank):
    dead = rank("beat.note_exception(ValueError('mine'), 8); os.kill(os.getpid(), signal.SIGKILL)")
    dead.end()
    assert dead.note["kind"] == "exception"


def test_a_death_whose_note_cannot_be_written_holds_nobody_up(rank, tmp_path):
    (tmp_path / "notes").write_text("a file where the folder should be")
    rank("os._exit(0)").end()


def test_who_waits_too_long_for_the_others_at_the_end_is_ended(rank):
    code = "from ddl.fault import companion; companion.FIRST_S = 0.1; beat.part(); time.sleep(1000)"
    alone = rank(code, hang=0.2, recovery=0.2)
    assert alone.end() == -signal.SIGKILL
    assert alone.note["kind"] == "recovery"


def test_a_stopped_companion_ends_with_its_rank(rank):
    suspended = rank("time.sleep(1000)")
    wait_until(lambda: watches(suspended.companion))
    os.kill(suspended.companion, signal.SIGSTOP)
    wait_until(lambda: state_of(suspended.companion) == "T")
    suspended.process.kill()
    suspended.end()


def test_signals_to_the_group_are_not_for_the_companion(rank):
    signals = "(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)"
    code = f"for s in {signals}: signal.signal(s, lambda *_: None)\n"
    job = rank(code + "print(1, flush=True)\nwhile True: time.sleep(1000)", stop=0.3)
    job.process.stdout.readline()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.killpg(job.process.pid, name)
    os.kill(job.process.pid, signal.SIGSTOP)
    assert job.end() == -signal.SIGKILL
    assert job.note["kind"] == "stopped"


def test_notes_that_cannot_be_written_do_not_keep_the_rank_alive(rank, tmp_path):
    (tmp_path / "notes").write_text("a file where the folder should be")
    assert rank("time.sleep(1000)", hang=0.3).end() == -signal.SIGKILL


def test_nothing_is_left_open_after_close():
    def descriptors():
        return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if exists(fd))

    def exists(fd):
        return os.path.lexists(f"/proc/self/fd/{fd}")

    before = descriptors()
    heartbeat = start_companion(0)
    pid = heartbeat.companion_pid
    heartbeat.close()
    assert descriptors() == before
    assert state_of(pid) == "X"


def test_the_companion_imports_the_standard_library_alone():
    tree = ast.parse(Path(companion.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)


# The judgement itself, without processes: a look each tenth of a second of the companion's running time.


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


def test_a_minute_of_computing_without_a_beat_is_no_hang():
    assert judge(3600, "R", beats=lambda t: 1 + t // 60, HANG_MS=120_000)[0] == ""


def test_the_limit_is_never_below_twenty_median_steps():
    assert judge(100, HANG_MS=2000, MEDIAN_NS=10**9) == ("hang", pytest.approx(20, abs=0.3))


def test_before_the_first_beat_nothing_is_a_hang():
    assert judge(1000, HANG_MS=2000, beats=lambda t: 0)[0] == ""


def test_limits_of_zero_switch_off():
    assert judge(1000, "S")[0] == ""
    assert judge(1000, "T")[0] == ""
    assert judge(1000, "S", RECOVERING=1)[0] == ""


def test_what_compiles_in_a_phase_that_is_new_has_the_time_for_it():
    """Two cores and many ranks: each gets a hundredth of a second of CPU now and then."""
    assert judge(FIRST_S - 1, HANG_MS=2000, FIRST=1, cpu=lambda t: int(t) / 100) == ("", FIRST_S - 1)
    assert judge(1000, HANG_MS=2000, FIRST=1, cpu=lambda t: t) == ("hang", pytest.approx(FIRST_S, abs=0.3))
    assert judge(1000, HANG_MS=300_000, FIRST=1, cpu=lambda t: t) == ("hang", pytest.approx(300, abs=0.3))


def test_who_sleeps_in_a_phase_that_is_new_does_not_compile():
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


def test_in_a_recovery_who_waits_for_nobody_goes_before_those_who_wait_for_it():
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


def test_who_waits_for_all_to_come_to_a_recovery_outlasts_a_hang_of_another():
    """A rank that has not heard of the death may compute for as long as any, and is killed only after that."""
    meeting = {**IN_RECOVERY, "PART": companion.MEETING}
    assert judge(200, **meeting, WAITING=1) == ("recovery", pytest.approx(150, abs=0.3))
    assert judge(400, **{**meeting, "MEDIAN_NS": 10 * 10**9}, WAITING=1) == ("recovery", pytest.approx(230, abs=0.3))
    assert judge(200, **meeting) == ("recovery", pytest.approx(20, abs=0.3))  # this one is held up by itself
    assert judge(1000, **{**meeting, "HANG_MS": 0}, WAITING=1)[0] == ""


def test_reading_new_shards_has_a_recovery_limit_of_its_own():
    """However long a hang may last elsewhere; those who wait for the one that reads outlast it."""
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


def test_an_exception_is_noted_so_that_two_alike_read_alike(tmp_path):
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
    assert [(n["rank"], n["kind"], n["step"], n["shards"]) for n in notes] == [(r, "exception", 4, [2, 3]) for r in (0, 1)]
    assert read_note(tmp_path, 2) is None
