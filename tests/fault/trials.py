"""Random trials of whole jobs: ranks die, hang and crash at random, and the result must be that of a calm run.

    python tests/fault/trials.py 200 --seed 1

Each trial trains the digits on 2 to 6 ranks under ddl.launch and strikes all ranks but one at most: at a kill
point of its script, which can be run again, or from outside at any moment. It is judged by its exit status, its
ledger, its loss and by what it left behind."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl.audit import report
from ddl.fault.inject import Fault, Script, parse
from ddl.mpirun import members
from ddl.supervisor import last_step

STEPS = 60
SETTINGS = (
    f"--train.steps {STEPS} --train.dtype float64 --metrics.console_every_s 0 --checkpoint.every_steps 10".split()
)
POINTS = (
    *(
        "recover.revoke",
        "recover.shrink",
        "recovery.gather",
        "recover.level",
        "recover.reassign",
        "recovery.share.done",
    ),
    *("step.load", "step.compute", "step.sum", "step.commit"),
    *("allreduce.barrier", "allreduce.barrier.done", "allreduce.block"),
)
SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}
LIMIT_S = 180
SAME_LOSS = 1e-8  # relative, in float64: what is lost is computed again, only the order of sums differs


@dataclass(frozen=True)
class Strike:
    """A signal from outside, some time after a step was told."""

    rank: int
    act: str
    step: int
    after_ms: float

    def __str__(self) -> str:
        return f"{self.act} rank {self.rank} from outside {self.after_ms:.1f} ms after step {self.step}"


@dataclass(frozen=True)
class Trial:
    """What happened. problems: empty when all is well."""

    ranks: int
    script: str
    seconds: float
    failures: int
    launches: int
    problems: list[str]


def draw(rng: np.random.Generator) -> tuple[int, Script, list[Strike]]:
    """2 to 6 ranks and a fault on 1 to all but one of them, half of them from outside."""
    ranks = int(rng.integers(2, 7))
    victims = rng.permutation(ranks)[: int(rng.integers(1, ranks))]
    faults, strikes = [], []
    for rank in map(int, victims):
        act, step, point = str(rng.choice(list(SIGNALS))), int(rng.integers(1, STEPS)), str(rng.choice(POINTS))
        after_ms = float(rng.uniform(0, 40))
        if rng.random() < 0.5:
            strikes.append(Strike(rank, act, step, after_ms))
        else:  # a recovery comes when others die, at whatever step
            faults.append(Fault(act, rank, None if point.startswith("recover") else step, point))
    return ranks, Script(tuple(faults)), sorted(strikes, key=lambda strike: strike.step)


def pid_of(folder: Path, rank: int) -> int | None:
    """The process of a rank of the job that trains in ``folder``."""
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if not entry.name.isdecimal() or str(folder).encode() not in Path(entry.path, "cmdline").read_bytes():
                continue
            if f"OMPI_COMM_WORLD_RANK={rank}".encode() in Path(entry.path, "environ").read_bytes().split(b"\0"):
                return int(entry.name)
    return None


def strike_all(folder: Path, ranks: int, strikes: list[Strike], is_over: threading.Event) -> None:
    """Strike when it is time, until the job is over."""
    pids = {}
    for strike in strikes:
        while not is_over.wait(0.002) and last_step(folder) < strike.step:
            pass
        if not pids:  # looked up while all of them live, since that takes a while
            pids = {rank: pid_of(folder, rank) for rank in range(ranks)}
        time.sleep(strike.after_ms / 1e3)
        pid = pids.get(strike.rank)
        if pid is not None and not is_over.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGNALS[strike.act])


def train(folder: Path, ranks: int, chaos: str = "", strikes: Sequence[Strike] = ()) -> tuple[int, float, str]:
    """(exit status, seconds, last lines) of a job under the supervisor."""
    is_over = threading.Event()
    striker = threading.Thread(target=strike_all, args=(folder, ranks, list(strikes), is_over))
    striker.start()
    try:
        return _train(folder, ranks, chaos)
    finally:
        is_over.set()
        striker.join()


def _train(folder: Path, ranks: int, chaos: str) -> tuple[int, float, str]:
    words = [sys.executable, "-m", "ddl.launch", "-n", str(ranks), "--run.dir", str(folder), *SETTINGS]
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*words, "--fault.chaos", chaos], capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return 124, time.monotonic() - began, f"not over after {LIMIT_S} s"
    return done.returncode, time.monotonic() - began, (done.stdout + done.stderr)[-2000:]


def judge(folder: Path, ranks: int, script: Script, strikes: list[Strike], calm: dict) -> Trial:
    """Run one trial and compare it with the calm run's summary."""
    files = set(os.listdir("/dev/shm"))
    status, seconds, told = train(folder, ranks, str(script), strikes)
    words = "; ".join(map(str, (*script.faults, *strikes)))
    problems = []
    if status:
        problems.append(f"status {status}: {told}")
    try:
        summary = json.loads((folder / "summary.json").read_text())
        audit = report(folder)
    except (OSError, ValueError) as error:
        return Trial(ranks, words, seconds, 0, 0, [*problems, f"no summary: {error}"])
    problems += audit.problems
    if audit.steps != STEPS or audit.used != audit.expected:
        problems.append(f"{audit.steps} steps, {audit.used} of {audit.expected} samples")
    ours, theirs = summary["test"].get("loss"), calm["test"]["loss"]
    if ours is None or abs(ours - theirs) > SAME_LOSS * abs(theirs):
        problems.append(f"loss {ours!r}, undisturbed {theirs!r}")
    job = summary["launch"].rpartition("-")[0]
    if left := [pid for attempt in range(audit.launches + 1) for pid in members(f"{job}-{attempt}")]:
        problems.append(f"processes {left} are left")
    if left := [name for name in set(os.listdir("/dev/shm")) - files if name.startswith("ddl")]:
        problems.append(f"files {left} are left in /dev/shm")
    return Trial(ranks, words, seconds, len(summary["failures"]), audit.launches, problems)


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
            ranks, script, strikes = draw(rng)
            assert parse(str(script), ranks) == script
            trial = judge(place / str(number), ranks, script, strikes, calm)
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
