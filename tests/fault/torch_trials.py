"""Random trials of a script's own loop around ddl.torch.State: scripts/torch_own_loop.py under a fault-tolerant mpirun.

A trial is bad if the script hangs, if it leaves processes behind, if a rank that was not struck does not come to the
end, with the parameters, slots and counts of samples that an undisturbed run has, or if a blow did not fall that no
other can have prevented. A rank that is lost before MPI has started ends the launch, and the script is then started
again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddl.launcher.mpirun import find_mpirun
from tests.fault.patience import ends_within

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "scripts" / "torch_own_loop.py"
STEPS, EVALUATED = 30, (10, 20, 30)
GRACE_S, SHARE = 60.0, 3.0  # a trial is hung so long after so many times the duration of an undisturbed run
PATIENCE_S = 600.0  # with the undisturbed run itself
ACTS = ("kill", "stop", "exit", "segv", "abort")
STARTS = ("start -", "import numpy", "import torch", "import mpi4py.MPI")
RECOVERY = (
    *("recover.fence", "recover.revoke", "recover.shrink", "recover.agree", "recover.level", "recover.reassign"),
    *("recovery.shrink.done", "recovery.gather", "recovery.agree.done"),
)
IN_SHARED_MEMORY = ("job.barrier", "job.block")  # places that two ranks, which sum by MPI, do not pass
POINTS = {  # moment -> its places, and how often a rank passes them in a step at least
    "step": {"loop.step": 1, "loop.backward": 4, "loop.averaged": 1, "loop.update": 1},
    "communication": {"job.native": 4, "job.native.done": 4, "job.barrier": 1, "job.barrier.done": 1, "job.block": 1},
    "evaluation": {"loop.evaluate": 1},
    "checkpoint": {"loop.save": 1, "loop.saved": 1},
    "recovery": dict.fromkeys(RECOVERY, 1),
    "end": {"end.agree": 1, "loop.end": 1, "loop.left": 1},
}


@dataclass
class Blow:
    """One fault, as scripts/torch_own_loop.py reads it. number: of its line; count: milliseconds where place is
    "after"."""

    act: str
    rank: int
    moment: str
    step: int
    place: str
    count: float

    def __str__(self) -> str:
        return f"{self.act} {self.rank} {self.step} {self.place} {self.count:g}"


@dataclass
class Trial:
    """ranks and blows of one trial, and how it went. problems: empty for success."""

    ranks: int
    blows: list[Blow]
    seconds: float = 0.0
    struck: list[Blow] = field(default_factory=list)
    survivors: int = 0
    launches: int = 1
    problems: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[Blow]:
        """Blows that should have fallen: others may have ended the launch or its recovery, or moved the rank on to the
        next step."""
        if any(blow.moment in ("start-up", "any", "recovery") for blow in self.struck):
            return []
        steps = {blow.step + more for blow in self.struck for more in (-1, 0, 1)}
        left = [blow for blow in self.blows if blow not in self.struck and blow.moment not in ("any", "recovery")]
        if self.ranks - len(self.struck) <= 2:  # the survivors sum by MPI
            left = [blow for blow in left if not blow.place.startswith(IN_SHARED_MEMORY)]
        return [blow for blow in left if blow.step not in steps]

    def __str__(self) -> str:
        verdict = verdict_of(self.problems, len(self.struck))
        blows = "; ".join(f"{blow}{'' if blow in self.struck else ' (missed)'}" for blow in self.blows)
        return (
            f"{self.ranks} ranks  {self.survivors} came to the end  {self.launches} launches  "
            f"{self.seconds:5.1f} s  {verdict}  [{blows}]"
        )


def verdict_of(problems: Sequence[str], struck: int) -> str:
    """struck: how many blows fell. A trial without any proves nothing."""
    return "BAD " + "; ".join(problems) if problems else "ok" if struck else "NO BLOW FELL"


def draw(rng: np.random.Generator) -> Trial:
    """2 to 4 ranks, and a blow for some of them, but not for all."""
    ranks = int(rng.integers(2, 5))
    victims = list(map(int, rng.permutation(ranks)))[: int(rng.integers(1, ranks))]
    return Trial(ranks, [_blow(rng, rank, ranks, number == 0) for number, rank in enumerate(victims)])


def _blow(rng: np.random.Generator, rank: int, ranks: int, is_first: bool) -> Blow:
    act = str(rng.choice(ACTS))
    moment = str(rng.choice(["start-up", "any", *POINTS], p=[0.1, 0.15, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05]))
    if moment == "start-up":
        # Before it joins the others a script may do anything: they wait 10 minutes for a stopped one.
        return Blow("kill" if act == "stop" else act, rank, moment, 0, str(rng.choice(STARTS)), 0)
    if moment == "any":
        return Blow(act, rank, moment, int(rng.integers(STEPS)), "after", float(rng.uniform(0, 60)))
    if moment == "recovery" and is_first:
        moment = "communication"  # a rank has to die before there is a recovery
    if moment == "checkpoint" and rank != 0:
        moment = "evaluation"  # the leader writes
    place = str(rng.choice(list(POINTS[moment])))
    if ranks == 2 and place.startswith(IN_SHARED_MEMORY):
        place = "job.native"
    step = int(rng.choice(EVALUATED)) if moment in ("evaluation", "checkpoint") else int(rng.integers(1, STEPS))
    step = STEPS if moment == "end" else -1 if moment == "recovery" else step
    return Blow(act, rank, moment, step, place, int(rng.integers(1, POINTS[moment][place] + 1)))


class Launch:
    """One run of the script. mark: in the environment of all its processes."""

    def __init__(self, folder: Path, trial: Trial, limit_s: float = PATIENCE_S):
        self.folder, self.trial, self.limit_s = folder, trial, limit_s
        self.mark, self.output = f"trial-{uuid.uuid4().hex[:10]}", ""

    def run(self) -> bool:
        """Whether it ended in time."""
        self.folder.mkdir(parents=True)
        flags = ["--with-ft", "ulfm", "--map-by", ":oversubscribe", "--bind-to", "none"]
        command = [find_mpirun(), *flags, "-n", str(self.trial.ranks), sys.executable, str(SCRIPT), str(self.folder)]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self._environ()
            )
            is_over = ends_within(process, self.limit_s)
            if not is_over:
                process.kill()
                process.wait()
            output.seek(0)
            self.output = output.read().decode(errors="replace")[-3000:]
        return is_over

    def _environ(self) -> dict[str, str]:
        starts = [f"{b.rank} {b.act} {b.place}" if b.moment == "start-up" else "- - - -" for b in self.trial.blows]
        lines = [str(b) if b.moment != "start-up" else "- -1 0 - 0" for b in self.trial.blows]
        paths = [str(Path(__file__).parent / "struck"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        struck = {"TRIAL_STRIKES": "\n".join(starts), "TRIAL_FOLDER": str(self.folder), "TRIAL": self.mark}
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        more = {"TRIAL_BLOWS": "\n".join(lines), "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **root, **struck, **more}

    def left(self) -> list[str]:
        """Processes that it left behind after a few seconds; they are killed."""
        deadline, mark = time.monotonic() + 5, f"TRIAL={self.mark}".encode()
        while (pids := _with(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return list(map(str, pids))


def _with(mark: bytes) -> list[int]:
    """Processes with ``mark`` in their environment."""
    found = []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and mark in Path(entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def results(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """rank -> what it held at the end."""
    return {
        int(path.stem[4:]): dict(np.load(path))
        for path in sorted(folder.glob("rank*.npz"))
        if not path.stem.endswith(".aside")
    }


def judge(trial: Trial, folder: Path, calm: Mapping[str, np.ndarray], calm_s: float) -> Trial:
    launch, began = Launch(folder, trial, GRACE_S + SHARE * calm_s), time.monotonic()
    is_over = launch.run()
    trial.seconds = time.monotonic() - began
    trial.struck = [blow for number, blow in enumerate(trial.blows) if (folder / f"struck-{number}").exists()]
    if left := launch.left():
        trial.problems.append(f"processes are left: {left}")
    if not is_over:
        trial.problems.append(f"hung: not over after {trial.seconds:.0f} s; undisturbed {calm_s:.0f} s")
    found = results(folder)
    trial.survivors = len(found)
    unharmed = set(range(trial.ranks)) - {blow.rank for blow in trial.struck}
    if any(blow.moment == "start-up" for blow in trial.struck):
        trial.launches = 2
        again = Launch(folder.with_suffix(".again"), Trial(trial.ranks, []), launch.limit_s)
        if not again.run():
            trial.problems.append(f"hung when started again: {again.output}")
        found, unharmed = results(again.folder), set(range(trial.ranks))
    if trial.missed:
        trial.problems.append("did not happen: " + "; ".join(map(str, trial.missed)))
    if missing := sorted(unharmed - set(found)):
        trial.problems.append(f"ranks {missing} did not come to the end")
    for rank, arrays in found.items():
        trial.problems += [f"rank {rank}: {problem}" for problem in differences(arrays, calm)]
    if trial.problems:
        trial.problems.append(launch.output)
    return trial


def differences(arrays: Mapping[str, Any], calm: Mapping[str, Any]) -> list[str]:
    """What differs from an undisturbed run by more than rounding in float32."""
    if set(arrays) != set(calm):
        return [f"arrays {sorted(set(arrays) ^ set(calm))} are missing"]
    problems = [] if (arrays["used"] == 3).all() else ["not every sample was used once per epoch"]
    wrong = [name for name, x in calm.items() if not np.allclose(arrays[name], x, rtol=1e-6, atol=1e-7)]
    return problems + ([f"other values of {wrong[:8]}"] if wrong else [])


def main(count: int, seed: int, only: Sequence[int] = ()) -> int:
    """Run ``count`` trials; the exit status is 1 if one was bad."""
    rng, place, trials = np.random.default_rng(seed), Path(tempfile.mkdtemp(prefix="ddl-trials-")), []
    try:
        began, first = time.monotonic(), Launch(place / "calm", Trial(2, []))
        is_over, found = first.run(), results(first.folder)
        if not is_over or not found:
            state = "ended" if is_over else "did not end"
            raise SystemExit(f"the undisturbed run {state} with results of ranks {sorted(found)}: {first.output}")
        calm_s = time.monotonic() - began
        for number in range(count):
            trial = draw(rng)
            if only and number not in only:
                continue
            trials.append(judge(trial, place / str(number), found[0], calm_s))
            print(f"{number:4}  {trial}", flush=True)
            for folder in place.glob(f"{number}*"):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    bad, blows = sum(bool(trial.problems) for trial in trials), [blow for trial in trials for blow in trial.struck]
    planned = sum(len(trial.blows) for trial in trials)
    spared = sum(not trial.struck for trial in trials)
    print(f"{len(trials)} trials: {bad} bad, {spared} without a blow; {len(blows)} of {planned} blows fell")
    for name in ("act", "moment"):
        counts = sorted(Counter(getattr(blow, name) for blow in blows).items())
        print(f"by {name}: " + ", ".join(f"{value} {number}" for value, number in counts))
    return int(bool(bad))
