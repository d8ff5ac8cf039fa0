"""A rank of a real job dies at every kill point: of start, step, recovery, evaluation, checkpoint and end.

The job must still end with the result of an undisturbed run. PARTS lists the points that ranks pass in each part of a
job, and a test compares it with a trace. When a point is passed several times, the leader dies at its first pass and
another rank at its last. Several deaths share a job, since starting one takes longer than training.
DDL_SWEEP=full tries the first, a middle and the last pass on both, each in a separate job, on 4 ranks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from ddl.fault.inject import POINTS, parse

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
FULL = os.environ.get("DDL_SWEEP") == "full"
RANKS, LAST, EPOCH = 4, 30, 5  # steps of the job and of an epoch
# Several blocks of a sum, several batches of an evaluation, checkpoints that are deleted again.
JOB = (
    "--optim.sharded=on",
    *("--model.options.hidden=[512,256]", "--data.batch_eval=16"),
    *("--checkpoint.every_steps=3", "--checkpoint.keep=2", "--train.restore_best=on"),
)


# Records each point that a rank passes, and how many steps are committed by then.
TRACER = """
import os
from ddl.fault import inject
from ddl.train.__main__ import main

passing, rank = inject._Probe.__call__, os.environ["OMPI_COMM_WORLD_RANK"]
file = os.open(os.path.join(os.environ["TRACES"], rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def traced(self, point):
    os.write(file, f"{self.step()} {point}\\n".encode())
    passing(self, point)

inject._Probe.__call__ = traced
raise SystemExit(main())
"""


def passed(text: str) -> list[str]:
    """Points of a line such as ``step.load allreduce.block*3 job.gather+``; ``x+`` is short for ``x x.done``."""
    found: list[str] = []
    for word in text.split():
        name, _, times = word.partition("*")
        points = [name[:-1], f"{name[:-1]}.done"] if name.endswith("+") else [name]
        found += points * int(times or 1)
    return found


@dataclass(frozen=True)
class Part:
    """A part of a job. points: what a rank passes in it, in order. leads: what only the leader passes.

    step: how many are committed by then (None: whenever). words: settings of its jobs. before: the death that
    brings it about, in a job with one rank more."""

    points: list[str]
    step: int | None
    leads: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    before: str = ""

    def tried(self, leader: bool) -> list[tuple[str, int]]:
        """(point, the how-manieth time) of every death in it, in the order in which they come."""
        found: list[tuple[str, int]] = []
        for place, name in enumerate(self.points):
            nth, times = self.points[: place + 1].count(name), self.points.count(name)
            some = (1, (times + 1) // 2, times) if FULL else (1,) if leader else (times,)
            if nth in some and (leader or name not in self.leads):
                found.append((name, nth))
        return found


SUM = "step.load step.compute step.sum"
BARRIERS = "allreduce.barrier+ allreduce.block*3 allreduce.barrier+"
SHARED = BARRIERS.replace("*3 ", "*3 step.prepare ")
SHRUNK = "recover.fence recover.revoke recovery.revoke+ recover.shrink recovery.agree+ recovery.shrink+ recover.agree"
BOUND = "recover.reassign recovery.gather+*3 recovery.share+ recovery.gather+ recovery.agree+"
CHECKPOINT_FILE = "checkpoint.open+ checkpoint.write+ checkpoint.fsync+"
PARTS = {
    "set-up": Part(
        passed("job.gather+ job.barrier+ job.gather+ setup.claim setup.claim.done job.gather+*2 job.broadcast+*4")
        + passed("job.agree+ setup.announce"),
        None,
        leads=("setup.claim", "setup.claim.done", "setup.announce"),
    ),
    "start": Part(passed("job.gather+*3 job.share+ job.gather+"), 0),
    "step": Part(passed(f"{SUM} {SHARED} step.commit"), 3),
    "step, clipped": Part(  # which takes the norm of the whole, before any rank updates its share
        passed(f"{SUM} {SHARED.replace('step.prepare', 'allreduce.barrier+ step.prepare')} step.commit"),
        3,
        words=("--optim.clip_norm=1000",),
    ),
    "step, a replica a rank": Part(passed(f"{SUM} {BARRIERS} step.commit"), 3, words=("--optim.sharded=off",)),
    "step, ring": Part(
        passed(f"{SUM} allreduce.stream allreduce.stream.message*12 allreduce.stream.done allreduce.native+")
        + passed("allreduce.barrier+ step.commit"),
        3,
        words=("--comm.algorithm=ring",),
    ),
    "step, native": Part(
        passed(f"{SUM} allreduce.native+*2 allreduce.barrier+ step.commit"), 3, words=("--comm.algorithm=native",)
    ),
    "recovery": Part(
        passed(f"{SHRUNK} recovery.gather+ recover.level {BOUND}"),
        3,
        before="kill rank {} at step 3 point step.compute",
    ),
    "recovery, with a spare": Part(
        passed(f"{SHRUNK} recovery.gather+ recover.level recovery.gather+ recovery.broadcast+*4 {BOUND}"),
        3,
        words=("--fault.spares=1",),
        before="kill rank {} at step 3 point step.compute",
    ),
    "evaluation": Part(passed("job.gather+ evaluate.batch*3 job.gather+"), EPOCH),
    "end": Part(
        passed("job.gather+ evaluate.batch*3 job.gather+ end.checkpoint end.restore evaluate.batch*6 job.gather+")
        + passed("end.summary end.barrier job.gather+ end.agree job.agree+"),
        LAST,
        leads=("end.summary",),
    ),
    "checkpoint": Part(
        passed(f"checkpoint.mkdir+*2 {CHECKPOINT_FILE} {CHECKPOINT_FILE} checkpoint.fsync+ checkpoint.rename+")
        + passed("checkpoint.fsync+ checkpoint.delete+"),
        None,
    ),
    "checkpoint, saved again": Part(passed("checkpoint.link+"), None),
}
PLAIN = ["start", "step", "evaluation", "end"]
OTHERWISE = ["step, clipped", "step, a replica a rank", "step, ring", "step, native"]
ROOM = 4  # deaths that share a job
# Behind the agreement on the end: the summary is written.
TOO_LATE_TO_REPORT = {"job.agree.done"}


@dataclass(frozen=True)
class ScriptedKill:
    """One rank's, at the ``nth`` passing of a point."""

    point: str
    nth: int
    step: int | None
    rank: int = -1

    def __str__(self) -> str:
        at = "" if self.step is None else f" step {self.step}"
        return f"kill rank {self.rank} at{at} point {self.point}:{self.nth}"


@dataclass(frozen=True)
class Drill:
    """A job and all that befalls it."""

    ranks: int
    deaths: list[ScriptedKill]
    words: tuple[str, ...] = ()
    before: str = ""

    @property
    def script(self) -> list[str]:
        return [self.before] * bool(self.before) + [str(death) for death in self.deaths]

    @property
    def unrecorded(self) -> set[str]:
        """Deaths during set-up and of spares, which do not know yet where to record a fault."""
        return {str(death) for death in self.deaths if death.step is None and not death.point.startswith("checkpoint")}


def deaths(part: str, leader: bool) -> list[ScriptedKill]:
    """All that are tried in a part; what other parts have tried already is left out."""
    tried = PARTS[part].tried(leader)
    known = "step" if part in OTHERWISE else {"recovery, with a spare": "recovery"}.get(part)
    if known is not None:
        same = PARTS[known].tried(leader)
        tried = [at for at in tried if at not in same or at[0].startswith("allreduce.barrier")]
    return [ScriptedKill(point, nth, PARTS[part].step) for point, nth in tried]


def struck(some: list[ScriptedKill], victims: Sequence[int]) -> list[ScriptedKill]:
    return [replace(death, rank=rank) for death, rank in zip(some, victims, strict=False)]


def chunks(found: list[ScriptedKill], size: int) -> list[list[ScriptedKill]]:
    return [found[i : i + size] for i in range(0, len(found), size)]


def packed(leader: bool) -> list[list[ScriptedKill]]:
    """The deaths of the plain parts by job: one at the start, then steps and evaluations, the end last."""
    starts, ends = deaths("start", leader), deaths("end", leader)
    between = [(death, offset) for part, offset in (("step", 2), ("evaluation", 0)) for death in deaths(part, leader)]
    jobs = []
    while starts or between or ends:
        first, starts = starts[:1], starts[1:]
        last, ends = ends[:1], ends[1:]
        room = ROOM - len(first) - len(last)
        some, between = between[:room], between[room:]
        if not first and not some:
            last, ends = last + ends[-1:], ends[:-1]
        middle = [replace(death, step=EPOCH * place + offset) for place, (death, offset) in enumerate(some, 1)]
        jobs.append([*first, *middle, *last])
    return jobs


def drills() -> dict[str, Drill]:
    """name -> job; see the top of the file."""
    made: dict[str, Drill] = {}

    def add(
        name: str, some: list[ScriptedKill], victims: Sequence[int], ranks: int, part: str, before: str = ""
    ) -> None:
        alone = f"{some[0].point}:{some[0].nth}"
        number = sum(known.startswith(f"{name}-") for known in made)
        made[f"{name}-{alone if FULL else number}"] = Drill(ranks, struck(some, victims), PARTS[part].words, before)

    for role, leader in (("leader", True), ("other", False)):
        ranks = RANKS if FULL else ROOM + 1
        victims = range(ranks) if leader else range(ranks - 1 - FULL, 0, -1)
        if FULL:
            for part in PLAIN:
                for death in deaths(part, leader):
                    add(f"{part}-{role}", [death], victims, ranks, part)
        else:
            for some in packed(leader):
                add(f"plain-{role}", some, victims, ranks, "step")
        for some in chunks(deaths("set-up", leader), 1 if FULL else ROOM):
            add(f"set-up-{role}", some, victims, ranks, "set-up")  # the survivors repeat the set-up
        for part in OTHERWISE:
            # Fewer ranks send fewer messages: the last of them comes while all are there.
            found = sorted(deaths(part, leader), key=lambda death: -death.nth)
            for some in chunks(found, 1 if FULL else ROOM):
                some = [replace(death, step=EPOCH * place + 2) for place, death in enumerate(some)]
                add(f"{part}-{role}", some, victims, ranks, part)
        # The leader dies, and in the recovery its successor; or two others do.
        for part in ("recovery", "recovery, with a spare"):
            last, size = ranks, 1 if FULL else ROOM  # of one rank more: a spare, where there is one
            found = deaths(part, leader)
            if leader:
                first, victims = 0, range(1, ranks)
            elif PARTS[part].words:
                first, victims, size = 1, [last], 1  # without the spare no rank receives the state
                found = [replace(death, step=None) for death in found]  # the spare does not know it yet
            else:
                first, victims = last, [2, 1, 3, 4]
            for some in chunks(found, size):
                add(f"{part}-{role}", some, victims, ranks + 1, part, PARTS[part].before.format(first))
    for some in chunks(deaths("checkpoint", True), 1 if FULL else ROOM):
        # Only the leader writes checkpoints, so each victim is the leader at the time, and counts from its own first.
        add("checkpoint", some, range(RANKS), RANKS + 1, "checkpoint")
    for death in deaths("checkpoint, saved again", True):
        add("checkpoint, saved again", [death], [0], RANKS, "checkpoint")  # the last step, which is the best
    return made


DRILLS = drills()


@pytest.mark.parametrize("name", DRILLS)
def test_the_job_ends_like_an_undisturbed_one(name, jobs, undisturbed):
    drill, calm = DRILLS[name], undisturbed(*JOB)
    ended = jobs.run(*JOB, *drill.words, n=drill.ranks, chaos="; ".join(drill.script))
    assert ended.status == 0 and ended.summary["status"] == "finished", ended.said
    happened, script = recorded_faults(ended), {str(fault) for fault in parse("; ".join(drill.script)).faults}
    assert len(happened) == len(set(happened)) and script - drill.unrecorded <= set(happened) <= script, ended.said
    victims = {(int(line.split()[2]), "crash") for line in drill.script}
    unreported = {(death.rank, "crash") for death in drill.deaths if death.point in TOO_LATE_TO_REPORT}
    assert victims - unreported <= set(ended.lost) <= victims, ended.said
    assert ended.summary["steps"] == LAST and ended.is_exact()
    assert ended.summary["test"]["loss"] == pytest.approx(calm.summary["test"]["loss"], rel=1e-8)
    assert ended.summary["test"]["accuracy"] == calm.summary["test"]["accuracy"]
    assert ended.losses == pytest.approx(calm.losses, rel=1e-8)


def recorded_faults(ended) -> list[str]:
    """The injected faults that the job recorded when they happened."""
    path = ended.folder / "notes" / ended.summary["launch"] / "faults"
    return path.read_text().splitlines() if path.exists() else []


# PARTS agrees with a trace of a real job.


def trace(jobs, words: tuple[str, ...] = (), ranks: int = RANKS, chaos: str = "hang rank 0 at step 1000"):
    """rank -> [(committed steps, point)] of a job."""
    (jobs.folder / "tracer.py").write_text(TRACER)
    folder = jobs.folder / "traces"
    folder.mkdir()
    environ = {"TRACES": str(folder)}
    ended = jobs.run(*JOB, *words, n=ranks, chaos=chaos, program=("tracer.py",), environ=environ)
    assert ended.status == 0, ended.said
    lines = {int(path.name): path.read_text().splitlines() for path in folder.iterdir()}
    return {rank: [(int(step), point) for step, point in map(str.split, passed)] for rank, passed in lines.items()}


def of_rank(rank: int, part: str) -> list[str]:
    return [point for point in PARTS[part].points if rank == 0 or point not in PARTS[part].leads]


@pytest.mark.parametrize("part", ["step", *(OTHERWISE if FULL else [])])
def test_ranks_pass_exactly_the_points_in_parts(part, jobs):
    step = PARTS[part].points
    for rank, seen in trace(jobs, PARTS[part].words).items():
        of_thread = [point for _, point in seen if point.startswith("checkpoint.")]
        points = {number: [p for s, p in seen if s == number and p not in of_thread] for number in range(-1, LAST + 1)}
        assert points[-1] == of_rank(rank, "set-up")
        assert points[3] == step and points[0][-len(step) :] == step
        assert points[EPOCH] == PARTS["evaluation"].points + step
        assert points[LAST] == of_rank(rank, "end")
        if part == "step":
            assert points[0] == PARTS["start"].points + step
            of_leader = {
                point for name, part in PARTS.items() if name.startswith("checkpoint") for point in part.points
            }
            assert set(of_thread) == (of_leader if rank == 0 else set())


@pytest.mark.parametrize("part", ["recovery", "recovery, with a spare"])
def test_survivors_pass_exactly_the_points_in_parts(part, jobs):
    for first in (0, 3) if FULL else (0,):
        folder = jobs.folder / "traces"
        shutil.rmtree(folder, ignore_errors=True)
        survivors = trace(jobs, PARTS[part].words, RANKS + 1, PARTS[part].before.format(first))
        del survivors[first]
        for traced in survivors.values():
            points = [point for _, point in traced if not point.startswith("checkpoint.")]
            begin = points.index("recover.fence")
            assert points[begin : begin + len(PARTS[part].points)] == PARTS[part].points
            assert points[begin + len(PARTS[part].points)] == "step.load"


def test_no_point_of_a_job_on_one_node_is_left_out():
    """Not covered: calls made only by other algorithms, on several nodes, or by a user's own loop."""
    tried = {point for part in PARTS.values() for point in part.points}
    of_all_jobs = ("setup", "step", "evaluate", "checkpoint", "end", "recover")
    assert {point for point in POINTS if point.split(".")[0] in of_all_jobs} <= tried
