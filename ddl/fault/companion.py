"""The companion of a rank: a tiny process that kills its rank when that hangs, and goes when its rank is gone.

Started as ``python -I -S companion.py PAGE STACK PID`` by watchdog.py, whose heartbeat page it reads. It
imports nothing of ddl and nothing large: it must be there within milliseconds, and work when all else fails.
All that it does after a death that nobody agreed on is to leave word of when that was."""

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
FIRST, ENDED = 12, 13  # the phase is new to this generation; the rank's end will be one that all agreed on
PART = 14  # what a recovery is at, as far as that has limits of its own:
MEETING, READING = 1, 2  # until all live ranks have come to it, which may compute till then; reading new shards
SLOTS = 16
PHASES_AT, PHASES_END = 8 * SLOTS, 2048
NOTES_AT, PAGE_BYTES = 2048, 2048 + 4096

# Neither USR1 and USR2, which mean "checkpoint and stop", nor one that MPI, Python or CUDA use.
STACK_SIGNAL = signal.SIGRTMIN + 7
PR_SET_PDEATHSIG = 1
TICK_S = 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STACK_WAIT_S = 1.0
NOTE_WAIT_S = 1.0
MEDIAN_STEPS = 20  # a rank may take this many ordinary steps, whatever the limit says
# What a rank does for the first time may have to be compiled first: while it gets any CPU time it then has so long.
FIRST_S = 120.0
# In a recovery the rank that waits for nobody is the one that holds it up: it goes first, and the others may finish.
ALONE_SHARE = 2 / 3
LAST_WORD_S = 2.0  # for the note about a death; no companion stays longer


class Watch:
    """What the companion saw so far; ``look`` is its whole judgement and touches nothing.

    Time is the companion's own running time: while it was stopped itself, together with its rank, none passed."""

    def __init__(self) -> None:
        self.last = (0, 0)
        self.still_s = self.idle_s = self.stopped_s = self.recovering_s = 0.0
        self.since, self.cpu_s = 0, 0.0

    def look(self, slots, state: str, passed_s: float, cpu_s: float = 0.0) -> str:
        """The kind of a hang ("stopped", "hang" or "recovery") that calls for a kill now, or "".

        slots: the page's. state: the process state letter of /proc. passed_s: since the last look. cpu_s: CPU time
        that the rank has used in all."""
        self.stopped_s = self.stopped_s + passed_s if state == "T" else 0.0
        if self.stopped_s > slots[STOP_MS] / 1e3 > 0:
            return "stopped"
        if state == "T":
            return ""  # a rank that cannot run is judged by the shorter limit alone
        self.recovering_s = self.recovering_s + passed_s if slots[RECOVERING] == self.since != 0 else 0.0
        self.since = slots[RECOVERING]
        if self.since:
            self.still_s = self.idle_s = 0.0
            return "recovery" if self.recovering_s > recovery_limit_s(slots) > 0 else ""
        # A beat or a change of phase is life; so is waiting for others, who have companions of their own.
        seen = (slots[BEATS], slots[WAITING])
        lives = seen != self.last or slots[WAITING] or not slots[BEATS]
        self.still_s = 0.0 if lives else self.still_s + passed_s
        self.idle_s = 0.0 if lives or cpu_s > self.cpu_s else self.idle_s + passed_s
        self.last, self.cpu_s = seen, cpu_s
        limit_s = hang_limit_s(slots)
        hangs = self.still_s > limit_s
        if slots[FIRST]:
            hangs = self.idle_s > limit_s or self.still_s > max(limit_s, FIRST_S)
        return "hang" if slots[HANG_MS] and hangs else ""


def hang_limit_s(slots) -> float:
    """How long a rank may stand still outside a recovery."""
    return max(slots[HANG_MS] / 1e3, MEDIAN_STEPS * slots[MEDIAN_NS] / 1e9)


def recovery_limit_s(slots) -> float:
    """How long this part of a recovery may take this rank; 0: as long as it likes.

    Whoever may be waited for that long has a companion of its own, which acts first."""
    recovery_s, part = slots[RECOVERY_MS] / 1e3, slots[PART]
    if part == READING:  # the whole limit for files that may be cold, and as much more as elsewhere for the others
        return recovery_s / ALONE_SHARE if slots[WAITING] else recovery_s
    if part == MEETING and slots[WAITING]:
        return max(hang_limit_s(slots), FIRST_S) + recovery_s if slots[HANG_MS] else 0.0
    return recovery_s * (1 if slots[WAITING] else ALONE_SHARE)


def phase_of(page, slots) -> str:
    """The phase's name: the PHASE-th of the texts in the page."""
    text = bytes(page[PHASES_AT : PHASES_AT + slots[PHASES_BYTES]]).decode(errors="replace")
    names = text.split("\n")
    return names[slots[PHASE]] if slots[PHASE] < len(names) else ""


def look_at(pid: int) -> tuple[str, float]:
    """The state letter that /proc gives for a process, "X" when it is gone, and the CPU seconds that it has used."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return "X", 0.0
    return fields[0].decode(), (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def note_path(folder: str, rank: int) -> str:
    """Where word of a rank's death is found."""
    return os.path.join(folder, f"rank-{rank}.json")


def write_note(folder: str, note: dict) -> None:
    """Put a note about a rank where the survivors and the supervisor look for it, all of it or nothing."""
    path = note_path(folder, note["rank"])
    os.makedirs(folder, exist_ok=True)
    with open(f"{path}.tmp-{os.getpid()}", "w") as file:
        json.dump(note, file)
    os.replace(f"{path}.tmp-{os.getpid()}", path)


class Process:
    """The rank, this process's parent: it can be waited for and signalled, and nothing else is ever signalled.

    Without pidfd (Linux before 5.3, some sandboxes) its end is seen a tick later."""

    def __init__(self, pid: int):
        self.pid, self._pidfd = pid, -1
        self._gone = select.poll()
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(pid)
            self._gone.register(self._pidfd, select.POLLIN)

    def is_gone_within(self, seconds: float) -> bool:
        """Waits so long at most. A process whose parent has ended gets another one."""
        return bool(self._gone.poll(seconds * 1e3)) or os.getppid() != self.pid

    def signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            elif os.getppid() == self.pid:  # so its number is still its own
                os.kill(self.pid, number)


def stack_from(rank: Process, stack_fd: int) -> str:
    """The rank's Python stacks, which its own handler writes; "" when it does not answer."""
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
    """What is known of the rank at its end."""
    return {
        "rank": slots[RANK],
        "host": os.uname().nodename,
        "pid": pid,
        "time": time.time(),
        "kind": kind,
        "step": slots[STEP],
        "phase": phase_of(page, slots),
    }


def leave_word(page, slots, note: dict, wait_s: float) -> None:
    """Write the note, but wait no longer than that for a file system that hangs."""
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
    """Note who was killed, where and why, then kill."""
    stack = stack_from(rank, stack_fd) if kind != "stopped" else ""
    note = {**note_of(kind, page, slots, rank.pid), "after_s": round(limit_s, 3), "stack": stack}
    leave_word(page, slots, note, NOTE_WAIT_S)
    rank.signal(signal.SIGKILL)


def note_crash(page, slots, pid: int) -> None:
    """The rank is gone without a word: note when that was, unless its own note tells why."""
    note = note_of("crash", page, slots, pid)
    folder = bytes(page[NOTES_AT : NOTES_AT + slots[NOTES_BYTES]]).decode()
    signal.setitimer(signal.ITIMER_REAL, LAST_WORD_S)  # ends this process, whatever holds it up
    if not os.path.exists(note_path(folder, slots[RANK])):
        leave_word(page, slots, note, LAST_WORD_S)


def wake_with(pid: int) -> bool:
    """Ask the kernel to continue this process when its parent ends, should it be stopped at that time: then it sees
    that and ends as well. False if the parent has ended already."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    except (ImportError, OSError, AttributeError):
        pass  # the loop below ends too, unless this process is stopped
    return os.getppid() == pid


def main(page_fd: int, stack_fd: int, pid: int) -> None:
    """Watch the rank until it ends."""
    page = memoryview(mmap.mmap(page_fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ))
    slots = page[: 8 * SLOTS].cast("q")
    if wake_with(pid) and watch(page, slots, stack_fd, pid):
        return
    if slots[NOTES_BYTES] and not slots[ENDED]:
        note_crash(page, slots, pid)


def watch(page, slots, stack_fd: int, pid: int) -> bool:
    """Return when the rank has ended: True if it was killed here, for a hang."""
    rank = Process(pid)
    seen, before = Watch(), time.monotonic()
    while not rank.is_gone_within(TICK_S):
        now = time.monotonic()
        passed_s, before = min(now - before, 2 * TICK_S), now
        state, cpu_s = look_at(pid)
        kind = seen.look(slots, state, passed_s, cpu_s)
        if kind:
            waited = {"stopped": seen.stopped_s, "hang": seen.still_s, "recovery": seen.recovering_s}[kind]
            kill(kind, page, slots, rank, stack_fd, waited)
            while not rank.is_gone_within(TICK_S):
                pass
            return True
    return False


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
