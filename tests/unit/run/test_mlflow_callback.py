"""The MLflow callback of launch/examples, with a stand-in for mlflow: what it logs, and who continues."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import ddl

EXAMPLE = Path(__file__).parents[3] / "launch" / "examples" / "mlflow_callback.py"


@pytest.fixture
def mlflow(monkeypatch):
    """Records what is logged: runs as lists of (metrics, step), by their id."""
    module = ModuleType("mlflow")
    runs, tags, current = {}, {}, []

    def start_run(run_id=None, tags=None):
        run_id = run_id or f"run-{len(runs)}"
        runs.setdefault(run_id, [])
        module.tags[run_id] = tags
        current[:] = [run_id]

    def search_runs(filter_string, output_format):
        assert output_format == "list"
        name, _, value = filter_string.removeprefix("tags.").partition(" = ")
        found = [run for run, kept in module.tags.items() if kept[name] == value.strip("'")]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found]

    module.runs, module.tags, module.params, module.ended = runs, tags, {}, []
    module.start_run, module.search_runs = start_run, search_runs
    module.log_params = module.params.update
    module.log_metrics = lambda metrics, step: runs[current[0]].append((dict(metrics), step))
    module.end_run = lambda: module.ended.append(current[0])
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("mlflow_callback", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_logs_parameters_steps_epochs_and_the_end(mlflow, example, tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    x = rng.normal(size=(40, 3)).astype("float32")
    data = x, (x[:, 0] > 0).astype("int64")
    trainer = ddl.Trainer(
        ddl.models.MLP([3, 4, 2]),
        data,
        validation=data,
        global_batch=20,
        callbacks=[example.MLflow({"lr": 0.5}, every=2)],
    )
    summary = trainer.fit(epochs=2)
    (logged,) = mlflow.runs.values()
    assert mlflow.params == {"lr": 0.5} and mlflow.ended == ["run-0"]
    assert [step for metrics, step in logged if "step/loss" in metrics] == [2, 4]
    epochs = [metrics for metrics, _ in logged if "epoch" in metrics]
    assert [metrics["epoch"] for metrics in epochs] == [1, 2]
    assert epochs[1]["validation/loss"] == summary["validation"]["loss"]
    assert logged[-1][0]["final/validation/accuracy"] == summary["validation"]["accuracy"]


def test_the_next_leader_continues_the_same_run(mlflow, example):
    for step in (10, 20):  # two ranks, each with its own callback
        example.MLflow({})(SimpleNamespace(step=step, loss=1.0, lr=0.1, metrics={}, skipped=False))
    assert {name: [step for _, step in logged] for name, logged in mlflow.runs.items()} == {"run-0": [10, 20]}
