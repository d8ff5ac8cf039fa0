"""How fast ``ddl.load`` answers: one sample at a time, and all of them against evaluation, by the CNN on the digits.

The network is not trained: its answers take as long as those of a trained one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from ddl.arrays import Device
from ddl.comm import threads
from ddl.config import Job, override
from ddl.data import as_dtype, digits
from ddl.run.loaded import TrainedModel
from ddl.run.trained import Trained
from ddl.train.build import build_data, knowledge_of, model_of
from ddl.train.evaluate import evaluate
from ddl.train.state import State

SETTINGS = {"model.name": "cnn", "data.normalize": "none"}


def _median_s(call: Callable[[], object], seconds: float) -> float:
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main(seconds: float) -> int:
    """Print three medians and return the exit status."""
    job = override(Job(), SETTINGS)
    splits = build_data(job)
    knowledge = knowledge_of(job, splits)
    model = model_of(job, splits.train.fields, knowledge["options"], splits.target)
    state = State(model, (), job.train.dtype, job.run.seed, Device())
    trained = Trained(Path("digits"), job, model, state, {"knowledge": knowledge}, "initial parameters")
    loaded, source, group = TrainedModel(trained), as_dtype(digits(), job.train.dtype), threads.alone()
    x = digits().arrays["x"].astype(job.train.dtype)
    rows = job.data.batch_eval
    one = _median_s(lambda: loaded.predict(x[0]), seconds)
    print(f"one sample:         {1000 * one:8.3f} ms")
    many = {
        "ddl.load, all": _median_s(lambda: loaded.predict_proba(x), seconds),
        "evaluation of them": _median_s(lambda: evaluate(model, state, source, group, rows=rows), seconds),
    }
    for name, median_s in many.items():
        print(f"{name + ':':19} {1000 * median_s:8.3f} ms  {len(x) / median_s:10,.0f} samples/s")
    return 0
