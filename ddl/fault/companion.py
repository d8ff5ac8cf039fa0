"""The companion of a rank: a small process that kills its rank when it hangs, and ends when its rank has ended.

Started as ``python -I -S companion.py PAGE STACK PID`` by watchdog.py, whose heartbeat page it reads. It imports
nothing of ddl and nothing large, because it must start within milliseconds and work when everything else fails. After
an unexpected death it writes a note with the time and, for a native crash, the signal."""

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
FIRST, ENDED = 12, 13  # the phase is new to this generation; all ranks have agreed on the end
PART = 14  # the current part of a recovery, if it has a separate limit:
MEETING, READING = 1, 2  # waiting for all live ranks, which may still compute; reading new shards
SLOTS = 16
PHASES_AT, PHASES_END = 8 * SLOTS, 2048
NOTES_AT, PAGE_BYTES = 2048, 2048 + 4096

# Neither USR1 and USR2, which mean "checkpoint and stop", nor one that MPI, Python or CUDA use.
STACK_SIGNAL = signal.SIGRTMIN + 7
PR_SET_PDEATHSIG = 1
TICK_S = 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STACK_WAIT_S = 1.0
FATAL = "Fatal Python error: "  # the beginning of what Python's fault handler writes
NOTE_WAIT_S = 1.0
MEDIAN_STEPS = 20  # a rank is never killed before so many median steps have passed
# A phase that is new may have to be compiled first: the limit for it, as long as the rank uses any CPU time.
FIRST_S = 120.0
# In a recovery the rank that waits for no other delays all: that has a shorter limit, so that the others can finish.
ALONE_SHARE = 2 / 3
LAST_WORD_S = 2.0  # for the note about a death; then the companion ends in any case


class Watch:
    """What the companion has observed; ``look`` decides, and has no other effect.

    Time is the companion's running time: none passes while it is stopped together with its rank."""

    def __init__(self) -> None:
        self.last = (0, 0)
        self.still_s = self.idle_s = self.stopped_s = self.recovering_s = self.alone_s = 0.0
        self.since, self.cpu_s = 0, 0.0

    def look(self, slots, state: str, passed_s: float, cpu_s: float = 0.0) -> str:
        """The kind of hang ("stopped", "hang" or "recovery") for which the rank must be killed now, or "".

        slots: of the page. state: the process state letter of /proc. passed_s: since the last call. cpu_s: CPU time
        that the rank has used so far."""
        self.stopped_s = self.stopped_s + passed_s if state == "T" else 0.0
        if self.stopped_s > slots[STOP_MS] / 1e3 > 0:
            return "stopped"
        if state == "T":
            return ""  # for a rank that cannot run only the shorter limit counts
        if slots[RECOVERING] != self.since:
            self.since, self.recovering_s, self.alone_s = slots[RECOVERING], 0.0, 0.0
        elif self.since:
            # Each has its own limit: a rank that has waited long for others has not delayed anyone.
            self.recovering_s += passed_s
            self.alone_s += 0.0 if slots[WAITING] else passed_s
        if self.since:
            self.still_s = self.idle_s = 0.0
            alone_limit_s, limit_s = recovery_limits_s(slots)
            exceeds = self.alone_s > alone_limit_s > 0 or self.recovering_s > limit_s > 0
            return "recovery" if exceeds else ""
        # A beat or a change of phase shows life; a rank that waits for others is left to their companions.
        seen = (slots[BEATS], slots[WAITING])
        lives = seen != self.last or slots[WAITING] or not slots[BEATS]
        self.still_s = 0.0 if lives else self.still_s + passed_s
        self.idle_s = 0.0 if lives or cpu_s > self.cpu_s else self.idle_s + passed_s
        self.last, self.cpu_s = seen, cpu_s
        limit_s = hang_limit_s(slots)
        hangs = self.still_s > limit_s
        if slots[FIRST]:
            # A set-up may read a large checkpoint, for as long as that takes.
            hangs = self.idle_s > limit_s or (self.still_s > max(limit_s, FIRST_S) and slots[STEP] >= 0)
        return "hang" if slots[HANG_MS] and hangs else ""


def hang_limit_s(slots) -> float:
    """How long a rank may stand still outside a recovery."""
    return max(slots[HANG_MS] / 1e3, MEDIAN_STEPS * slots[MEDIAN_NS] / 1e9)


def recovery_limits_s(slots) -> tuple[float, float]:
    """How long this part of a recovery may keep the rank busy without waiting for others, and how long it may take in
    all; 0: no limit.

    The second is longer, so that the companion of the rank that the others wait for acts first."""
    recovery_s, part = slots[RECOVERY_MS] / 1e3, slots[PART]
    if part == READING:  # reading files that are not in the page cache may take the whole limit
        return recovery_s, recovery_s / ALONE_SHARE
    if part == MEETING:
        return recovery_s * ALONE_SHARE, max(hang_limit_s(slots), FIRST_S) + recovery_s if slots[HANG_MS] else 0.0
    return recovery_s * ALONE_SHARE, recovery_s


def snapshot(slots) -> list[int]:
    """The slots as they were at one moment: the rank may write some of them while others are read."""
    before: list[int] = []
    now: list[int] = slots.tolist()
    while now != before:
        before, now = now, slots.tolist()
    return now


def phase_of(page, slots) -> str:
    """The phase's name: the PHASE-th of the texts in the page."""
    text = bytes(page[PHASES_AT : PHASES_AT + slots[PHASES_BYTES]]).decode(errors="replace")
    names = text.split("\n")
    return names[slots[PHASE]] if slots[PHASE] < len(names) else ""


def look_at(pid: int) -> tuple[str, float]:
    """The state letter of a process from /proc, "X" if it is gone, and the CPU seconds that it has used."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return "X", 0.0
    return fields[0].decode(), (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def note_path(folder: str, rank: int) -> str:
    """The file with the note about a rank's death."""
    return os.path.join(folder, f"rank-{rank}.json")


def write_note(folder: str, note: dict) -> None:
    """Write a note about a rank for the survivors and the supervisor, atomically."""
    path = note_path(folder, note["rank"])
    os.makedirs(folder, exist_ok=True)
    aside = f"{path}.tmp-{os.getpid()}"
    try:
        with open(aside, "w") as file:
            json.dump(note, file)
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


class Process:
    """The rank, which is this process's parent. No other process is ever signalled.

    Without pidfd (Linux before 5.3, some sandboxes) its end is noticed a tick later."""

    def __init__(self, pid: int):
        self.pid, self._pidfd = pid, -1
        self._gone = select.poll()
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(pid)
            self._gone.register(self._pidfd, select.POLLIN)

    def is_gone_within(self, seconds: float) -> bool:
        """Wait for the end of the rank, at most so long. A process whose parent has ended gets another parent."""
        return bool(self._gone.poll(seconds * 1e3)) or os.getppid() != self.pid

    def signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            elif os.getppid() == self.pid:  # so the pid has not been reused
                os.kill(self.pid, number)


def stack_from(rank: Process, stack_fd: int) -> str:
    """The rank's Python stacks, written by its own signal handler; "" if it does not respond."""
    rank.signal(STACK_SIGNAL)
    size, deadline = 0, time.monotonic() + STACK_WAIT_S
    while time.monotonic() < deadline:
        time.sleep(0.05)
        now = os.fstat(stack_fd).st_size
        if now and now == size:
            break
        size = now
    return os.pread(stack_fd, min(size, 1 << 16), 0).decode(errors="replace")


def note_of(kind: str, page, slots, pid: int) -> dict:
    """A note about the rank and how it ended."""
    return {
        "rank": slots[RANK],
        "host": os.uname().nodename,
        "pid": pid,
        "time": time.time(),
        "kind": kind,
        "step": slots[STEP],
        "phase": phase_of(page, slots),
    }


def write_note_within(page, slots, note: dict, wait_s: float) -> None:
    """Write the note, but wait at most ``wait_s`` for a file system that hangs."""
    folder = bytes(page[NOTES_AT : NOTES_AT + slots[NOTES_BYTES]]).decode()
    written: list[bool] = []

    def write() -> None:
        with contextlib.suppress(OSError):
            write_note(folder, note)
        written.append(True)

    if folder:
        _thread.start_new_thread(write, ())
        deadline = time.monotonic() + wait_s
        while not written and time.monotonic() < deadline:
            time.sleep(0.005)


def kill(kind: str, page, slots, rank: Process, stack_fd: int, limit_s: float) -> None:
    """Write a note about the rank, then kill it."""
    stack = stack_from(rank, stack_fd) if kind != "stopped" else ""
    note = {**note_of(kind, page, slots, rank.pid), "after_s": round(limit_s, 3), "stack": stack}
    write_note_within(page, slots, note, NOTE_WAIT_S)
    rank.signal(signal.SIGKILL)


def note_crash(page, slots, pid: int, stack_fd: int) -> None:
    """Note the time of the rank's end, and the signal of a native crash, unless the rank has written its own note."""
    note = note_of("crash", page, slots, pid)
    # After a fatal signal Python's fault handler has written its name and the stacks. None of this after SIGKILL.
    text = os.pread(stack_fd, 1 << 16, 0).decode(errors="replace")
    _, is_fatal, stack = text.partition(FATAL)
    if is_fatal:
        note["error"], note["stack"] = stack.partition("\n")[0], stack
    folder = bytes(page[NOTES_AT : NOTES_AT + slots[NOTES_BYTES]]).decode()
    signal.setitimer(signal.ITIMER_REAL, LAST_WORD_S)  # ends this process even if a file system hangs
    if not os.path.exists(note_path(folder, slots[RANK])):
        write_note_within(page, slots, note, LAST_WORD_S)


def wake_with(pid: int) -> bool:
    """Ask the kernel to continue this process when its parent ends: it may be stopped, and must notice that to end as
    well. False if the parent has ended already."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    except (ImportError, OSError, AttributeError):
        pass  # without this the loop still ends, unless this process is stopped
    return os.getppid() == pid


def main(page_fd: int, stack_fd: int, pid: int) -> None:
    """Watch the rank until it ends."""
    page = memoryview(mmap.mmap(page_fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ))
    slots = page[: 8 * SLOTS].cast("q")
    if wake_with(pid) and watch(page, slots, stack_fd, pid):
        return
    if slots[NOTES_BYTES] and not slots[ENDED]:
        note_crash(page, slots, pid, stack_fd)


def watch(page, slots, stack_fd: int, pid: int) -> bool:
    """Return when the rank has ended: True if it was killed here, for a hang."""
    rank = Process(pid)
    seen, before = Watch(), time.monotonic()
    while not rank.is_gone_within(TICK_S):
        now = time.monotonic()
        passed_s, before = min(now - before, 2 * TICK_S), now
        state, cpu_s = look_at(pid)
        kind = seen.look(snapshot(slots), state, passed_s, cpu_s)
        if kind:
            waited = {"stopped": seen.stopped_s, "hang": seen.still_s, "recovery": seen.recovering_s}[kind]
            kill(kind, page, slots, rank, stack_fd, waited)
            while not rank.is_gone_within(TICK_S):
                pass
            return True
    return False


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
