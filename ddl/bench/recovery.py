"""The cost of a death: how long training stands still when a rank is killed, against torchrun's restart of all ranks.

From the last step before the kill to the first one after it, as each program's own record tells."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddl.bench.job import environment
from ddl.bench.measure import Row
from ddl.errors import DdlError
from ddl.metrics import read_lines
from ddl.mpirun import command_line, find_mpirun

KILLED_AT, STEPS = 60, 120
LIMIT_S = 120.0


def standstill(lines: Sequence[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """Seconds between the steps on both sides of the recovery that metrics.jsonl tells of, and its phases."""
    place = next(number for number, line in enumerate(lines) if line["event"] == "recovery")
    before = [line["time"] for line in lines[:place] if line["event"] == "step"]
    after = [line["time"] for line in lines[place:] if line["event"] == "step"]
    return after[0] - before[-1], lines[place].get("phases", {})


def ours(ranks: int, folder: Path, threads: int) -> tuple[float, dict[str, float]]:
    """One job on the digits whose last rank is killed."""
    chaos = f"kill rank {ranks - 1} at step {KILLED_AT}"
    settings = {
        "run.dir": str(folder),
        "model.name": "mlp",
        "train.steps": str(STEPS),
        "fault.chaos": chaos,
        "metrics.console_every_s": "0",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    environ = environment(ranks, threads, "on")
    program = [sys.executable, "-m", "ddl.train", *words]
    command = command_line(find_mpirun(), program, ranks, environ=environ)
    _finish(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        return standstill(read_lines(folder / "metrics.jsonl"))
    except (OSError, StopIteration, IndexError) as error:
        raise DdlError("the job did not survive the death of a rank: python -m ddl.doctor says why") from error


def theirs(ranks: int, folder: Path, threads: int) -> float:
    """One job under torchrun --max-restarts, with a checkpoint after every step, whose last rank is killed."""
    folder.mkdir(parents=True)
    program = ["-m", "ddl.bench.restarted", str(folder), str(STEPS), str(KILLED_AT)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["--max-restarts", "3", *program]
    environ = {**environment(ranks, threads, "on"), "PYTHONWARNINGS": "ignore"}
    _finish(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    times = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    first = next((number for number, line in enumerate(times) if line["restarts"] > 0), 0)
    if not first:
        raise DdlError("torchrun did not restart the ranks")
    return float(times[first]["time"] - times[first - 1]["time"])


def _finish(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        process.kill()
        process.wait()


def rows(ranks: int, peers: Sequence[str], rounds: int, threads: int) -> Iterator[Row]:
    """Ours and the peer in turns, ``rounds`` times each; medians."""
    found: list[float] = []
    phases: list[dict[str, float]] = []
    other: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ddl-bench-") as folder:
        for number in range(rounds):
            seconds, of = ours(ranks, Path(folder, f"ours-{number}"), threads)
            found.append(seconds)
            phases.append(of)
            if peers:
                other.append(theirs(ranks, Path(folder, f"theirs-{number}"), threads))
    middle = statistics.median(found)
    more = {"phases": {name: statistics.median(of.get(name, 0.0) for of in phases) for name in phases[0]}}
    peer = "torchrun" if peers else "itself"
    more["cores"] = os.cpu_count()  # type: ignore[assignment]
    yield Row("recovery", ranks, {"model": "digits"}, "auto", middle, peer, statistics.median(other or found), more)
