"""Random trials of whole jobs: ranks die, hang and crash at random, and the result must be that of a calm run.

    python tests/fault/trials.py 200 --seed 1

Each trial trains the digits on 2 to 6 ranks under ddl.launch with a scripted fault on all ranks but one at
most, and is judged by its exit status, its ledger, its loss and by what it left behind. The script of a trial is
printed, so that it can be run again."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl.audit import report
from ddl.fault.inject import Fault, Script, parse
from ddl.mpirun import members

STEPS = 60
SETTINGS = (
    f"--train.steps {STEPS} --train.dtype float64 --metrics.console_every_s 0 --checkpoint.every_steps 10".split()
)
POINTS = (
    *("step.load", "step.compute", "step.sum", "step.commit"),
    *("allreduce.barrier", "allreduce.barrier.done", "allreduce.block"),
)
LIMIT_S = 180
SAME_LOSS = 1e-8  # relative, in float64: what is lost is computed again, only the order of sums differs


@dataclass(frozen=True)
class Trial:
    """What happened. problems: empty when all is well."""

    ranks: int
    script: str
    seconds: float
    failures: int
    launches: int
    problems: list[str]


def draw(rng: np.random.Generator) -> tuple[int, Script]:
    """2 to 6 ranks and a fault on 1 to all but one of them."""
    ranks = int(rng.integers(2, 7))
    victims = rng.permutation(ranks)[: int(rng.integers(1, ranks))]
    faults = [
        Fault(
            str(rng.choice(["kill", "segv", "stop"])), int(rank), int(rng.integers(1, STEPS)), str(rng.choice(POINTS))
        )
        for rank in victims
    ]
    return ranks, Script(tuple(faults))


def train(folder: Path, ranks: int, chaos: str = "") -> tuple[int, float, str]:
    """(exit status, seconds, last lines) of a job under the supervisor."""
    words = [sys.executable, "-m", "ddl.launch", "-n", str(ranks), "--run.dir", str(folder), *SETTINGS]
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*words, "--fault.chaos", chaos], capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return 124, time.monotonic() - began, f"not over after {LIMIT_S} s"
    return done.returncode, time.monotonic() - began, (done.stdout + done.stderr)[-2000:]


def judge(folder: Path, ranks: int, script: Script, calm: dict) -> Trial:
    """Run one trial and compare it with the calm run's summary."""
    files = set(os.listdir("/dev/shm"))
    status, seconds, told = train(folder, ranks, str(script))
    problems = []
    if status:
        problems.append(f"status {status}: {told}")
    try:
        summary = json.loads((folder / "summary.json").read_text())
        audit = report(folder)
    except (OSError, ValueError) as error:
        return Trial(ranks, str(script), seconds, 0, 0, [*problems, f"no summary: {error}"])
    problems += audit.problems
    if audit.steps != STEPS or audit.used != audit.expected:
        problems.append(f"{audit.steps} steps, {audit.used} of {audit.expected} samples")
    ours, theirs = summary["test"]["loss"], calm["test"]["loss"]
    if abs(ours - theirs) > SAME_LOSS * abs(theirs):
        problems.append(f"loss {ours!r}, undisturbed {theirs!r}")
    job = summary["launch"].rpartition("-")[0]
    if left := [pid for attempt in range(audit.launches + 1) for pid in members(f"{job}-{attempt}")]:
        problems.append(f"processes {left} are left")
    if left := [name for name in set(os.listdir("/dev/shm")) - files if name.startswith("ddl")]:
        problems.append(f"files {left} are left in /dev/shm")
    return Trial(ranks, str(script), seconds, len(summary["failures"]), audit.launches, problems)


def run(count: int, seed: int) -> list[Trial]:
    """``count`` trials; each is printed as it ends."""
    rng = np.random.default_rng(seed)
    place = Path(tempfile.mkdtemp(prefix="ddl-trials-"))
    try:
        status, _, told = train(place / "calm", 2)
        if status:
            raise SystemExit(f"the undisturbed run ended with status {status}: {told}")
        calm = json.loads((place / "calm" / "summary.json").read_text())
        trials = []
        for number in range(count):
            ranks, script = draw(rng)
            assert parse(str(script), ranks) == script
            trial = judge(place / str(number), ranks, script, calm)
            trials.append(trial)
            verdict = "ok" if not trial.problems else "BAD " + "; ".join(trial.problems)
            print(
                f"{number:4}  {ranks} ranks  {trial.failures} lost  {trial.launches} launches  "
                f"{trial.seconds:5.1f} s  {verdict}  [{trial.script}]",
                flush=True,
            )
            shutil.rmtree(place / str(number), ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return trials


def main() -> int:
    words = argparse.ArgumentParser(description="Random trials of whole jobs under failure.")
    words.add_argument("count", type=int, nargs="?", default=12)
    words.add_argument("--seed", type=int, default=0)
    options = words.parse_args()
    trials = run(options.count, options.seed)
    bad = sum(bool(trial.problems) for trial in trials)
    again = sum(trial.launches > 1 for trial in trials)
    print(f"{len(trials)} trials: {bad} bad, {again} started again by the supervisor, the rest recovered in place")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
