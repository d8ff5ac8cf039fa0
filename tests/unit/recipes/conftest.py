"""Train a few steps on ranks as threads, with parts that a test brings from outside the package."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import ddl
from ddl.arrays import Device, Layout
from ddl.comm.deaths import Killed
from ddl.comm.threads import run_ranks
from ddl.data import Arrays, Order
from ddl.models import build
from ddl.optim import Groups
from ddl.run.log import RunLog
from ddl.train.loop import Loop
from ddl.train.services import Services
from ddl.train.signals import StepRequest
from ddl.train.state import TrainingState
from ddl.train.task import Task

SHARDS, BATCH, STEPS = 6, 15, 12


def _two_classes() -> Arrays:
    random = np.random.default_rng(3)
    x = random.normal(size=(60, 4))
    return Arrays(x, (x[:, 0] > x[:, 1]).astype(np.int64))


def _train(group, model=None, source=None, loss=None, optimizer=None, sinks=(), algorithm="auto"):
    """One rank: the loop after its last step."""
    source = _two_classes() if source is None else source() if callable(source) else source
    built = build(model or ddl.models.MLP([4, 8, 2]), source.fields, loss, None)
    layout = Layout.of({name: shape for name, (shape, _) in built.params.items()}, "float64")
    optimizer = optimizer or ddl.optim.Momentum(lr=0.1)
    task = Task(
        model=built,
        train=source,
        validation=None,
        test=source,
        order=Order(len(source), SHARDS, BATCH, 1),
        optimizer=Groups(layout, optimizer),
        lr=lambda step: optimizer.lr,
        total_steps=STEPS,
        dtype="float64",
        prefetch=0,
        algorithm=algorithm,
    )
    log = RunLog(task, lambda: sinks)
    state = TrainingState(task.model, task.optimizer.slots, task.dtype, task.seed, Device())
    loop = Loop(task, group, Device(), state, Services(log), request=StepRequest())
    if group.is_leader:
        log.lead()
    try:
        failure = loop.train()
    finally:
        loop.close()
        log.close()
    if failure is not None:
        raise failure
    return loop


@pytest.fixture
def trained():
    """``trained(ranks, options of run_ranks, **parts)``: (parameters, test results) of every rank that survived."""

    def train(ranks, threads=None, **parts):
        outcomes = []
        for result in run_ranks(ranks, partial(_train, **parts), **(threads or {})):
            if isinstance(result, Killed):
                continue
            if isinstance(result, BaseException):
                raise result
            assert result.state.progress.step == STEPS
            outcomes.append((result.state.params.flat.copy(), result.state.progress.results["test"]))
        return outcomes

    return train
