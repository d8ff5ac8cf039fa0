"""The companion of a rank: a tiny process that kills its rank when that hangs, and never outlives it.

Started as ``python -I -S companion.py PAGE STACK PID`` by watchdog.py, whose heartbeat page it reads. It
imports nothing of ddl and nothing large: it must be there within milliseconds, and work when all else fails."""

from __future__ import annotations

import _thread
import contextlib
import json
import mmap
import os
import select
import signal
import sys
import time

# The heartbeat page: 64-bit slots, then text regions that begin with their length (one byte for phases).
BEATS, STEP, PHASE, WAITING, RECOVERING, MEDIAN_NS, HANG_MS, RECOVERY_MS, STOP_MS, RANK, PHASES_BYTES, NOTES_BYTES = (
    range(12)
)
SLOTS = 16
PHASES_AT, PHASES_END = 8 * SLOTS, 2048
NOTES_AT, PAGE_BYTES = 2048, 2048 + 4096

# Neither USR1 and USR2, which mean "checkpoint and stop", nor one that MPI, Python or CUDA use.
STACK_SIGNAL = signal.SIGRTMIN + 7
PR_SET_PDEATHSIG = 1
TICK_S = 0.1
STACK_WAIT_S = 1.0
NOTE_WAIT_S = 1.0
MEDIAN_STEPS = 20  # a rank may take this many ordinary steps, whatever the limit says


class Watch:
    """What the companion saw so far; ``look`` is its whole judgement and touches nothing.

    Time is the companion's own running time: while it was stopped itself, together with its rank, none passed."""

    def __init__(self) -> None:
        self.last = (0, 0)
        self.still_s = self.stopped_s = self.recovering_s = 0.0
        self.since = 0

    def look(self, slots, state: str, passed_s: float) -> str:
        """The kind of a hang ("stopped", "hang" or "recovery") that calls for a kill now, or "".

        slots: the page's. state: the process state letter of /proc. passed_s: since the last look."""
        self.stopped_s = self.stopped_s + passed_s if state == "T" else 0.0
        if self.stopped_s > slots[STOP_MS] / 1e3 > 0:
            return "stopped"
        if state == "T":
            return ""  # a rank that cannot run is judged by the shorter limit alone
        self.recovering_s = self.recovering_s + passed_s if slots[RECOVERING] == self.since != 0 else 0.0
        self.since = slots[RECOVERING]
        if self.since:
            self.still_s = 0.0
            return "recovery" if self.recovering_s > slots[RECOVERY_MS] / 1e3 > 0 else ""
        # A beat or a change of phase is life; so is waiting for others, who have companions of their own.
        seen = (slots[BEATS], slots[WAITING])
        self.still_s = 0.0 if seen != self.last or slots[WAITING] or not slots[BEATS] else self.still_s + passed_s
        self.last = seen
        limit_s = max(slots[HANG_MS] / 1e3, MEDIAN_STEPS * slots[MEDIAN_NS] / 1e9)
        return "hang" if slots[HANG_MS] and self.still_s > limit_s else ""


def phase_of(page, slots) -> str:
    """The phase's name: the PHASE-th of the texts in the page."""
    text = bytes(page[PHASES_AT : PHASES_AT + slots[PHASES_BYTES]]).decode(errors="replace")
    names = text.split("\n")
    return names[slots[PHASE]] if slots[PHASE] < len(names) else ""


def state_of(pid: int) -> str:
    """The letter that /proc gives for a process; "X" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return "X"


def write_note(folder: str, note: dict) -> None:
    """Put a note about a rank where the survivors and the supervisor look for it, all of it or nothing."""
    path = os.path.join(folder, f"rank-{note['rank']}.json")
    os.makedirs(folder, exist_ok=True)
    with open(f"{path}.tmp-{os.getpid()}", "w") as file:
        json.dump(note, file)
    os.replace(f"{path}.tmp-{os.getpid()}", path)


def stack_from(pidfd: int, stack_fd: int) -> str:
    """The rank's Python stacks, which its own handler writes; "" when it does not answer."""
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, STACK_SIGNAL)
    size, deadline = 0, time.monotonic() + STACK_WAIT_S
    while time.monotonic() < deadline:
        time.sleep(0.05)
        now = os.fstat(stack_fd).st_size
        if now and now == size:
            break
        size = now
    return os.pread(stack_fd, min(size, 1 << 16), 0).decode(errors="replace")


def kill(kind: str, page, slots, pid: int, pidfd: int, stack_fd: int, limit_s: float) -> None:
    """Note who was killed, where and why, then kill. The kill does not wait for a file system that hangs."""
    stack = stack_from(pidfd, stack_fd) if kind != "stopped" else ""
    folder = bytes(page[NOTES_AT : NOTES_AT + slots[NOTES_BYTES]]).decode()
    note = {
        "rank": slots[RANK],
        "host": os.uname().nodename,
        "pid": pid,
        "time": time.time(),
        "kind": kind,
        "step": slots[STEP],
        "phase": phase_of(page, slots),
        "after_s": round(limit_s, 3),
        "stack": stack,
    }
    written: list[bool] = []

    def write() -> None:
        with contextlib.suppress(OSError):
            write_note(folder, note)
        written.append(True)

    if folder:
        _thread.start_new_thread(write, ())
        deadline = time.monotonic() + NOTE_WAIT_S
        while not written and time.monotonic() < deadline:
            time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def die_with(pid: int) -> bool:
    """Ask the kernel to kill this process when its parent ends, be it stopped at that time; False if that is past."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        pass  # the loop below ends too, unless this process is stopped
    return os.getppid() == pid


def main(page_fd: int, stack_fd: int, pid: int) -> None:
    """Watch the rank until it ends."""
    if not die_with(pid):
        return
    page = memoryview(mmap.mmap(page_fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ))
    slots = page[: 8 * SLOTS].cast("q")
    pidfd = os.pidfd_open(pid)
    gone = select.poll()
    gone.register(pidfd, select.POLLIN)
    watch, before = Watch(), time.monotonic()
    while not gone.poll(TICK_S * 1e3) and os.getppid() == pid:
        now = time.monotonic()
        passed_s, before = min(now - before, 2 * TICK_S), now
        kind = watch.look(slots, state_of(pid), passed_s)
        if kind:
            waited = {"stopped": watch.stopped_s, "hang": watch.still_s, "recovery": watch.recovering_s}[kind]
            kill(kind, page, slots, pid, pidfd, stack_fd, waited)
            gone.poll()
            return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
