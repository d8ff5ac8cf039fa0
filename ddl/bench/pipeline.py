"""The idle share of a pipeline's stages, against (k - 1) / (m + k - 1): that of k stages that take equally long.

Two stages compute; more stages than this machine has cores sleep a fixed time instead, so that they do not disturb each
other. A step is Loop.advance."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddl.arrays import Array, Device, Layout, Views, generator
from ddl.bench.measure import Row
from ddl.bench.step import time_steps
from ddl.comm import Group
from ddl.comm.topology import cores
from ddl.data import Arrays, Order
from ddl.models import build
from ddl.nn import Dense, Sequential
from ddl.nn.context import Context
from ddl.nn.initial import zeros
from ddl.nn.layer import Backward, Layer, Shape, Spec
from ddl.optim import SGD, Groups
from ddl.pipeline import pipeline_of
from ddl.pipeline.schedule import idle_share
from ddl.train.loop import Loop
from ddl.train.services import Services
from ddl.train.staged import StagedWork, first_state
from ddl.train.staged_step import StagedStep
from ddl.train.task import Task

MICROS = (1, 2, 4, 8)
ROWS, WIDTH, CLASSES = 64, 1024, 10  # of a micro-batch that is computed
FORWARD_S, BACKWARD_S = 0.040, 0.080  # of a stage that sleeps


@dataclass(frozen=True)
class Sleep:
    """Passes its input on after a fixed time. Its one parameter changes nothing."""

    def spec(self, shape: Shape) -> Spec:
        return Spec(shape, {"weight": ((1,), zeros)})

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        time.sleep(FORWARD_S)
        return x + params["weight"], None

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        time.sleep(BACKWARD_S)
        grads["weight"][...] = 0
        yield ("weight",)
        return dy


def make_loop(group: Group, micros: int, computes: bool, beat: Callable[[int, str], None]) -> Loop:
    """A job of as many stages as ranks, attached and ready to advance."""
    batch = micros * (ROWS if computes else 2)
    random, inputs = generator(0, "bench"), WIDTH if computes else CLASSES
    data = Arrays(random.random((4 * batch, inputs), np.float32), random.integers(0, CLASSES, 4 * batch))
    layers: list[Layer] = [Sleep() for _ in range(group.size)]
    if computes:
        layers = [*(Dense(WIDTH, "relu") for _ in range(2 * group.size)), Dense(CLASSES)]
    model = build(Sequential(*layers), data.fields, "cross_entropy", ())
    first = {"x": data.arrays["x"][:2], "y": data.arrays["y"][:2]}
    task = Task(
        model=model,
        train=data,
        validation=None,
        test=None,
        order=Order(len(data), 1, batch, 0),
        optimizer=Groups(Layout.of({name: shape for name, (shape, _) in model.params.items()}), SGD(lr=1e-3)),
        lr=lambda step: 1e-3,
        total_steps=1 << 40,
        parts=micros,
        pipeline=pipeline_of(model, "float32", first, group.size),
    )
    services = Services()
    services.beat = beat  # type: ignore[method-assign, assignment]
    loop = Loop(task, group, Device(), first_state(task, Device()), services)
    problem = loop.work.distribute(group, loop.work.whole_state(group.is_leader))
    problem = problem or loop.work.attach(group, loop.work.plan)
    assert problem is None, problem
    return loop


def rows(
    group: Group,
    seconds: float,
    beat: Callable[[int, str], None],
    settings: dict[str, Any],
    micros: Sequence[int] = MICROS,
) -> Iterator[Row]:
    """A row for each number of micro-batches. The peer is the schedule: as long as the stages were busy, with the idle
    share that it must have."""
    computes = group.size <= cores()
    for count in micros:
        loop = make_loop(group, count, computes, beat)
        work = loop.work
        assert isinstance(work, StagedWork) and isinstance(work.step, StagedStep) and work.step.flow is not None
        flow = work.step.flow
        time_steps(loop.advance, 3)
        group.barrier()
        (once,) = time_steps(loop.advance, 1)
        steps = max(5, round(seconds / max(group.gather_objects(once))))
        busy, times, idle = list[float](), list[float](), list[float]()
        for _ in range(steps):
            flow.busy_s = 0.0
            group.barrier()
            (took,) = time_steps(loop.advance, 1)
            found = group.gather_objects((took, flow.busy_s))
            times.append(max(one for one, _ in found))
            busy.append(statistics.fmean(one for _, one in found))
            idle.append(1 - busy[-1] / times[-1])
        ideal = idle_share(group.size, count)
        middle = statistics.median(idle)
        more = {"idle": round(middle, 4), "ideal_idle": round(ideal, 4), "steps": steps, **settings}
        subject = {"model": "dense" if computes else "sleeping", "mode": f"m={count}"}
        peer_s = statistics.median(busy) / (1 - ideal)
        yield Row("pipeline", group.size, subject, "1F1B", statistics.median(times), "schedule", peer_s, more)
        loop.close()
