"""Every job of the catalogue answers: its predictions file has the figures that training evaluated, and its ONNX file
gives the same outputs. Jobs are shortened to a few steps, since only agreement is tested."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from ddl import predict
from ddl.export.__main__ import main as export
from ddl.run.trained import Trained
from ddl.train.__main__ import main as train

JOBS = Path(__file__).parents[2] / "launch" / "jobs"
LINES = ("--train.epochs=1", "--data.options.lines_per_package=200")
SHORTENED = {
    "linear": ("--train.epochs=3",),
    "diabetes": ("--train.epochs=3",),
    "mlp": ("--train.epochs=1",),
    "cnn": ("--train.epochs=1",),
    "rnn": ("--train.epochs=1",),
    "lstm_digits": ("--train.epochs=1", "--model.options.units=16"),
    "lstm": LINES,
    "gru": LINES,
    "text": LINES,
    "transformer_classifier": LINES,
    "transformer": (
        *("--data.options.limit_mib=0.3", "--data.options.window=32", "--train.steps=10", "--optim.warmup_steps=2"),
        *("--model.options.layers=2", "--model.options.width=32"),
    ),
    "autoencoder": ("--train.epochs=1",),
    "autoencoder_conv": ("--train.epochs=1",),
    "gan": ("--train.epochs=1",),
    "stages": ("--train.epochs=1", "--parallel.stages=1"),
    "pruning": ("--train.epochs=1",),
    "local": ("--train.epochs=1",),
    "balance": ("--train.epochs=1",),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(job):
    if job == "diabetes" and importlib.util.find_spec("sklearn") is None:
        pytest.skip("the diabetes data come with scikit-learn, which is not installed")
    quiet = ("--run.dir=run", "--metrics.console_every_s=0", "--fault.tolerance=off")
    assert train([str(JOBS / f"{job}.toml"), *quiet, *SHORTENED[job]]) == 0
    return json.loads(Path("run/summary.json").read_text())["test"]


def columns_of(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def figures_of(columns, scale):
    """The figures that the file's rows have, by hand."""
    if "label" in columns:
        pairs = [(a.split(), b.split()) for a, b in zip(columns["label"], columns["target"], strict=True)]
        return {"accuracy": np.mean([x == y for a, b in pairs for x, y in zip(a, b, strict=True)])}
    if "error" in columns:
        return {"rmse": np.sqrt(np.mean(np.square(np.array(columns["error"], float)))) / scale}
    guess, truth = (np.array(columns[name], float) for name in ("prediction", "target"))
    return {"r2": 1 - np.sum((guess - truth) ** 2) / np.sum((truth - truth.mean()) ** 2)}


@pytest.mark.parametrize("job", [job for job in SHORTENED if job != "gan"])
def test_predictions_have_the_figures_of_training_and_the_outputs_of_onnx(job):
    evaluated = trained(job)
    assert predict.main(["run", "--split", "test", "--output", "test.csv"]) == 0
    columns = columns_of("test.csv")
    run = Trained.open("run")
    known = run.state.progress.normalise
    found = figures_of(columns, known["scale"][0] if known else 1)
    assert {name: evaluated[name] for name in found} == pytest.approx(found, rel=1e-6)
    assert len(columns["row"]) == evaluated["samples"]
    if job == "transformer":  # what came is text, as what was predicted is
        tokens = [list(map(int, row.split())) for row in columns["target"]]
        assert columns["target_text"] == [bytes(row).decode(errors="replace") for row in tokens]

    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert export(["run", "run.onnx"]) == 0
    assert predict.main(["run", "--split", "test", "--raw", "--output", "raw.npz"]) == 0
    source = run.split("test")
    source.hold([range(len(source))])
    x = source.gather(np.arange(min(len(source), 50)))["x"]
    (output, *_) = onnxruntime.InferenceSession("run.onnx").run(None, {"x": x})
    with np.load("raw.npz") as raw:
        wanted = raw["output"][: len(x)]
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(output.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5 * scale)


def test_the_generator_of_a_gan_draws_the_same_samples_in_onnx():
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    trained("gan")
    assert export(["run", "gan.onnx"]) == 0
    assert predict.main(["run", "--samples", "9", "--seed", "4", "--output", "drawn.npz"]) == 0
    from ddl.arrays import generator

    noise = generator(4, "samples").standard_normal((9, 32)).astype("float32")
    (output,) = onnxruntime.InferenceSession("gan.onnx").run(None, {"noise": noise})
    with np.load("drawn.npz") as drawn:
        np.testing.assert_allclose(output, drawn["output"], rtol=1e-5, atol=1e-4)  # values go up to 16


def test_every_job_answers_here():
    assert set(SHORTENED) == {path.stem for path in JOBS.glob("*.toml")}
