"""Random trials of whole jobs: ranks die, hang and crash at random, and the result must be that of a calm run.

    python tests/fault/trials.py 200 --seed 1

Each trial trains the digits on 2 to 6 ranks under ddl.launch and strikes all ranks but one at most: at a kill
point of its script, which can be run again, or from outside at any moment. It is judged by its exit status, its
ledger, its losses, by what it left behind, and by whether what should strike it did."""

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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddl.audit import report
from ddl.fault.inject import Fault, Script, parse
from ddl.launcher.mpirun import members
from ddl.launcher.supervisor import last_step
from ddl.metrics import read_lines

STEPS, EPOCH, CHECKPOINT = 60, 20, 10  # all of them, those of an epoch, those between checkpoints
SETTINGS = (
    f"--train.steps {STEPS} --train.dtype float64 --train.compiled off --metrics.console_every_s 0 "
    f"--checkpoint.every_steps {CHECKPOINT}"
).split()
# moment -> kill points of a script that lie in it
POINTS = {
    "step": (
        *("step.load", "step.compute", "step.sum", "step.commit"),
        *("allreduce.barrier", "allreduce.barrier.done", "allreduce.block"),
    ),
    "recovery": (
        *("recover.fence", "recover.revoke", "recover.shrink", "recovery.shrink.done", "recover.agree"),
        *("recovery.gather", "recover.level", "recover.reassign", "recovery.share.done", "recovery.agree.done"),
    ),
    "evaluation": ("evaluate.batch", "job.gather", "job.gather.done"),
    "checkpoint": tuple(
        f"checkpoint.{call}{done}" for call in ("mkdir", "open", "write", "fsync", "rename") for done in ("", ".done")
    ),
    "end": ("evaluate.batch", "end.checkpoint", "end.barrier", "job.agree"),
}
# moment -> how long after a step was told a strike from outside may come, in ms
LATEST_MS = {"step": 40.0, "evaluation": 8.0, "checkpoint": 8.0, "end": 60.0}
SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}
LIMIT_S, END_S = 180, 30
SAME_LOSS = 1e-8  # relative, in float64: what is lost is computed again, only the order of sums differs


@dataclass
class Strike:
    """A signal from outside, some time after a step was told. hit_at: when it met a live process; 0: it did not."""

    rank: int
    act: str
    moment: str
    step: int
    after_ms: float
    hit_at: float = 0.0

    def __str__(self) -> str:
        missed = "" if self.hit_at else " (missed)"
        return f"{self.act} rank {self.rank} from outside {self.after_ms:.1f} ms after step {self.step}{missed}"


@dataclass
class Plan:
    """What a trial is to suffer. moments: fault -> in which part of the job its script puts it."""

    ranks: int
    faults: dict[Fault, str] = field(default_factory=dict)
    strikes: list[Strike] = field(default_factory=list)

    @property
    def script(self) -> Script:
        return Script(tuple(self.faults))


@dataclass
class Trial:
    """What happened. problems: empty when all is well. struck: (act, moment, "script" or "outside") of each blow."""

    plan: Plan
    seconds: float
    failures: int = 0
    launches: int = 0
    struck: list[tuple[str, str, str]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = "ok" if not self.problems else "BAD " + "; ".join(self.problems)
        missed = f"  missed: {', '.join(self.missed)}" if self.missed else ""
        blows = "; ".join(map(str, (*self.plan.faults, *self.plan.strikes)))
        return (
            f"{self.plan.ranks} ranks  {len(self.struck)} struck  {self.failures} lost  {self.launches} launches  "
            f"{self.seconds:5.1f} s  {verdict}  [{blows}]{missed}"
        )


def draw(rng: np.random.Generator) -> Plan:
    """2 to 6 ranks and a blow for 1 to all but one of them, about half of them from outside."""
    plan = Plan(int(rng.integers(2, 7)))
    for number, rank in enumerate(map(int, rng.permutation(plan.ranks)[: int(rng.integers(1, plan.ranks))])):
        act = str(rng.choice(list(SIGNALS)))
        if rng.random() < 0.5:
            moment = str(rng.choice(list(LATEST_MS), p=[0.4, 0.2, 0.2, 0.2]))
            step = {
                "step": int(rng.integers(1, STEPS)),
                "evaluation": EPOCH * int(rng.integers(1, STEPS // EPOCH)),
                "checkpoint": CHECKPOINT * int(rng.integers(1, STEPS // CHECKPOINT)),
                "end": STEPS,
            }[moment]
            plan.strikes.append(Strike(rank, act, moment, step, float(rng.uniform(0, LATEST_MS[moment]))))
            continue
        moment = str(rng.choice(list(POINTS), p=[0.3, 0.3, 0.15, 0.15, 0.1]))
        if moment == "recovery" and number == 0:
            moment = "step"  # somebody has to die before there is a recovery
        if moment == "checkpoint" and rank != 0:
            moment = "evaluation"  # the leader writes
        step = {"step": int(rng.integers(1, STEPS)), "evaluation": EPOCH * int(rng.integers(1, 3)), "end": STEPS}
        count = int(rng.integers(1, 4)) if moment == "checkpoint" else 1
        plan.faults[Fault(act, rank, step.get(moment), str(rng.choice(POINTS[moment])), count)] = moment
    plan.strikes.sort(key=lambda strike: (strike.step, strike.after_ms))
    return plan


class Job:
    """A job under the supervisor, and those who strike it from outside."""

    def __init__(self, folder: Path, ranks: int, script: str = "", strikes: Sequence[Strike] = ()):
        self.folder, self.ranks, self.script, self.strikes = folder, ranks, script, strikes
        self.mapped: set[str] = set()  # files in shared memory that its ranks had mapped
        self._is_over = threading.Event()

    def run(self) -> tuple[int, float, str]:
        """(exit status, seconds, last lines)."""
        striker = threading.Thread(target=self._strike)
        striker.start()
        began = time.monotonic()
        words = [sys.executable, "-m", "ddl.launch", "-n", str(self.ranks), "--run.dir", str(self.folder), *SETTINGS]
        words += ["--fault.chaos", self.script]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                status = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.terminate()  # it ends all that it has started
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
                process.kill()
                process.wait()
                status = 124
            finally:
                self._is_over.set()
                striker.join()
            output.seek(0)
            return status, time.monotonic() - began, output.read().decode(errors="replace")[-2000:]

    def _strike(self) -> None:
        """Strike when it is time, until the job is over."""
        self._until(1)
        pids = self._pids()  # while all of them live, and once, since that takes a while
        for pid in pids.values():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
                self.mapped |= {line.split()[5] for line in lines if "/dev/shm/" in line}
        for strike in self.strikes:
            self._until(strike.step)
            time.sleep(strike.after_ms / 1e3)
            pid = pids.get(strike.rank, 0)
            with contextlib.suppress(OSError):
                if pid and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                    now = time.time()
                    os.kill(pid, SIGNALS[strike.act])
                    strike.hit_at = now

    def _until(self, step: int) -> None:
        while last_step(self.folder) < step and not self._is_over.wait(0.002):
            pass

    def _pids(self) -> dict[int, int]:
        """rank -> process of those that train in this folder."""
        found = {}
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError):
                if not entry.name.isdecimal() or str(self.folder).encode() not in Path(entry, "cmdline").read_bytes():
                    continue
                for word in Path(entry, "environ").read_bytes().split(b"\0"):
                    name, _, value = word.partition(b"=")
                    if name == b"OMPI_COMM_WORLD_RANK":
                        found[int(value)] = int(entry.name)
        return found


def losses(events: Sequence[dict[str, Any]]) -> dict[int, float]:
    """step -> loss, as told last."""
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}


def judge(folder: Path, plan: Plan, calm: Path) -> Trial:
    """Run one trial and compare it with the calm run."""
    files = set(os.listdir("/dev/shm"))
    job = Job(folder, plan.ranks, str(plan.script), plan.strikes)
    status, seconds, told = job.run()
    trial = Trial(plan, seconds)
    if status:
        trial.problems.append(f"status {status}: {told}")
    try:
        summary = json.loads((folder / "summary.json").read_text())
        events, theirs = read_lines(folder / "metrics.jsonl"), read_lines(calm / "metrics.jsonl")
        audit = report(folder)
    except (OSError, ValueError) as error:
        trial.problems.append(f"no summary: {error}")
        return trial
    trial.failures, trial.launches = len(summary["failures"]), audit.launches
    trial.problems += audit.problems
    if audit.steps != STEPS or audit.used != audit.expected or audit.used != summary["samples"]["used"]:
        trial.problems.append(f"{audit.steps} steps, {audit.used} of {audit.expected} samples")
    trial.problems += _differences(losses(events), losses(theirs))
    ours, right = summary["test"].get("loss"), json.loads((calm / "summary.json").read_text())["test"]["loss"]
    if ours is None or abs(ours - right) > SAME_LOSS * abs(right):
        trial.problems.append(f"loss {ours!r}, undisturbed {right!r}")
    name = summary["launch"].rpartition("-")[0]
    _judge_blows(trial, folder / "notes" / f"{name}-0" / "faults", events, summary)
    if left := [pid for attempt in range(audit.launches + 1) for pid in members(f"{name}-{attempt}")]:
        trial.problems.append(f"processes {left} are left")
    left = {name for name in set(os.listdir("/dev/shm")) - files if name.startswith("ddl")}
    if left := left | {path for path in job.mapped if os.path.exists(path)}:
        trial.problems.append(f"files {sorted(left)} are left in /dev/shm")
    return trial


def _differences(ours: dict[int, float], theirs: dict[int, float]) -> list[str]:
    """Steps whose loss is another than in the calm run, or that only one of them has."""
    wrong = sorted(set(ours) ^ set(theirs))
    wrong += [s for s in ours if s in theirs and not abs(ours[s] - theirs[s]) <= SAME_LOSS * abs(theirs[s])]
    return [f"other losses at steps {wrong[:8]}"] if wrong else []


def _judge_blows(trial: Trial, happened: Path, events: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Whether every blow that could fall fell, and nobody was lost but those that were struck."""
    plan = trial.plan
    fallen = set(happened.read_text().splitlines()) if happened.exists() else set()
    seen = {rank for event in events if event["event"] == "recovery" for rank in event["ranks"]}
    over = max((event["time"] for event in events if event["event"] == "end"), default=0.0)
    must, may = set(), set()  # be lost
    for fault, moment in plan.faults.items():
        if str(fault) in fallen:
            trial.struck.append((fault.act, moment, "script"))
            must.add(fault.rank)
        elif trial.launches > 1:  # a job that is started again is not struck again
            trial.missed.append(f"{fault} (started again)")
        elif moment == "recovery" and fault.rank not in seen:
            trial.missed.append(f"{fault} (no recovery)")
        else:
            trial.problems.append(f"{fault} did not happen")
    for strike in plan.strikes:
        if strike.hit_at:
            trial.struck.append((strike.act, strike.moment, "outside"))
            (must if strike.hit_at < over else may).add(strike.rank)  # later nobody misses it
        else:
            trial.missed.append(str(strike))
    lost = {failure["rank"] for failure in summary["failures"]}
    if trial.launches == 1 and not must <= lost <= must | may:
        trial.problems.append(f"ranks {sorted(lost)} were lost, struck were {sorted(must)} and late {sorted(may)}")


def run(count: int, seed: int, only: Sequence[int] = (), keep: Path | None = None) -> list[Trial]:
    """``count`` trials, or some of them; each is printed as it ends. keep: where the folders of bad ones go."""
    rng = np.random.default_rng(seed)
    place = Path(tempfile.mkdtemp(prefix="ddl-trials-"))
    try:
        status, _, told = Job(place / "calm", 2).run()
        if status:
            raise SystemExit(f"the undisturbed run ended with status {status}: {told}")
        trials = []
        for number in range(count):
            plan = draw(rng)
            assert parse(str(plan.script), plan.ranks) == plan.script
            if only and number not in only:
                continue
            trial = judge(place / str(number), plan, place / "calm")
            trials.append(trial)
            print(f"{number:4}  {trial}", flush=True)
            if trial.problems and keep is not None:
                shutil.copytree(place / str(number), keep / f"{seed}-{number}", dirs_exist_ok=True)
            shutil.rmtree(place / str(number), ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return trials


def summed_up(trials: Sequence[Trial]) -> str:
    """The last lines of the table."""
    bad = sum(bool(trial.problems) for trial in trials)
    again = sum(trial.launches > 1 for trial in trials)
    blows = [blow for trial in trials for blow in trial.struck]
    told = [
        f"{len(trials)} trials: {bad} bad, {again} started again by the supervisor, the rest recovered in place",
        f"{len(blows)} blows fell, {sum(len(trial.missed) for trial in trials)} missed their moment",
    ]
    for place, what in enumerate(("act", "moment", "from")):
        counted = Counter(blow[place] for blow in blows)
        told.append(f"by {what}: " + ", ".join(f"{name} {number}" for name, number in sorted(counted.items())))
    return "\n".join(told)


def main() -> int:
    words = argparse.ArgumentParser(description="Random trials of whole jobs under failure.")
    words.add_argument("count", type=int, nargs="?", default=12)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--only", type=int, nargs="*", default=(), help="numbers of the trials to run")
    words.add_argument("--keep", type=Path, help="a folder for the run folders of bad trials")
    options = words.parse_args()
    trials = run(options.count, options.seed, options.only, options.keep)
    print(summed_up(trials))
    return 1 if any(trial.problems for trial in trials) else 0


if __name__ == "__main__":
    raise SystemExit(main())
