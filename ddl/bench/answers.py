"""How fast ``ddl.load`` answers: one sample at a time, and all of them against evaluation, by the CNN on the digits.

The network is not trained: its answers take as long as those of a trained one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ddl.arrays import Device
from ddl.comm import threads
from ddl.config import Job, override
from ddl.data import as_dtype, digits
from ddl.run.loaded import TrainedModel
from ddl.run.trained import Trained
from ddl.train.build import build_data, knowledge_of
from ddl.train.evaluate import evaluate
from ddl.train.saved import model_of
from ddl.train.state import TrainingState

SETTINGS = {"model.name": "cnn", "data.normalize": "none"}


def _medians(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds of each call; they alternate, so that all see the same load of the machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(own) for name, own in times.items()}


def main(seconds: float) -> int:
    """Print three medians and return the exit status."""
    job = override(Job(), SETTINGS)
    splits = build_data(job)
    knowledge = knowledge_of(job, splits)
    model = model_of(job, splits.train.fields, knowledge["options"], splits.target)
    state = TrainingState(model, (), job.train.dtype, job.run.seed, Device())
    trained = Trained(Path("digits"), job, model, state, {"knowledge": knowledge}, "initial parameters")
    loaded, source, group = TrainedModel(trained), as_dtype(digits(), job.train.dtype), threads.alone()
    x = digits().arrays["x"].astype(job.train.dtype)
    rows = job.data.batch_eval
    one = _medians({"one sample": lambda: loaded.predict(x[0])}, seconds)["one sample"]
    print(f"one sample:         {1000 * one:8.3f} ms")
    calls = {
        "ddl.load, all": lambda: loaded.predict_proba(x),
        "evaluation of them": lambda: evaluate(model, state, source, group, rows=rows),
    }
    for name, median_s in _medians(calls, seconds).items():
        print(f"{name + ':':19} {1000 * median_s:8.3f} ms  {len(x) / median_s:10,.0f} samples/s")
    return 0
