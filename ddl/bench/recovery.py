"""The cost of a death: how long the main job stalls when a rank is killed, against a restart of all by torchrun.

A rank of ``mpirun -n N python -m ddl.train``, the CNN on the digits, is killed at a random moment of a step. The time
from SIGKILL to the next committed step is read from metrics.jsonl, less an ordinary step of the same run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddl.bench.job import environment
from ddl.bench.measure import Row
from ddl.errors import DdlError
from ddl.launcher.mpirun import LAUNCH_VARIABLE, command_line, find_mpirun, ranks
from ddl.metrics import read_lines

WARM, KILLED_AT, STEPS = 30, 90, 130  # steps; those from WARM on are ordinary
LIMIT_S = 60.0
TAIL_BYTES = 1 << 12


@dataclass(frozen=True)
class DeathCost:
    """The cost of one death. stall_s: from SIGKILL to the next committed step; phases: its parts, in seconds."""

    stall_s: float
    step_s: float  # an ordinary step
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def cost_s(self) -> float:
        return self.stall_s - self.step_s


def death(lines: Sequence[dict[str, Any]], killed: float) -> DeathCost:
    """The cost of killing a rank at the time ``killed``, from the lines of metrics.jsonl."""
    place = next(number for number, line in enumerate(lines) if line["event"] == "recovery")
    recovery = lines[place]
    before = [line["time"] for line in lines[:place] if line["event"] == "step" and line["time"] < killed]
    after = next(line["time"] for line in lines[place:] if line["event"] == "step")
    phases = {name: seconds for name, seconds in recovery.get("phases", {}).items() if name != "detect"}
    began = recovery["time"] - sum(phases.values())
    parts = {"detect": began - killed, **phases, "first_step": after - recovery["time"]}
    return DeathCost(after - killed, statistics.median(b - a for a, b in pairwise(before[WARM:])), parts)


def ours(size: int, victim: int, folder: Path, threads: int, wait_s: float) -> DeathCost:
    """One main job; ``victim`` is killed ``wait_s`` after step KILLED_AT was reported."""
    settings = {"run.dir": str(folder), "train.steps": str(STEPS), "metrics.console_every_s": "0"}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    mark = f"bench-{uuid.uuid4().hex[:8]}"
    environ = {**environment(size, threads, "on"), LAUNCH_VARIABLE: mark}
    command = command_line(find_mpirun(), [sys.executable, "-m", "ddl.train", *words], size, environ=environ)
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(1, folder, process)
        pid = ranks(mark)[victim]
        _until(KILLED_AT, folder, process)
        time.sleep(wait_s)
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        process.wait(LIMIT_S)
        return death(read_lines(folder / "metrics.jsonl"), killed)
    except (OSError, KeyError, StopIteration, subprocess.TimeoutExpired) as error:
        raise DdlError("the job did not survive the death of a rank: python -m ddl.doctor says why") from error
    finally:
        _end(process)


def _until(step: int, folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until metrics.jsonl reports that step, by reading only its end, which does not disturb the ranks."""
    deadline, path = time.monotonic() + LIMIT_S, folder / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        lines = read_lines(path, TAIL_BYTES) if path.exists() else []
        if any(line["event"] == "step" and line["step"] >= step for line in lines):
            return
        time.sleep(0.005)
    raise DdlError(f"the job did not get to step {step}")


def theirs(size: int, folder: Path, threads: int) -> DeathCost:
    """One job under torchrun --max-restarts, with a checkpoint after every step, whose last rank is killed."""
    folder.mkdir(parents=True)
    program = ["-m", "ddl.bench.restarted", str(folder), str(STEPS), str(KILLED_AT)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command += ["--max-restarts", "3", *program]
    environ = {**environment(size, threads, "on"), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(LIMIT_S)
        times = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        after = next(line["time"] for line in times if line["restarts"] > 0)
        killed = float((folder / "killed").read_text())
    except (OSError, ValueError, KeyError, StopIteration, subprocess.TimeoutExpired) as error:
        raise DdlError("torchrun did not restart the ranks") from error
    finally:
        _end(process)
    before = [line["time"] for line in times if line["restarts"] == 0]
    return DeathCost(after - killed, statistics.median(b - a for a, b in pairwise(before[WARM:])))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def rows(size: int, peers: Sequence[str], rounds: int, threads: int) -> Iterator[Row]:
    """Alternate between ours and the peer, ``rounds`` deaths each; ours include the leader's. Medians and the range.

    If the peer never recovers, ours are compared with themselves; ``peer_lost`` counts its failures."""
    found: list[DeathCost] = []
    other: list[DeathCost] = []
    moments = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="ddl-bench-") as folder:
        for number in range(rounds):
            victim, wait_s = (size - 1 - number) % size, moments.uniform(0, 0.02)
            found.append(ours(size, victim, Path(folder, f"ours-{number}"), threads, wait_s))
            if peers:
                with contextlib.suppress(DdlError):  # seen once in four: the survivor hangs in Gloo
                    other.append(theirs(size, Path(folder, f"theirs-{number}"), threads))
    costs = [each.cost_s for each in found]
    names = dict.fromkeys(name for each in found for name in each.phases)
    more: dict[str, Any] = {
        "phases": {name: statistics.median(each.phases.get(name, 0.0) for each in found) for name in names},
        "range_s": [min(costs), max(costs)],
        "costs_s": [round(cost, 4) for cost in costs],
        "step_s": statistics.median(each.step_s for each in found),
        "cores": os.cpu_count(),
    }
    if peers:
        more["peer_lost"] = rounds - len(other)
    middle = statistics.median(costs)
    theirs_s = statistics.median([each.cost_s for each in other]) if other else middle
    yield Row("recovery", size, {"model": "digits"}, "auto", middle, "torchrun" if other else "itself", theirs_s, more)
