"""Modules of PyTorch trained by ddl on ranks as threads, and by a plain loop of PyTorch to compare with."""

from __future__ import annotations

import copy
import threading
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


def train_one(
    group, make, x, y, *, steps=20, batch=12, shards=1, optimizer=None, dtype="float64", seed=0, source=None, **task
):
    """One rank: trains make(), a Model or module, or one with arguments of its Task; returns (its model, the loop)."""
    source, made = source() if source else Arrays(x, y), make()
    made, own = made if isinstance(made, tuple) else (made, {})
    model = build(made, source.fields)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, dtype)
    optimizer = optimizer or ddl.optim.SGD(lr=0.1)
    settings = {
        "model": model,
        "train": source,
        "validation": None,
        "test": source,
        "order": Order(len(source), shards, batch, seed),
        "optimizer": Groups(layout, optimizer, freeze=model.frozen),
        "lr": lambda step: optimizer.lr,
        "total_steps": steps,
        "dtype": dtype,
        "prefetch": 0,
    }
    built = Task(**{**settings, **own, **task})
    log = RunLog(built)
    state = TrainingState(model, built.optimizer.slots, dtype, seed, Device(), built.optimizer.own)
    loop = Loop(built, group, Device(), state, Services(log), request=StepRequest())
    if group.is_leader:
        log.lead()
    try:
        failure = loop.train()
    finally:
        loop.close()
        log.close()
    if failure is not None:
        raise failure
    loop.keep_state()
    return model, loop


@pytest.fixture
def trained():
    """``trained(ranks, make, x, y, ...)``: (model, loop) of each surviving rank."""

    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def train(ranks, make, x, y, threads=None, **options):
        threads_of_torch = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            results = run_ranks(ranks, partial(train_one, make=make, x=x, y=y, **options), **(threads or {}))
        finally:
            torch.set_num_threads(threads_of_torch)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Killed):
                raise result
        return [result for result in results if not isinstance(result, Killed)]

    return train


@pytest.fixture
def points():
    """48 samples (x, y) of 5 numbers in 3 classes."""
    random = np.random.default_rng(5)
    x = random.normal(size=(48, 5))
    return x, x[:, :3].argmax(axis=1)


@pytest.fixture
def fresh():
    """``fresh(kind)``: a module of that class in float64, with the same initial values each time."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    made, lock = {}, threading.Lock()

    def copied(kind):
        with lock:  # ranks as threads share PyTorch's generator
            if kind not in made:
                torch.manual_seed(11)
                made[kind] = kind().double()
            return copy.deepcopy(made[kind])

    return copied
