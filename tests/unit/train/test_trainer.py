"""ddl.Trainer on one rank: fit, resume, evaluate, predict; the files it writes; the arguments it rejects."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import ddl
from ddl.checkpoint import Store
from ddl.collectives.choose import Tuning, TuningRule
from ddl.errors import ConfigError, DdlError, Diverged, UserError

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(90, 4))
Y = (X[:, 0] > 0).astype(np.int64)
QUIET = {"metrics.console_every_s": 0, "train.dtype": "float64", "data.prefetch": 0, "fault.tolerance": "off"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trainer(settings=None, **changes):
    defaults = {
        "model": ddl.models.MLP([4, 8, 2]),
        "data": (X, Y),
        "loss": "cross_entropy",
        "optimizer": ddl.optim.Adam(lr=1e-2),
        "global_batch": 16,
    }
    return ddl.Trainer(**{**defaults, **changes}, settings={**QUIET, **(settings or {})})


def test_fit_trains_and_leaves_a_runs_folder(here):
    run = trainer(validation=(X[:30], Y[:30]), test=ddl.data.Arrays(X[30:50], Y[30:50]))
    summary = run.fit(epochs=20)
    assert summary["status"] == "finished" and summary["steps"] == 20 * 6 and summary["epochs"] == 20
    assert summary["test"]["samples"] == 20 and summary["validation"]["accuracy"] > 0.9
    assert run.folder.resolve() == here / "runs" / "python" and summary == json.loads(
        (run.folder / "summary.json").read_text()
    )
    for name in ("config.toml", "metrics.jsonl", "ledger.jsonl", "checkpoints"):
        assert (run.folder / name).exists()


def test_evaluate_and_predict_use_the_current_parameters():
    run = trainer(normalize="feature")
    run.fit(steps=40)
    z = (X - X.mean(axis=0)) / X.std(axis=0)
    p = run.params
    hidden = np.maximum(z @ p["dense1.weight"] + p["dense1.bias"], 0)
    logits = hidden @ p["dense2.weight"] + p["dense2.bias"]
    # Rows of the softmax, or what comes before it: equal up to a constant of the row.
    got = run.predict(X)
    assert np.array_equal(got.argmax(axis=1), logits.argmax(axis=1))
    found = run.evaluate((X, Y))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    assert np.isclose(found["loss"], -log_p[np.arange(90), Y].mean())
    assert found["accuracy"] == (logits.argmax(axis=1) == Y).mean() and found["samples"] == 90


def test_params_are_copies():
    run = trainer()
    run.fit(steps=1)
    for value in run.params.values():
        value[...] = 0
    assert any(value.any() for value in run.params.values())


def test_a_second_fit_continues_and_ends_like_one_long_fit():
    short, long = trainer(), trainer()
    short.fit(epochs=2)
    folder = short.folder
    assert short.fit(epochs=5)["steps"] == 30 and short.folder == folder
    long.fit(epochs=5)
    assert long.folder != folder
    assert all(np.array_equal(long.params[name], value) for name, value in short.params.items())


def test_fit_without_a_length_takes_that_of_the_settings():
    assert trainer({"train.steps": 3}).fit()["steps"] == 3
    assert trainer({"train.epochs": 2}).fit()["epochs"] == 2
    assert trainer({"train.steps": 3}).fit(epochs=1)["steps"] == 6


def test_callbacks_are_called_for_every_step():
    heard = []
    trainer(callbacks=[lambda outcome: heard.append(outcome.step)]).fit(steps=4)
    assert heard == [1, 2, 3, 4]


def test_an_error_of_a_callback_reaches_the_script_as_it_is():
    def wrong(outcome):
        raise ZeroDivisionError("mine")

    run = trainer(callbacks=[wrong])
    with pytest.raises(ZeroDivisionError, match="mine"):
        run.fit(steps=4)


def test_values_that_are_not_finite_end_it_as_diverged():
    run = trainer({"fault.skip_limit": 2}, data=(np.full_like(X, np.nan), Y))
    with pytest.raises(Diverged):
        run.fit(steps=9)


def test_settings_reach_the_job(here):
    run = trainer({"metrics.jsonl": False, "checkpoint.keep": 1, "run.dir": str(here / "mine")})
    run.fit(steps=3)
    assert run.folder == here / "mine"
    assert not (run.folder / "metrics.jsonl").exists() and (run.folder / "ledger.jsonl").exists()


def test_a_measured_table_is_read_as_by_a_job(here):
    Tuning((TuningRule(1, 1, 0, "ring"),)).save(here / "tuning.json")
    run = trainer({"comm.tuning": "tuning.json"})
    run.fit(steps=2)
    assert run._runner.loop.task.tuning == Tuning.load(here / "tuning.json")
    (here / "tuning.json").write_text("{}")
    with pytest.raises(UserError, match=r"tuning\.json is not a tuning table"):
        trainer({"comm.tuning": "tuning.json"}).fit(steps=2)


def test_tensorboard_files_are_written(here):
    pytest.importorskip("tensorboardX")
    run = trainer({"metrics.tensorboard": True})
    run.fit(steps=3)
    assert list((run.folder / "tensorboard").iterdir())


def test_training_starts_from_another_run_and_keeps_frozen_parameters():
    first = trainer()
    first.fit(steps=5)
    second = trainer({"model.from": str(first.folder), "model.freeze": ["dense1*"]})
    second.fit(steps=5)
    assert np.array_equal(second.params["dense1.weight"], first.params["dense1.weight"])
    assert not np.array_equal(second.params["dense2.weight"], first.params["dense2.weight"])
    assert "params/dense1.weight" in Store(second.folder / "checkpoints").load(None)[0]


@pytest.mark.parametrize("ask", [lambda run: run.params, lambda run: run.predict(X), lambda run: run.evaluate((X, Y))])
def test_nothing_can_be_asked_before_the_first_fit(ask):
    with pytest.raises(DdlError, match=r"before fit\(\)"):
        ask(trainer())


WRONG = {
    "no data": ({"data": None}, {}, "needs data"),
    "a batch of no samples": ({"global_batch": 0}, {}, "global_batch is 0"),
    "a setting that there is not": ({}, {"train.step": 3}, r"\[train\] has no setting 'step'"),
    "a model of another shape": ({"model": ddl.models.MLP([5, 8, 2])}, {}, "5"),
    "an unknown loss": ({"loss": "crossentropy"}, {}, "crossentropy"),
    "arrays of different length": ({"data": (X, Y[:5])}, {}, "90"),
    "what is an argument": ({}, {"optim.lr": 0.1}, r"optim.lr is no setting of a Trainer.*optimizer"),
    "what is an argument as well": ({}, {"data.normalize": "all"}, r"data.normalize .*\(normalize\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_arguments_are_rejected_at_once(case, here):
    changes, settings, expected = WRONG[case]
    with pytest.raises(UserError, match=expected):
        trainer(settings, **changes)
    assert not list(here.iterdir())


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="nothing to train"):
        trainer().fit(epochs=0)


def test_a_checkpoint_of_another_job_is_refused(here):
    trainer({"run.dir": "mine"}).fit(steps=2)
    with pytest.raises(ConfigError, match="the checkpoint was made with shards"):
        trainer({"run.dir": "mine"}, global_batch=8).fit(steps=2)


def test_training_starts_from_given_arrays_and_draws_the_others():
    network = ddl.models.MLP([4, 8, 2])
    bias = np.linspace(-1, 1, 8)
    run = trainer(model=network, initial={"dense1.bias": bias}, optimizer=ddl.optim.SGD(1e-30))
    run.fit(steps=1)
    drawn = ddl.models.initial_values(run.model, 0)
    assert np.allclose(run.params["dense1.bias"], bias)
    assert np.allclose(run.params["dense1.weight"], drawn["dense1.weight"])


@pytest.mark.parametrize(
    ("initial", "message"),
    [({"dense1.biass": np.zeros(8)}, "did you mean 'dense1.bias'"), ({"dense1.bias": np.zeros(3)}, r"shape \(3,\)")],
)
def test_arrays_that_the_model_does_not_have_are_refused(initial, message):
    with pytest.raises(UserError, match=message):
        trainer(model=ddl.models.MLP([4, 8, 2]), initial=initial).fit(steps=1)


def test_predicting_a_single_sample_suggests_a_batch_axis():
    run = trainer()
    run.fit(steps=1)
    with pytest.raises(UserError, match=r"got \(4,\): add a batch axis, x\[None\]"):
        run.predict(X[0])
    with pytest.raises(UserError, match=r"takes samples of shape \(rows, 4\), got \(2, 3\)$"):
        run.predict(X[:2, :3])


def test_a_callback_may_have_any_of_the_three_methods():
    class Listener(ddl.Callback):
        def __init__(self):
            self.heard = []

        def on_epoch(self, epoch, results):
            self.heard.append(("epoch", epoch, sorted(results)))

        def on_end(self, results):
            self.heard.append(("end", sorted(results)))

    class OnEnd:
        heard = False

        def on_end(self, results):
            self.heard = True

    full, partial = Listener(), OnEnd()
    trainer(callbacks=[full, partial]).fit(epochs=1)
    assert full.heard == [("epoch", 1, ["train"]), ("end", ["train"])] and partial.heard


class Mean:
    """A model with the three required members alone: it learns the mean of x."""

    @property
    def params(self):
        return {"mean": ((4,), lambda shape, random: np.zeros(shape))}

    def loss_and_gradients(self, params, buffers, batch, grads, ctx):
        distance = params["mean"] - batch["x"]
        if grads is not None:
            grads["mean"][...] = 2 * distance.sum(axis=0)
        return float((distance**2).sum()), float(len(batch["x"])), {}

    def predict(self, params, buffers, batch, ctx):
        return {"output": np.broadcast_to(params["mean"], batch["x"].shape)}


def test_a_model_needs_only_three_members_to_train():
    x = np.random.default_rng(0).normal(3.0, 1.0, (64, 4)).astype("float32")
    run = trainer(model=Mean(), data=(x,), loss=None, optimizer=ddl.optim.SGD(0.1), global_batch=64)
    run.fit(steps=60)
    assert np.allclose(run.params["mean"], x.mean(axis=0), atol=1e-3)
    assert run.evaluate((x,))["loss"] == pytest.approx(4 * x.var(axis=0).mean(), rel=1e-3)


def normalised(**options):
    return ddl.nn.Sequential(ddl.nn.Dense(8, bias=False), ddl.nn.BatchNorm(**options), ddl.nn.ReLU(), ddl.nn.Dense(2))


def test_batch_norm_trains_by_default_with_many_small_shards():
    """64 shards of a sample each: statistics of each shard alone would be those of one sample."""
    run = trainer(model=normalised(), global_batch=64, shards=64, validation=(X, Y))
    assert run.fit(epochs=60)["validation"]["accuracy"] > 0.95


@pytest.mark.parametrize("accumulate", [2, 4])
def test_batch_norm_accepts_micro_batches_without_samples_of_some_shards(accumulate):
    run = trainer({"train.accumulate": accumulate}, model=normalised(), data=(X[:65], Y[:65]), global_batch=64)
    assert run.fit(epochs=2)["status"] == "finished"


def test_batch_norm_by_shards_of_too_few_samples_is_refused():
    with pytest.raises(ConfigError, match=r"16 samples.*data\.shards = 4"):
        trainer(model=normalised(sync=False), global_batch=64, shards=24).fit(steps=1)
    trainer(model=normalised(sync=False), global_batch=64, shards=4).fit(steps=1)


def rates(run):
    """step -> learning rate, as logged last."""
    events = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return {event["step"]: event["lr"] for event in events if event["event"] == "step"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("rescale", lambda step: 0.5e-2 * (1 + np.cos(np.pi * step / 24))),
        ("restart", lambda step: 0.5e-2 * (1 + np.cos(np.pi * (step - 12) / 12))),
        ("hold", lambda step: 1e-4),
    ],
)
def test_a_longer_fit_says_how_its_schedule_goes_on_and_a_resumed_one_goes_on_like_that(choice, expected, capsys):
    settings = {"optim.resume_schedule": choice, "optim.min_lr": 1e-4 if choice == "hold" else 0.0}
    settings |= {"metrics.console_every_s": 9, "checkpoint.every_steps": 6}
    run = trainer(settings, schedule="cosine")
    run.fit(steps=12)
    assert "learning rate" not in capsys.readouterr().out
    run.fit(steps=24)
    said = capsys.readouterr().out
    assert said.count("the learning rate of step 12 is") == (choice != "hold")
    logged = rates(run)
    assert [logged[step + 1] for step in range(12, 24)] == pytest.approx([expected(step) for step in range(12, 24)])

    shutil.rmtree(run.folder / "checkpoints" / "step_00000024")  # as if the second fit had been interrupted
    assert (run.folder / "checkpoints" / "step_00000018").is_dir()
    again = trainer({**settings, "run.dir": str(run.folder), "checkpoint.resume": "auto"}, schedule="cosine")
    again.fit(steps=24)
    assert "learning rate" not in capsys.readouterr().out
    assert rates(again) == pytest.approx(logged)


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (4, 4)])
def test_batch_norm_of_single_samples_is_refused(batch, accumulate):
    with pytest.raises(ConfigError, match="at least 2 samples at a time"):
        trainer({"train.accumulate": accumulate}, model=normalised(), global_batch=batch).fit(steps=1)


@pytest.mark.parametrize(
    ("kind", "make", "loss"),
    [
        ("auto", lambda x: (x > 0).astype(int), "BinaryCrossEntropy"),
        ("multilabel", lambda x: (x > 0) * 1.0, "BinaryCrossEntropy"),
        ("probabilities", lambda x: 1 / (1 + np.exp(-4 * x[:, 0])), "BinaryCrossEntropy"),
        ("probabilities", lambda x: np.exp(3 * x) / np.exp(3 * x).sum(axis=1, keepdims=True), "CrossEntropy"),
    ],
)
def test_the_kind_of_the_targets_chooses_loss_and_accuracy(kind, make, loss):
    x = np.random.default_rng(0).normal(size=(96, 3))
    run = ddl.Trainer("linear", (x, make(x)), optimizer=ddl.optim.Adam(lr=0.05), settings={"data.target_kind": kind})
    assert type(run.model.loss).__name__ == loss
    assert run.fit(epochs=20)["train"]["accuracy"] > 0.9
    assert run.evaluate((x, make(x)))["accuracy"] > 0.95


@pytest.mark.parametrize(("x", "is_normalised"), [(X, True), (np.arange(360).reshape(90, 4) % 7, False)])
def test_auto_normalises_measurements_and_no_tokens(x, is_normalised):
    model = "linear" if is_normalised else ddl.nn.Sequential(ddl.nn.Embedding(7, 4), ddl.nn.Flatten(), ddl.nn.Dense(2))
    run = ddl.Trainer(model, (x, Y), loss="cross_entropy", normalize="auto", settings=QUIET)
    run.fit(steps=1)
    _, meta = Store(run.folder / "checkpoints").load()
    assert (meta["progress"]["normalise"] is not None) == is_normalised
