"""A rank that hangs is killed by its companion; one that computes, waits or was suspended is not: with real processes.

The judgement itself is tested in tests/unit/fault."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ddl.fault.companion as companion
from ddl.fault.companion import look_at
from ddl.fault.watchdog import read_note, start_companion

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
    """A process with a companion, running ``code`` in a new process group."""

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
        assert time.monotonic() < deadline, f"not true after {DEADLINE_S} s"
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


def test_a_hung_rank_is_killed_and_leaves_its_stack(rank):
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


def test_a_stopped_rank_is_detected_even_while_it_waits(rank):
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


def test_a_companion_does_not_overwrite_its_ranks_own_note(rank):
    dead = rank("beat.note_exception(ValueError('mine'), 8); os.kill(os.getpid(), signal.SIGKILL)")
    dead.end()
    assert dead.note["kind"] == "exception"


def test_a_death_whose_note_cannot_be_written_does_not_block_the_peers(rank, tmp_path):
    (tmp_path / "notes").write_text("a file where the folder should be")
    rank("os._exit(0)").end()


def test_a_rank_that_waits_too_long_for_the_others_at_the_end_is_killed(rank):
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
