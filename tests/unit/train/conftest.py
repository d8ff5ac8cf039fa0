"""Whole jobs on ranks as threads, from the set-up to the end, each in its own run folder."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from ddl.arrays import Device, Layout
from ddl.config import Job, override
from ddl.data import Arrays, Order
from ddl.fault.recover import survive
from ddl.models import MLP
from ddl.models import build as build_model
from ddl.optim import Adam, Groups
from ddl.pipeline import pipeline_of
from ddl.run.folder import RunFolder
from ddl.run.log import RunLog
from ddl.run.services import JobServices
from ddl.run.setup import announce, set_up
from ddl.train.loop import Loop
from ddl.train.signals import StepRequest
from ddl.train.staged import first_state
from ddl.train.task import Task


def make_task(network=None, stages=1, **changes) -> Task:
    random = np.random.default_rng(3)
    x = random.normal(size=(50, 5))
    source = Arrays(x, (x[:, 0] > 0).astype(np.int64))
    model = build_model(network or MLP([5, 8, 2]), source.fields, "cross_entropy", None)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, "float64")
    defaults = {
        "model": model,
        "train": source,
        "validation": source,
        "test": source,
        "order": Order(50, 6, 16, 1),
        "optimizer": Groups(layout, Adam()),
        "lr": lambda step: 0.01,
        "total_steps": 9,
        "dtype": "float64",
        "prefetch": 0,
    }
    if stages > 1:
        defaults["pipeline"] = pipeline_of(model, "float64", {"x": x[:4]}, stages)
    return Task(**{**defaults, **changes})


@functools.cache
def job_of(settings: str) -> Job:
    """The job of these settings (JSON), read once and not for every rank of every run of a sweep."""
    return override(Job(), json.loads(settings))


def train_whole(group, settings=None, recovery=None, stop=False, all_ranks=False, keep_best=False, **changes):
    """One rank's job: (loop, failure). settings: of a job, by name; stop: a request to end; changes: of its task."""
    task = make_task(**changes)
    state = first_state(task, Device())
    job = job_of(json.dumps(settings or {}))
    log = RunLog(task)
    folder = RunFolder(job, log, log.warn)
    loop = Loop(
        task,
        group,
        Device(),
        state,
        JobServices(log, folder, lambda: announce(loop, log, job, "threads")),
        request=StepRequest(
            stop, checkpoint_every_steps=2, all_ranks=all_ranks, keep_best=keep_best or task.restore_best
        ),
        recovery=recovery,
    )
    before = group.members
    group, problem = survive(group, lambda group: set_up(group, loop, folder, job.checkpoint.resume, log.warn))
    if problem is not None:
        return loop, problem
    left = [member.identity for member in group.members]
    log.lost_at_start([member for member in before if member.identity not in left], state.progress.step)
    loop.start(group)
    try:
        if group.is_leader:
            log.lead()
            group.probe("setup.announce")
            announce(loop, log, job, "threads")
        return loop, loop.train()
    finally:
        loop.close()
        log.close()


@pytest.fixture
def whole_job(tmp_path, monkeypatch):
    """``train_whole``, in a folder where its runs are the first."""
    monkeypatch.chdir(tmp_path)
    return train_whole


@pytest.fixture
def small_task():
    """``make_task``."""
    return make_task
