"""Every job of the catalogue learns, in a shortened form; launch/check_jobs.py checks the results of whole jobs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ddl.data import digits

JOBS = Path(__file__).parents[2] / "launch" / "jobs"

# job -> (what shortens it, metric on the test split, at least)
SHORTENED: dict[str, tuple[tuple[str, ...], str, float]] = {
    "linear": (("--train.epochs=40",), "r2", 0.99),
    "diabetes": (("--train.epochs=300",), "r2", 0.3),
    "mlp": (("--train.epochs=8",), "accuracy", 0.92),
    "cnn": (("--train.epochs=5",), "accuracy", 0.93),
    "rnn": (("--train.epochs=10",), "accuracy", 0.90),
    "lstm_digits": (("--train.epochs=10", "--model.options.units=48", "--optim.lr=6e-3"), "accuracy", 0.85),
    "text": (("--train.epochs=4", "--data.options.lines_per_package=600"), "accuracy", 0.35),
    "lstm": (("--train.epochs=4", "--data.options.lines_per_package=400"), "accuracy", 0.25),
    "gru": (("--train.epochs=4", "--data.options.lines_per_package=400"), "accuracy", 0.25),
    "transformer_classifier": (("--train.epochs=4", "--data.options.lines_per_package=400"), "accuracy", 0.25),
    "stages": (("--train.epochs=5",), "accuracy", 0.90),
    "pruning": (("--train.epochs=8",), "accuracy", 0.90),
    "local": (("--train.epochs=10",), "accuracy", 0.85),
    "balance": (("--train.epochs=8",), "accuracy", 0.92),
}
TRANSFORMER = (
    *("--data.options.limit_mib=0.5", "--data.options.window=64", "--train.steps=60", "--train.global_batch=16"),
    *("--model.options.layers=1", "--model.options.width=64", "--optim.warmup_steps=10", "--optim.lr=5e-3"),
)


@pytest.mark.parametrize("job", SHORTENED)
def test_a_job_learns(train, job):
    if job == "diabetes" and importlib.util.find_spec("sklearn") is None:
        pytest.skip("the diabetes data come with scikit-learn, which is not installed")
    words, metric, least = SHORTENED[job]
    test = train(job, 2, *words).summary["test"]
    assert test[metric] >= least


def test_gru_reads_digits_by_rows(train):
    words, metric, least = SHORTENED["lstm_digits"]
    assert train("lstm_digits", 2, "--model.name=gru", *words).summary["test"][metric] >= least


def test_the_language_model_writes_fewer_bits_than_equally_likely_bytes(train, door):
    ended = train("transformer", 2, *TRANSFORMER)
    assert ended.summary["test"]["bits_per_byte"] < 4.8
    words = ["-m", "ddl.predict", ended.folder, "--prompt", "def main(", "--tokens", 30]
    written = [door(words, ranks).out for ranks in (0, 2)]
    assert written[0] == written[1] and written[0].startswith("def main(") and len(written[0]) >= 30
    greedy = [door([*words, "--temperature", 0, "--seed", seed]).out for seed in (1, 2)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("job", ["autoencoder", "autoencoder_conv"])
def test_an_autoencoder_reconstructs_better_than_the_mean_image(train, job):
    summary = train(job, 2, "--train.epochs=10").summary
    assert summary["test"]["loss"] < 0.05  # the mean image: 0.075


def test_a_gan_draws_digits_and_not_always_the_same_one(train, door):
    ended = train("gan", 2, "--train.epochs=12", "--optim.lr=1e-3")
    assert 0.5 < ended.summary["test"]["discriminator_loss"] < 1.4
    output = ended.folder / "grid.npy"
    words = ["-m", "ddl.predict", ended.folder, "--samples", 64, "--output", output]
    drawn = []
    for ranks in (0, 2):
        assert door(words, ranks).status == 0
        drawn.append(np.load(output))
    assert np.array_equal(*drawn) and drawn[0].shape == (64, 8, 8, 1)
    assert drawn[0].min() >= 0 and drawn[0].max() <= 16  # in the units of the data
    # So soon they look alike; but they differ, and their mean is that of digits.
    assert drawn[0].std(axis=0).mean() > 0.2
    assert np.corrcoef(drawn[0].mean(axis=0).ravel(), digits().arrays["x"].mean(axis=0).ravel())[0, 1] > 0.5


JUDGED = {
    "linear": ((), "lstsq"),
    "mlp": (("--train.epochs=1",), "accuracy"),
    "autoencoder": (("--train.epochs=1",), "PCA"),
    "transformer": (TRANSFORMER, "gzip"),
    "text": (("--train.epochs=1", "--data.options.lines_per_package=400"), "logistic regression"),
    "gan": (("--train.epochs=1",), "classes"),
}


@pytest.mark.parametrize("job", JUDGED)
def test_a_run_is_compared_with_its_required_results(train, door, job):
    if job in ("text", "gan"):
        pytest.importorskip("sklearn")
    words, against = JUDGED[job]
    judged = door([JOBS.parent / "check_jobs.py", job, "--run", train(job, 1, *words).folder])
    assert f"{job}: reached " in judged.out and against in judged.out, judged.said


def test_every_job_is_tried_here():
    tried = {*SHORTENED, "transformer", "autoencoder", "autoencoder_conv", "gan"}
    assert tried == {path.stem for path in JOBS.glob("*.toml")}


@pytest.mark.parametrize(("job", "more"), [("mlp", ()), ("text", ()), ("cnn", ("--model.options.batch_norm=sync",))])
def test_a_job_gives_the_same_results_on_one_two_and_four_ranks(train, job, more):
    words = (*SHORTENED[job][0], *more)
    tests = [train(job, ranks, *words, name=f"on-{ranks}").summary["test"] for ranks in (1, 2, 4)]
    for other in tests[1:]:
        assert other["loss"] == pytest.approx(tests[0]["loss"], rel=0.02)
        assert abs(other["accuracy"] - tests[0]["accuracy"]) * tests[0]["samples"] <= 0.01 * tests[0]["samples"] + 1
