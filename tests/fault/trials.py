"""Random trials of whole jobs: ranks die, hang and crash at random, and the result must be that of a calm run.

    python -m tests.fault.trials --count 200 --seed 7
    python -m tests.fault.trials --count 50 --seed 7 --of module    # a module of PyTorch instead of ddl's network
    python -m tests.fault.trials --count 50 --seed 7 --of loop      # a script's own loop: torch_trials.py

Each trial trains the digits on 2 to 4 ranks under mpirun, a fault-tolerant mpirun, or ddl.launch, and strikes some
ranks or the job: while it starts, at a kill point, or from outside at any moment. A trial is bad if the job hangs, ends
although ranks were left that could finish, cannot be resumed after an early end, or differs from the calm run in its
samples, losses or parameters; or if it leaves processes or shared memory behind."""

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
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddl.audit import report
from ddl.checkpoint import Store
from ddl.checkpoint.store import no_check
from ddl.comm.mpi_group import NONE_IS_LEFT
from ddl.errors import CheckpointError
from ddl.launcher.mpirun import command_line, find_mpirun
from ddl.launcher.supervisor import last_step, read_json
from ddl.metrics import read_lines
from tests.fault import torch_trials
from tests.fault.patience import ends_within
from tests.fault.plans import CHECKPOINT, SIGNALS, STEPS, TO_THE_JOB, Blow, Plan, draw

ROOT = Path(__file__).parents[2]
JOB = (
    f"--train.steps {STEPS} --train.dtype float64 --train.compiled off --metrics.console_every_s 0 "
    f"--checkpoint.every_steps {CHECKPOINT} --fault.startup_timeout_s 10 --fault.hang_timeout_s 10"
).split()
PROGRAM = [sys.executable, "-m", "ddl.train"]
MODULE = ("--model.name", "tests.fault.scripts.networks:Network", "--model.loss", "cross_entropy")
# The environment's own parameter files may make mpirun tolerant; this overrules them.
INTOLERANT = ["--prtemca", "state_base_recoverable", "0", "--prtemca", "state_base_notify_errors", "0"]
GRACE_S, SHARE = 60.0, 4.0  # a job counts as hung so long after so many times the duration of a calm job
PATIENCE_S = 150.0  # taken for that duration while it is not known
SAME_LOSS = 1e-8  # relative, in float64: what is lost is computed again, only the order of sums differs


@dataclass
class Trial:
    """The result of one trial. problems: empty for success. struck: the blows that fell. missed: the blows that should
    have fallen, unless the supervisor started the job again."""

    plan: Plan
    seconds: float = 0.0
    status: int = 0
    lost: int = 0
    launches: int = 1
    struck: list[Blow] = field(default_factory=list)
    missed: list[Blow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = torch_trials.verdict_of(self.problems, len(self.struck))
        blows = "; ".join(f"{blow}{'' if blow in self.struck else ' (missed)'}" for blow in self.plan.blows)
        spares = f"+{self.plan.spares}" if self.plan.spares else "  "
        ranks = f"{self.plan.workers}{spares} ranks"
        return (
            f"{self.plan.launcher:21}  {ranks}  {self.lost} lost  {self.launches} launches  status {self.status:3}  "
            f"{self.seconds:5.1f} s  {verdict}  [{blows}]"
        )


class Job:
    """One run of a job, and the blows that it gets from outside."""

    def __init__(self, folder: Path, plan: Plan, calm_s: float):
        self.folder, self.plan, self.limit_s = folder, plan, GRACE_S + SHARE * calm_s
        self.mark = f"trial-{uuid.uuid4().hex[:10]}"  # in the environment of all its processes
        self.output = ""
        self.mapped: set[str] = set()  # files in shared memory that its ranks had mapped
        self.process: subprocess.Popen[bytes]
        self._is_over = threading.Event()

    def run(self) -> tuple[int, float]:
        """(exit status, or 124 for a hang; seconds)."""
        began = time.monotonic()
        striker = threading.Thread(target=self._strike)
        with tempfile.TemporaryFile() as output:
            self.process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self._environ()
            )
            striker.start()
            try:
                status = self.process.wait() if ends_within(self.process, self.limit_s) else 124
            finally:
                self._is_over.set()
                striker.join()
                seconds = time.monotonic() - began
                if self.process.poll() is None:
                    self.process.kill()
                self.process.wait()
            output.seek(0)
            self.output = output.read().decode(errors="replace")[-3000:]
            return status, seconds

    def left(self) -> list[str]:
        """Processes that the job left behind; they are killed. A companion needs a moment to see its rank's end."""
        deadline = time.monotonic() + 5
        while (pids := self._members()) and time.monotonic() < deadline:
            time.sleep(0.05)
        names = []
        for pid in pids:
            with contextlib.suppress(OSError):
                names.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()[:60]}")
                os.kill(pid, signal.SIGKILL)
        return names

    def _command(self) -> list[str]:
        words = [*JOB, *self.plan.words, "--run.dir", str(self.folder), "--fault.spares", str(self.plan.spares)]
        if script := "; ".join(str(blow) for blow in self.plan.blows if blow.is_scripted):
            words += ["--fault.chaos", script]
        if self.plan.launcher == "ddl.launch":
            return [sys.executable, "-m", "ddl.launch", "-n", str(self.plan.ranks), *words]
        words = command_line(find_mpirun(), [*PROGRAM, *words], self.plan.ranks, tolerant=False)
        flags = self.plan.launcher.split()[1:] or INTOLERANT
        return [words[0], *flags, *words[1:]]

    def _environ(self) -> dict[str, str]:
        strikes = [f"{b.rank} {b.act} {b.place}" for b in self.plan.blows if b.is_at_start]
        paths = [str(Path(__file__).parent / "struck"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        struck = {"TRIAL_STRIKES": "\n".join(strikes), "TRIAL_FOLDER": str(self.folder.parent), "TRIAL": self.mark}
        return {**os.environ, **struck, "PYTHONPATH": os.pathsep.join(paths)}

    def _strike(self) -> None:
        """Strike from outside when it is time, until the job is over."""
        pids: dict[int, int] = {}
        for blow in sorted((b for b in self.plan.blows if not b.place), key=lambda b: (b.step, b.after_ms)):
            self._until(blow.step)
            if blow.step and not pids:  # once, while all of them live, since that takes a while
                pids = self._ranks()
                self.mapped = self._mapped(pids)
            self._is_over.wait(blow.after_ms / 1e3)
            pid = self.process.pid if blow.rank < 0 else (pids or self._ranks()).get(blow.rank, 0)
            with contextlib.suppress(OSError):
                if pid and not self._is_over.is_set() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                    now = time.time()
                    os.kill(pid, {**SIGNALS, **TO_THE_JOB}[blow.act])
                    blow.hit_at = now

    @staticmethod
    def _mapped(pids: Mapping[int, int]) -> set[str]:
        mapped = set()
        for pid in pids.values():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
                mapped |= {line.split()[5] for line in lines if "/dev/shm/" in line}
        return mapped

    def _until(self, step: int) -> None:
        while step and last_step(self.folder) < step and not self._is_over.wait(0.002):
            pass

    def _members(self) -> list[int]:
        found, mark = [], f"TRIAL={self.mark}".encode()
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and mark in Path(entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def _ranks(self) -> dict[int, int]:
        """rank -> pid of its training process."""
        found = {}
        for pid in self._members():
            with contextlib.suppress(OSError):
                if b"ddl.train" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                        name, _, value = word.partition(b"=")
                        if name == b"OMPI_COMM_WORLD_RANK":
                            found[int(value)] = pid
        return found


def judge(place: Path, plan: Plan, calm: Path, calm_s: float) -> Trial:
    """Run one trial, resume it if it ended early, and compare the result with the calm run."""
    folder = place / "run"
    place.mkdir(parents=True)
    job, trial = Job(folder, plan, calm_s), Trial(plan)
    trial.status, trial.seconds = job.run()
    summary = read_json(folder / "summary.json")
    _judge_blows(trial, folder, summary)
    if trial.status == 124:
        trial.problems.append(f"hung; processes {job.left()}: {job.output}")
        return trial
    if left := job.left():
        trial.problems.append(f"processes are left: {left}")
    is_finished = summary.get("status") == "finished"
    must_finish = plan.must_finish and NONE_IS_LEFT not in job.output  # then it must be possible to resume it
    if (must_finish and not is_finished) or (plan.tells_status and is_finished is bool(trial.status)):
        trial.problems.append(f"status {trial.status}, summary {summary.get('status')!r}: {job.output}")
    elif not is_finished:
        again = Job(folder, Plan(plan.launcher, plan.ranks, plan.spares, words=plan.words), calm_s)
        if status := again.run()[0]:
            trial.problems.append(f"resumed after status {trial.status}: status {status}: {again.output}")
    trial.problems += _differences(folder, calm)
    if trial.problems:
        trial.problems.append(f"notes: {_notes(folder)}")
    left = {str(path) for path in Path("/dev/shm").glob(f"ddl*-{job.process.pid}")}
    if left := left | {path for path in job.mapped if os.path.exists(path)}:
        trial.problems.append(f"files {sorted(left)} are left in /dev/shm")
    return trial


def losses(events: Sequence[dict[str, Any]]) -> dict[int, float]:
    """step -> loss, as logged last."""
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}


def _differences(folder: Path, calm: Path) -> list[str]:
    """What differs between the run and the calm one, by their samples and losses."""
    try:
        summary, theirs = json.loads((folder / "summary.json").read_text()), read_json(calm / "summary.json")
        ours, right = losses(read_lines(folder / "metrics.jsonl")), losses(read_lines(calm / "metrics.jsonl"))
        audit = report(folder)
        arrays, calm_arrays = ({**Store(run / "checkpoints").load(None, no_check)[0]} for run in (folder, calm))
    except (OSError, ValueError, CheckpointError) as error:
        return [f"the run folder cannot be read: {error}"]
    problems = list(audit.problems)
    if audit.steps != STEPS or audit.used != audit.expected or audit.used != summary["samples"]["used"]:
        problems.append(f"{audit.steps} steps, {audit.used} of {audit.expected} samples")
    wrong = sorted(set(ours) ^ set(right))
    wrong += [step for step in ours if step in right and not abs(ours[step] - right[step]) <= SAME_LOSS * right[step]]
    if wrong:
        problems.append(f"other losses at steps {wrong[:8]}")
    loss, wanted = summary["test"].get("loss"), theirs["test"]["loss"]
    if loss is None or abs(loss - wanted) > SAME_LOSS * wanted:
        problems.append(f"test loss {loss!r}, undisturbed {wanted!r}")
    problems += other_values(arrays, calm_arrays)
    return problems


def other_values(arrays: Mapping[str, Any], calm: Mapping[str, Any]) -> list[str]:
    """The names of parameters, averages and slots that differ by more than rounding in float32."""
    if set(arrays) != set(calm):
        return [f"arrays {sorted(set(arrays) ^ set(calm))} are missing"]
    wrong = [name for name, x in calm.items() if not np.allclose(arrays[name], x, rtol=1e-6, atol=1e-7)]
    return [f"other values of {sorted(wrong)[:8]}"] if wrong else []


def _notes(folder: Path) -> list[str]:
    """How each rank of each launch ended, as its companion noted it."""
    notes = [read_json(path) for path in sorted(folder.glob("notes/*/rank-*.json"))]
    names = ("rank", "kind", "error", "step", "phase", "time")
    return [" ".join(str(note.get(name)) for name in names) for note in notes]


def _judge_blows(trial: Trial, folder: Path, summary: dict[str, Any]) -> None:
    """Record which blows fell, and check that only struck ranks were lost."""
    plan, happened = trial.plan, set()
    for path in (folder / "notes").glob("*/faults"):
        happened |= set(path.read_text().splitlines())
    starts = [blow for blow in plan.blows if blow.is_at_start]
    for blow in plan.blows:
        if blow in starts:
            fell = (folder.parent / f"struck-{starts.index(blow)}").exists()
        else:
            fell = str(blow) in happened if blow.place else bool(blow.hit_at)
        if fell:
            trial.struck.append(blow)
        elif blow.is_at_start:  # another blow may have ended the launch before
            trial.missed += [blow] * (len(plan.blows) == 1)
        elif plan.must_finish and blow.is_scripted and blow.moment != "recovery" and blow.rank < plan.workers:
            trial.missed.append(blow)
    lost = {failure["rank"] for failure in summary.get("failures", [])}
    trial.lost = len(lost)
    if plan.launcher == "ddl.launch" and summary:
        number = summary["launch"].rpartition("-")[2]  # the supervisor's own summary is of no launch
        trial.launches = 1 + int(number) if number.isdecimal() else trial.launches
    if trial.launches == 1 and trial.missed:
        trial.problems.append("did not happen: " + "; ".join(map(str, trial.missed)))
    if trial.launches == 1 and not lost <= {blow.rank for blow in trial.struck}:
        trial.problems.append(f"ranks {sorted(lost)} were lost, struck were {[str(blow) for blow in trial.struck]}")


def run(
    count: int, seed: int, only: Sequence[int] = (), keep: Path | None = None, words: tuple[str, ...] = ()
) -> list[Trial]:
    """``count`` trials, or some of them; each is printed as it ends. keep: where the folders of bad ones go. words:
    settings of the job."""
    rng = np.random.default_rng(seed)
    place = Path(tempfile.mkdtemp(prefix="ddl-trials-"))
    trials = []
    try:
        calm = Job(place / "calm", Plan("ddl.launch", 4, words=words), PATIENCE_S)
        status, calm_s = calm.run()
        if status:
            raise SystemExit(f"the undisturbed run failed: {calm.output}")
        for number in range(count):
            plan = draw(rng, words)
            if only and number not in only:
                continue
            trial = judge(place / str(number), plan, place / "calm", calm_s)
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
    blows = [blow for trial in trials for blow in trial.struck]
    bad, planned = sum(bool(trial.problems) for trial in trials), sum(len(trial.plan.blows) for trial in trials)
    spared = sum(not trial.struck for trial in trials)
    lines = [f"{len(trials)} trials: {bad} bad, {spared} without a blow; {len(blows)} of {planned} blows fell"]
    columns = {
        "launcher": [trial.plan.launcher for trial in trials],
        "launches": [str(trial.launches) for trial in trials],
        "act": [blow.act for blow in blows],
        "moment": [blow.moment for blow in blows],
    }
    for name, values in columns.items():
        counts = sorted(Counter(values).items())
        lines.append(f"by {name}: " + ", ".join(f"{value} {number}" for value, number in counts))
    return "\n".join(lines)


def main() -> int:
    words = argparse.ArgumentParser(description="Random trials of whole jobs under failure.")
    words.add_argument("--count", type=int, default=12)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--only", type=int, nargs="*", default=(), help="numbers of the trials to run")
    words.add_argument("--keep", type=Path, help="a folder for the run folders of bad trials")
    words.add_argument("--of", choices=["job", "module", "loop"], default="job", help="what is trained")
    options = words.parse_args()
    if options.of == "loop":
        return torch_trials.main(options.count, options.seed, options.only)
    settings = MODULE if options.of == "module" else ()
    trials = run(options.count, options.seed, options.only, options.keep, settings)
    print(summed_up(trials))
    return 1 if any(trial.problems for trial in trials) else 0


if __name__ == "__main__":
    raise SystemExit(main())
