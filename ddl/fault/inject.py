"""Injection of faults: a small language that says which rank dies where, and the probe that makes it so.

    kill rank 2 at step 40; stop rank 1 at step 80; hang rank 3 at point recover.shrink
    kill ranks 0,3 at point allreduce.barrier:17
    segv rank 0 at step 3 point step.commit
    random:seed=7,kills=3

A rank is named by its rank at launch. ``at step 40`` is the first kill point passed when 40 steps are
committed and training continues; ``at point P:17`` is the 17th time that the rank passes P (with a step: while that
step is computed). Each fault happens once. The same script does the same in every run."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ddl.arrays import generator
from ddl.comm import Probe
from ddl.environment import job_size
from ddl.errors import ConfigError
from ddl.wording import counted, instead, listed

ACTS = {
    "kill": "SIGKILL, as the system's out-of-memory killer does",
    "stop": "SIGSTOP: the process stands still and can be continued",
    "segv": "SIGSEGV: a crash in native code",
    "abort": "SIGABRT from inside malloc, whose lock is held: heap corruption",
    "exit": "os._exit(0) without a word",
    "quit": "sys.exit(0), as the user's code may call it",
    "raise": "an exception, as if raised by the user's code",
    "hang": "sleeps indefinitely, without heartbeats",
}
_CALLS = {  # what a group is used for: where that is, and the calls that a job then makes
    "job": ("outside the sum of a step", "barrier native broadcast gather share spare agree revoke shrink"),
    "allreduce": ("in the sum of a step", "barrier native stream"),
    "recovery": ("in a recovery", "broadcast gather share agree revoke shrink"),
}
_RECOVERY = ["fence", "revoke", "shrink", "agree", "level", "reassign"]
_CHECKPOINT = ["mkdir", "open", "link", "write", "fsync", "rename", "delete"]

POINTS: dict[str, str] = {
    "setup.claim": "before the leader claims the run folder",
    "setup.claim.done": "after the leader has claimed the run folder, before the others know",
    "setup.announce": "before the leader announces the start of the job",
    **{f"{use}.{call}": f"before a {call} {where}" for use, (where, calls) in _CALLS.items() for call in calls.split()},
    **{
        f"{use}.{call}.done": f"after a {call} {where}"
        for use, (where, calls) in _CALLS.items()
        for call in calls.split()
    },
    "allreduce.block": "before a block of a sum in shared memory",
    "allreduce.stream.message": "before a message of a ring between hosts",
    "step.load": "before a batch is fetched",
    "step.compute": "before forward and backward of a batch",
    "step.sum": "before the sum of a step",
    "step.prepare": "before a rank's share of the update of a replica that the ranks of a node share",
    "step.commit": "after the sum of a step, before anything changes",
    **{f"recover.{phase}": f"before recovery's phase {phase}" for phase in _RECOVERY},
    "evaluate.batch": "before a batch of an evaluation",
    **{f"checkpoint.{call}": f"before a {call} of a checkpoint" for call in _CHECKPOINT},
    **{f"checkpoint.{call}.done": f"after a {call} of a checkpoint" for call in _CHECKPOINT},
    "end.agree": "before the agreement that the job has ended",
    "end.checkpoint": "before the last checkpoint",
    "end.restore": "before the best state is restored",
    "end.summary": "before summary.json is written",
    "end.barrier": "before the barrier that closes the end's work",
}
"""Kill points by name, and where in the work of a rank each of them lies."""

RANDOM_POINTS = ("step.load", "step.compute", "step.sum", "step.commit")  # every rank passes them in every step
DEFAULT_RANDOM_STEPS = 100

_NUMBERS = r"\d+(?:\s*,\s*\d+)*"
_FAULT = re.compile(
    rf"(?P<act>\w+)\s+ranks?\s+(?P<ranks>{_NUMBERS})\s+at"
    r"(?:\s+step\s+(?P<step>\d+))?(?:\s+point\s+(?P<point>[\w.]+)(?::(?P<count>\d+))?)?"
)


class InjectedError(RuntimeError):
    """Raised by ``raise rank ...``: simulates a bug in the user's code."""


@dataclass(frozen=True)
class Fault:
    """One fault; ``str`` of it is the line of the script that makes it."""

    act: str
    rank: int
    step: int | None = None
    point: str | None = None
    count: int = 1

    def __str__(self) -> str:
        step = "" if self.step is None else f" step {self.step}"
        point = "" if self.point is None else f" point {self.point}:{self.count}"
        return f"{self.act} rank {self.rank} at{step}{point}"


@dataclass(frozen=True)
class Script:
    """Faults in the order of the text; ``str`` of it replays them."""

    faults: tuple[Fault, ...] = ()

    def probe(
        self, rank: int, step: Callable[[], int] = lambda: 0, act: Callable[[Fault], None] | None = None
    ) -> Probe:
        """The probe of one rank. rank: its rank at launch. step: how many steps are committed now."""
        return _Probe([_Trigger(fault) for fault in self.faults if fault.rank == rank], step, act or perform)

    def __str__(self) -> str:
        return "; ".join(map(str, self.faults))


def parse(text: str, ranks: int | None = None, steps: int | None = None) -> Script:
    """The faults that ``text`` describes. Raises ConfigError, naming what is known, for any other text.

    ranks: how many the job has (default: as launched). steps: those of the job, for random faults."""
    if text.strip().startswith("random:"):
        count = ranks or job_size()
        return Script(_random(text.strip().removeprefix("random:"), count, steps or DEFAULT_RANDOM_STEPS))
    faults: list[Fault] = []
    for line in text.split(";"):
        if line.strip():
            faults.extend(_parse_fault(line.strip(), ranks))
    return Script(tuple(faults))


def _parse_fault(line: str, ranks: int | None) -> list[Fault]:
    match = _FAULT.fullmatch(line)
    if match is None or not (match["step"] or match["point"]):
        raise ConfigError(
            f'fault.chaos: cannot read "{line}"; a fault is "ACT rank R at step S", "ACT rank R at point NAME:COUNT" '
            f"or both, ACT one of {listed(sorted(ACTS))}"
        )
    act, point, count = match["act"], match["point"], int(match["count"] or 1)
    if act not in ACTS:
        raise ConfigError(f'fault.chaos: there is no act "{act}" ({line}); {instead(act, ACTS, "there are")}')
    if point is not None and point not in POINTS:
        near = difflib.get_close_matches(point, POINTS, n=3) or sorted(POINTS)
        raise ConfigError(f'fault.chaos: there is no kill point "{point}" ({line}); did you mean {listed(near)}?')
    if count < 1:
        raise ConfigError(f"fault.chaos: kill points count from 1 ({line})")
    step = None if match["step"] is None else int(match["step"])
    named = [int(number) for number in match["ranks"].split(",")]
    for rank in named:
        if ranks is not None and rank >= ranks:
            raise ConfigError(f"fault.chaos: there is no rank {rank} ({line}); the job has {ranks}")
    return [Fault(act, rank, step, point, count) for rank in named]


def _random(text: str, ranks: int, steps: int) -> tuple[Fault, ...]:
    """``kills`` faults on different ranks, at random points of random steps, drawn from ``seed`` alone."""
    options = {"seed": "0", "kills": "1", "acts": "kill", "steps": str(steps)}
    for word in filter(None, text.split(",")):
        name, _, value = word.strip().partition("=")
        if name not in options:
            raise ConfigError(f"fault.chaos: random has no option {name!r}; {instead(name, options, 'it has')}")
        options[name] = value
    acts = options.pop("acts").split("+")
    if unknown := sorted(set(acts) - set(ACTS)):
        raise ConfigError(
            f"fault.chaos: there is no act {unknown[0]!r}; {instead(unknown[0], ACTS, 'there are')} (joined by +)"
        )
    try:
        seed, kills, last = (int(options[name]) for name in ("seed", "kills", "steps"))
    except ValueError as error:
        raise ConfigError(f"fault.chaos: random:{text}: {error}") from error
    if not 1 <= kills < max(ranks, 2) or last < 2:
        raise ConfigError(
            f"fault.chaos: random:{text}: 1 to {ranks - 1} of {counted(ranks, 'rank')} can be lost, in 2 steps or more"
        )
    draw = generator(seed, "chaos", ranks, kills, last)
    victims = draw.permutation(ranks)[:kills]
    when = sorted(int(step) for step in draw.integers(1, last, kills))
    return tuple(
        Fault(acts[int(draw.integers(len(acts)))], int(rank), step, str(draw.choice(RANDOM_POINTS)))
        for rank, step in zip(victims, when, strict=True)
    )


def recorded_in(folder: Path) -> Callable[[Fault], None]:
    """``perform``, but first append the fault to ``folder``/faults, which lists the faults that have happened."""

    def act(fault: Fault) -> None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            # One write, straight to the system: several ranks may be struck at once, and this one ends now.
            with open(folder / "faults", "ab", buffering=0) as file:
                file.write(f"{fault}\n".encode())
        perform(fault)

    return act


def perform(fault: Fault) -> None:
    """Inject the fault into this process."""
    if fault.act == "raise":
        raise InjectedError(f"injected: {fault}")
    if fault.act == "exit":
        os._exit(0)
    if fault.act == "quit":
        raise SystemExit(0)
    if fault.act == "hang":
        while True:
            time.sleep(1000)
    if fault.act == "abort":
        free_twice()
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "segv": signal.SIGSEGV}[fault.act]
    if number == signal.SIGSEGV:
        # A real crash bypasses Python's handlers. Reset the action through the C library, which works in any thread,
        # unlike ``signal.signal``: a checkpoint's kill points are passed in its writer thread.
        ctypes.CDLL(None).signal(number, signal.SIG_DFL.value)
    os.kill(os.getpid(), number)


def free_twice() -> NoReturn:
    """End this process as the C library does when it finds the heap corrupted."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    block = library.malloc(1 << 14)  # large enough that free takes the lock before it detects the double free
    library.free(block)
    library.free(block)
    raise AssertionError("this C library does not notice a double free")


@dataclass
class _Trigger:
    fault: Fault
    passed: int = 0


@dataclass
class _Probe:
    """Counts the points that a rank passes (``seen``: so a sweep knows them), and acts by the script."""

    triggers: list[_Trigger]
    step: Callable[[], int]
    act: Callable[[Fault], None]
    seen: dict[str, int] = field(default_factory=dict)

    def __call__(self, point: str) -> None:
        self.seen[point] = self.seen.get(point, 0) + 1
        for trigger in self._due(point):
            self.triggers.remove(trigger)
            self.act(trigger.fault)

    def _due(self, point: str) -> Sequence[_Trigger]:
        due = []
        for trigger in self.triggers:
            fault = trigger.fault
            if fault.step is not None and self.step() != fault.step:
                continue
            if fault.point is not None and fault.point != point:
                continue
            trigger.passed += 1
            if trigger.passed == fault.count:
                due.append(trigger)
        return due
