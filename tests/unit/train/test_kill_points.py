"""Every kill point of the list is one that a run passes, and a run passes none that is not in the list."""

import numpy as np
import pytest

from ddl.arrays import Device, Layout
from ddl.comm.threads import Death, Killed, run_ranks
from ddl.config import Job
from ddl.data import Arrays, Order
from ddl.fault.inject import POINTS
from ddl.fault.recover import survive
from ddl.models import MLP
from ddl.models import build as build_model
from ddl.nn import BatchNorm, Dense, Sequential
from ddl.optim import Adam, Groups
from ddl.train.folder import RunFolder
from ddl.train.journal import Journal
from ddl.train.loop import Loop
from ddl.train.setup import set_up
from ddl.train.state import State
from ddl.train.task import Task
from ddl.train.wishes import Wishes

# Threads start no processes; tests/fault/test_refill.py passes these.
OVER_MPI_ALONE = {"recover.refill", "recovery.refill", "recovery.refill.done"}


def task(network=None, **changes):
    random = np.random.default_rng(3)
    x = random.normal(size=(50, 5))
    source = Arrays(x, (x[:, 0] > 0).astype(np.int64))
    model = build_model(network or MLP([5, 8, 2]), source.fields, "cross_entropy", None)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
    order = Order(50, 6, 16, 1)
    return Task(
        model,
        source,
        source,
        source,
        order,
        Groups(layout, Adam()),
        lambda step: 0.01,
        9,
        "float64",
        prefetch=0,
        **changes,
    )


def job_on(folder, make=task):
    """A whole job of one rank, from its set-up to its end."""

    def work(group):
        made = make()
        state = State(made.model, made.optimizer.slots, made.dtype, made.seed, Device())
        job = Job().override(**{"run.dir": str(folder), "checkpoint.keep": 1})
        journal = Journal(made)
        held = RunFolder(job, journal, print)
        loop = Loop(
            made,
            group,
            Device(),
            state,
            journal,
            wishes=Wishes(checkpoint_every_steps=2),
            claim=held.hold,
            open_writer=lambda: held.open_writer(loop.group),
        )
        group, problem = survive(group, lambda group: set_up(group, loop, held, "auto", print))
        assert problem is None
        loop.start(group)
        if group.is_leader:
            journal.lead()
            group.probe("setup.announce")
        try:
            assert loop.run() is None
        finally:
            loop.close()
            journal.close()

    return work


def sync():
    return task(Sequential(Dense(8), BatchNorm(sync=True), Dense(2)))


RUNS = {
    "one node": {"size": 3},
    "two nodes": {"size": 4, "nodes": [0, 0, 1, 1]},
    "private memory": {"size": 3, "can_share": False},
    "a death, and a spare": {"size": 3, "spares": 1, "death": Death(1, 1, "step.compute")},
    "a spare that is not needed": {"size": 2, "spares": 1},
    "a straggler": {"size": 3, "death": Death(1, 9, "allreduce.barrier")},
    "a death in the set-up": {"size": 3, "death": Death(0, 1, "setup.claim.done")},
    "synchronised": {"size": 2, "make": sync},
    "ring": {"size": 3, "make": lambda: task(algorithm="ring")},
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Points that ranks of the runs pass; a group of threads adds the messages that its collectives are made of."""
    found = set[str]()
    for name, options in RUNS.items():
        function = job_on(tmp_path_factory.mktemp("job") / "run", options.get("make", task))
        options = {key: value for key, value in options.items() if key != "make"}
        results = run_ranks(function=function, probe=lambda rank: found.add, **options)
        assert [result for result in results if not isinstance(result, Killed)].count(None) >= 1, (name, results)
        assert all(result is None or isinstance(result, Killed) for result in results), (name, results)
    return {point for point in found if not point.endswith(".message") or point == "allreduce.stream.message"}


def test_every_point_of_the_list_is_passed(seen):
    assert set(POINTS) - seen == OVER_MPI_ALONE


def test_every_point_that_is_passed_is_in_the_list(seen):
    assert seen <= set(POINTS)
