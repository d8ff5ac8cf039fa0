"""The rank's side of the watchdog: a heartbeat page that the companion reads, and notes about deaths.

What counts as a hang is decided in companion.py, in a separate process."""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ddl.fault import companion as page_of
from ddl.fault.companion import PAGE_BYTES, PHASES_AT, PHASES_END, SLOTS, STACK_SIGNAL, write_note
from ddl.reading import parse_object, read_regular, take

REMEMBERED_STEPS = 21
HANG_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 2.0
BEFORE_STEPS = -1  # the step during set-up, when the first one has not begun
NOT_FOR_THE_COMPANION = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_PARTS = {"": 0, "meet": page_of.MEETING, "read": page_of.READING}
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


class Heartbeat:
    """The step and phase of this rank, in memory that its companion reads; a beat costs about a microsecond.

    Created by ``start_companion``; without a companion it only writes notes."""

    def __init__(self, rank: int, page_fd: int | None = None):
        size = PAGE_BYTES
        self._map = mmap.mmap(-1, size) if page_fd is None else mmap.mmap(page_fd, size)
        self._page = memoryview(self._map)
        self._slots = self._page[: 8 * SLOTS].cast("q")
        self._slots[page_of.RANK] = rank
        self._phases: dict[str, int] = {}
        self._phase, self._met = -1, set[int]()  # the current phase, and the phases seen in this generation
        self._beats, self._step = 0, BEFORE_STEPS
        self._slots[page_of.STEP] = BEFORE_STEPS
        self._step_began_ns = 0
        self._durations_ns: deque[int] = deque(maxlen=REMEMBERED_STEPS)
        self._process: subprocess.Popen[bytes] | None = None
        self._stack_fd = -1
        self.rank = rank
        self.notes: Path | None = None

    @property
    def companion_pid(self) -> int | None:
        return self._process.pid if self._process else None

    def limits(self, hang_timeout_s: float, recovery_timeout_s: float, stop_timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Change the limits; 0 switches one off."""
        for slot, limit_s in (
            (page_of.HANG_MS, hang_timeout_s),
            (page_of.RECOVERY_MS, recovery_timeout_s),
            (page_of.STOP_MS, stop_timeout_s),
        ):
            self._slots[slot] = round(limit_s * 1e3)

    def beat(self, step: int, phase: str) -> None:
        """This rank made progress. The watch for hangs begins with the first beat: start-up has no limit."""
        slots = self._slots
        if step != self._step:
            self._new_step(step)
        number = self._phases.get(phase)
        if number is None:
            number = self._new_phase(phase)
        if number != self._phase:
            slots[page_of.PHASE] = self._phase = number
            slots[page_of.FIRST] = number not in self._met
            self._met.add(number)
        self._beats += 1
        slots[page_of.BEATS] = self._beats

    def progress(self) -> None:
        """This rank makes progress within its phase. Called from any thread: a beat that is lost is no harm."""
        self._beats += 1
        self._slots[page_of.BEATS] = self._beats

    def wait(self, waiting: bool) -> None:
        """This rank waits for others in MPI from now on (True), or has stopped waiting (False).

        A rank that waits does not count as hung, but it can be stopped or exceed the limit of a recovery. Calls may be
        nested."""
        self._slots[page_of.WAITING] += 1 if waiting else -1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """``with heartbeat.waiting():`` around a call that returns when the other ranks have made it as well."""
        self.wait(True)
        try:
            yield
        finally:
            self.wait(False)

    @contextlib.contextmanager
    def recovering(self, part: str = "") -> Iterator[None]:
        """Around a recovery: if it takes longer than the limit, the companion kills this rank.

        part: "meet" until all live ranks take part, which may take as long as a step; "read" while shards are opened;
        both have separate limits."""
        slots = self._slots
        slots[page_of.PART] = _PARTS[part]
        slots[page_of.RECOVERING] = time.monotonic_ns()
        try:
            yield
        finally:
            slots[page_of.RECOVERING] = slots[page_of.PART] = 0
            self._phase = -1
            self._met.clear()  # new shards may have new shapes, for which kernels are compiled
            self._beats += 1
            self._slots[page_of.BEATS] = self._beats

    def end(self) -> None:
        """All ranks know that the job ends: from now on the end of this rank needs no note."""
        self._slots[page_of.ENDED] = 1

    def part(self) -> None:
        """From now on this rank only waits for the others at the agreed end. A rank that hangs before it is killed by
        its own companion; if this rank waits for longer than that and a recovery take, it is killed as well."""
        self.end()
        slots = self._slots
        slots[page_of.WAITING] += 1
        if slots[page_of.HANG_MS] and slots[page_of.RECOVERY_MS]:
            slots[page_of.RECOVERY_MS] += max(slots[page_of.HANG_MS], round(page_of.FIRST_S * 1e3))
            slots[page_of.RECOVERING] = time.monotonic_ns()

    def leave_notes_in(self, folder: str | Path, rank: int | None = None) -> None:
        """Set the folder for this rank's note: one for each launch, since the next launch reuses identities."""
        if rank is not None:
            self.rank = self._slots[page_of.RANK] = rank
        path = os.path.abspath(folder)
        text = path.encode()
        if len(text) > PAGE_BYTES - page_of.NOTES_AT:
            raise ValueError(f"the path of the notes is too long: {path}")
        self._slots[page_of.NOTES_BYTES] = 0
        self._page[page_of.NOTES_AT : page_of.NOTES_AT + len(text)] = text
        self._slots[page_of.NOTES_BYTES] = len(text)
        self.notes = Path(path)

    def note_exception(self, error: BaseException, step: int, shards: Iterable[int] = ()) -> dict[str, Any]:
        """Write a note that the user's code raised; the caller then ends this rank. Returns the note."""
        frames = traceback.extract_tb(error.__traceback__)
        location = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        message = "".join(traceback.format_exception_only(type(error), error)).strip()
        note = {
            "rank": self.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
            "kind": "exception",
            "step": step,
            "shards": sorted(shards),  # a rank computes all its shards at once, so any of them may be the cause
            "phase": self.phase,
            # Without addresses, so that two ranks that fail alike have the same text.
            "error": _ADDRESS.sub("0x", message) + location,
            "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        }
        if self.notes is not None:
            with contextlib.suppress(OSError):
                write_note(str(self.notes), note)
        return note

    @property
    def phase(self) -> str:
        return page_of.phase_of(self._page, self._slots) if self._phases else ""

    def close(self) -> None:
        """End the companion and the watch."""
        if self._process is not None:
            faulthandler.unregister(STACK_SIGNAL)
            faulthandler.disable()
            self._process.kill()
            self._process.wait()
            self._process = None
            os.close(self._stack_fd)
        self._slots.release()
        self._page.release()
        self._map.close()

    def _new_step(self, step: int) -> None:
        now = time.monotonic_ns()
        if self._step_began_ns and step == self._step + 1:
            self._durations_ns.append(now - self._step_began_ns)
            self._slots[page_of.MEDIAN_NS] = sorted(self._durations_ns)[len(self._durations_ns) // 2]
        self._step, self._step_began_ns = step, now
        self._slots[page_of.STEP] = step

    def _new_phase(self, phase: str) -> int:
        """Add a phase to the page's list of names; when the list is full, further phases have no name."""
        end = PHASES_AT + self._slots[page_of.PHASES_BYTES]
        text = phase.replace("\n", " ").encode()
        text = b"\n" + text if self._phases else text
        number = self._phases[phase] = len(self._phases)
        if end + len(text) <= PHASES_END:
            self._page[end : end + len(text)] = text
            self._slots[page_of.PHASES_BYTES] += len(text)
        return number


def start_companion(
    rank: int,
    *,
    hang_timeout_s: float = HANG_TIMEOUT_S,
    recovery_timeout_s: float = 30.0,
    stop_timeout_s: float = STOP_TIMEOUT_S,
) -> Heartbeat:
    """Start this rank's companion and return the heartbeat that it watches. Call it before MPI is imported: a process
    that has started MPI should not fork."""
    page_fd, stack_fd = _memory_file("ddl-heartbeat"), _memory_file("ddl-stack")
    # These signals go to whole process groups but mean the rank: the companion inherits the mask that blocks them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_THE_COMPANION)
    try:
        os.ftruncate(page_fd, PAGE_BYTES)
        heartbeat = Heartbeat(rank, page_fd)
        heartbeat.limits(hang_timeout_s, recovery_timeout_s, stop_timeout_s)
        faulthandler.register(STACK_SIGNAL, file=stack_fd, all_threads=True)
        # Before MPI, which keeps a handler that is there. Open MPI's own deadlocks if the crash is inside malloc.
        faulthandler.enable(file=stack_fd, all_threads=True)
        heartbeat._stack_fd = stack_fd
        # No output: mpirun would not notice the rank's death while its pipe is open in the companion.
        heartbeat._process = subprocess.Popen(
            [sys.executable, "-I", "-S", page_of.__file__, str(page_fd), str(stack_fd), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(page_fd, stack_fd),
        )
    except BaseException:
        os.close(stack_fd)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(page_fd)
    return heartbeat


def _memory_file(name: str) -> int:
    """The descriptor of a file without a name, in memory if the system supports that."""
    try:
        return os.memfd_create(name)
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


def read_note(folder: str | Path, rank: int) -> dict[str, Any] | None:
    """The note about a rank's death, or None if there is none that can be read."""
    try:
        note = parse_object(read_regular(Path(folder) / f"rank-{rank}.json"))
        for name in {"kind", "error", "traceback", "stack", "phase"} & set(note):
            take(note, name, str)
        take({"step": -1, **note}, "step", int, least=-1)
        take({"after_s": 0, **note}, "after_s", int, float)
    except (OSError, ValueError):
        return None
    return note
