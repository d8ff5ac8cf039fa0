"""What a trial of tests/fault/trials.py is to suffer: a launcher, ranks, and blows, drawn at random from a seed."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

import numpy as np

STEPS, EPOCH, CHECKPOINT = 40, 20, 10  # all of them, those of an epoch, those between checkpoints
LAUNCHERS = ("mpirun", "mpirun --with-ft ulfm", "ddl.launch")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "segv": signal.SIGSEGV, "abort": signal.SIGABRT}
TO_THE_JOB = {"USR1": signal.SIGUSR1, "TERM": signal.SIGTERM}
ACTS = ("kill", "stop", "exit", "quit", "segv", "abort")
STARTS = ("start -", "import numpy", "import ddl.run.runner", "open digits.npz", "import mpi4py.MPI")
POINTS = {  # moment -> the kill points that lie in it
    "step": ("step.load", "step.compute", "step.commit"),
    "communication": ("step.sum", "allreduce.barrier", "allreduce.barrier.done", "allreduce.block"),
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
MAIN_THREAD = ("step.load", "step.compute", "step.commit", "evaluate.batch")  # where the user's code may call sys.exit
# moment -> how long after a step was logged a strike from outside may come, in ms
LATEST_MS = {"step": 40.0, "evaluation": 8.0, "checkpoint": 8.0, "end": 60.0, "start-up": 2000.0}
OUTSIDE = {  # moment -> the steps after which it comes
    "step": range(1, STEPS),
    "evaluation": range(EPOCH, STEPS, EPOCH),
    "checkpoint": range(CHECKPOINT, STEPS, CHECKPOINT),
    "end": range(STEPS, STEPS + 1),
    "start-up": range(1),
}


@dataclass
class Blow:
    """One fault. place: "EVENT TEXT" at start-up, the words after "at" of a script, or "" for one from outside, which
    comes ``after_ms`` after ``step`` was logged, or after the launch. rank -1: the launcher. hit_at: when one from
    outside met a process."""

    act: str
    rank: int
    moment: str
    place: str = ""
    step: int = 0
    after_ms: float = 0.0
    hit_at: float = 0.0

    def __str__(self) -> str:
        whom = "job" if self.rank < 0 else f"rank {self.rank}"
        if self.place:
            return f"{self.act} {whom} at {self.place}"
        return f"{self.act} {whom} from outside {self.after_ms:.1f} ms after step {self.step}"

    @property
    def is_scripted(self) -> bool:
        """Whether fault.chaos performs it."""
        return self.place.startswith(("point ", "step "))

    @property
    def is_at_start(self) -> bool:
        """Whether struck/sitecustomize.py performs it."""
        return bool(self.place) and not self.is_scripted


@dataclass
class Plan:
    """What a trial is to suffer. spares: of the ranks, so many wait to take over. words: settings of its job."""

    launcher: str
    ranks: int
    spares: int = 0
    blows: list[Blow] = field(default_factory=list)
    words: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        return self.ranks - self.spares

    @property
    def must_finish(self) -> bool:
        """Whether the job finishes at the first attempt, because ranks or the supervisor are left that can do it."""
        if any(blow.rank < 0 for blow in self.blows) or self.launcher == "mpirun":
            return False
        return self.tells_status

    @property
    def tells_status(self) -> bool:
        """Whether the exit status says how the job ended. That of mpirun itself proves little: it is 0 when
        signals ended all ranks, and 1 after SIGTERM."""
        is_mpiruns = any(blow.moment == "start-up" or blow.act == "TERM" for blow in self.blows)
        return self.launcher == "ddl.launch" or (self.launcher != "mpirun" and not is_mpiruns)


def draw(rng: np.random.Generator, words: tuple[str, ...] = ()) -> Plan:
    """A launcher, 2 to 4 ranks, and a blow for some of them, but not for one of the workers; or for the job."""
    launcher = str(rng.choice(LAUNCHERS, p=[0.2, 0.35, 0.45]))
    ranks = int(rng.integers(2, 5))
    spares = int(ranks > 2 and launcher != "mpirun" and rng.random() < 0.3)
    plan = Plan(launcher, ranks, spares, words=words)
    unharmed = int(rng.integers(plan.workers))
    victims = [rank for rank in map(int, rng.permutation(ranks)) if rank != unharmed]
    most = 1 if launcher == "mpirun" else len(victims)  # there the first ends all
    for number, rank in enumerate(victims[: int(rng.integers(1, most + 1))]):
        plan.blows.append(_blow(rng, rank, is_first=number == 0, is_spare=rank >= plan.workers))
    if rng.random() < 0.2:
        moment = str(rng.choice(list(LATEST_MS), p=[0.25, 0.1, 0.1, 0.25, 0.3]))
        plan.blows[rng.integers(len(plan.blows))] = _from_outside(rng, str(rng.choice(list(TO_THE_JOB))), -1, moment)
    return plan


def _blow(rng: np.random.Generator, rank: int, is_first: bool, is_spare: bool) -> Blow:
    act = str(rng.choice(ACTS))
    moment = str(rng.choice(["start-up", *POINTS], p=[0.2, 0.15, 0.2, 0.15, 0.1, 0.1, 0.1]))
    if moment == "start-up" and (act not in SIGNALS or rng.random() < 0.7):
        return Blow(act, rank, moment, str(rng.choice(STARTS)))
    is_from_outside = is_spare or moment == "start-up" or rng.random() < 0.3  # a spare passes few points
    if act in SIGNALS and is_from_outside:
        return _from_outside(rng, act, rank, moment if moment in LATEST_MS else "step")
    if moment == "recovery" and is_first:
        moment = "step"  # a rank has to die before there is a recovery
    if moment == "checkpoint" and rank != 0:
        moment = "evaluation"  # the leader writes
    point = str(rng.choice(MAIN_THREAD if act == "quit" else POINTS[moment]))
    if act == "quit":
        moment = "evaluation" if point == "evaluate.batch" else "step"
    count = int(rng.integers(1, 4)) if moment == "checkpoint" else 1
    steps = {**OUTSIDE, "communication": OUTSIDE["step"]}.get(moment)
    step = "" if steps is None or moment == "checkpoint" else f"step {rng.choice(steps)} "
    return Blow(act, rank, moment, f"{step}point {point}:{count}")


def _from_outside(rng: np.random.Generator, act: str, rank: int, moment: str) -> Blow:
    return Blow(act, rank, moment, "", int(rng.choice(OUTSIDE[moment])), float(rng.uniform(0, LATEST_MS[moment])))
