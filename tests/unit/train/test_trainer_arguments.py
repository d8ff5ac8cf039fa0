"""ddl.Trainer accepts everything a job file does, by name or as an object, and records it in the run folder."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import ddl
from ddl import evaluate, predict
from ddl.data import Mixup, Noise
from ddl.errors import ConfigError, UserError
from ddl.nn import BatchNorm, Dense, Embedding, Flatten, ReLU, Reshape, Residual, Sequential
from ddl.nn.losses import BinaryCrossEntropy, CrossEntropy
from ddl.optim import SGD, Adam, Cosine, Momentum, Rule
from ddl.train.__main__ import main as train

RANDOM = np.random.default_rng(7)
X = RANDOM.normal(size=(96, 4))
Y = (X[:, 0] > 0).astype(np.int64)
QUIET = {"metrics.console_every_s": 0, "train.dtype": "float64", "data.prefetch": 0, "fault.tolerance": "off"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trainer(settings=None, **changes):
    defaults = {"model": ddl.models.MLP([4, 8, 2]), "data": (X, Y), "global_batch": 16}
    return ddl.Trainer(**{**defaults, **changes}, settings={**QUIET, **(settings or {})})


def rates(run, steps):
    """The learning rate of each step."""
    run.fit(steps=steps)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if line["event"] == "step"]


def same(one, other):
    return all(np.array_equal(value, other.params[name]) for name, value in one.params.items())


def test_a_fraction_takes_validation_and_test_samples_from_the_data():
    run = trainer(data=(X, np.where(Y, "up", "down")), validation=0.25, test=0.125)
    assert [len(part) for part in (run.data, run.validation, run.test)] == [60, 24, 12]
    held = [part.gather(np.arange(len(part)))["x"] for part in (run.data, run.validation, run.test)]
    assert np.array_equal(np.unique(np.concatenate(held), axis=0), np.unique(X, axis=0))
    run.fit(steps=4)
    assert run.summary["validation"]["samples"] == 24
    with pytest.raises(UserError, match="nothing is left to train on"):
        trainer(validation=0.5, test=0.6)


def test_every_schedule_has_its_numbers():
    falls = rates(trainer({"optim.step_every": 2, "optim.step_factor": 0.5}, optimizer=SGD(lr=0.4), schedule="step"), 6)
    assert falls == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
    line = rates(trainer({"optim.min_lr": 0.1}, optimizer=SGD(lr=0.4), schedule="linear"), 4)
    assert line == pytest.approx([0.4, 0.325, 0.25, 0.175])
    assert rates(trainer(optimizer=SGD(lr=0.4), schedule=lambda step: 1 / (1 + step)), 3) == pytest.approx(
        [0.4, 0.2, 0.4 / 3]
    )
    assert rates(trainer(optimizer=SGD(lr=0.4), schedule=Cosine(2)), 3) == pytest.approx([0.4, 0.2, 0.0])


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": SGD(lr=0.1)}, {"optimizer": "adam"}])
def test_whether_a_replica_is_shared_is_a_setting_of_every_trainer(optimizer):
    run = trainer({"optim.sharded": "off"}, **optimizer)
    run.fit(steps=1)
    assert 'sharded = "off"' in (run.folder / "config.toml").read_text()


def test_an_optimizer_by_name_is_the_object():
    named = trainer({"optim.lr": 0.05, "optim.momentum": 0.8}, optimizer="momentum")
    made = trainer(optimizer=Momentum(lr=0.05, momentum=0.8))
    for run in (named, made):
        run.fit(steps=5)
    assert same(named, made)


def test_augmentations_and_callbacks_by_name_are_the_objects(here, monkeypatch):
    (here / "listener.py").write_text("steps = []\ndef on_step(outcome):\n    steps.append(outcome.step)\n")
    monkeypatch.syspath_prepend(here)
    named = trainer(augment=["noise:0.3", "mixup"], callbacks=["listener:on_step"])
    made = trainer(augment=[Noise(0.3), Mixup()])  # mixup gets the number of classes from the data
    for run in (named, made):
        run.fit(steps=4)
    assert same(named, made)
    assert sys.modules["listener"].steps == [1, 2, 3, 4]


def test_rules_give_a_gan_two_optimizers(here):
    x = RANDOM.random((64, 6))
    data = {"data": (x, np.zeros(64, np.int64)), "model": "gan"}
    run = trainer(**data, optimizer=Adam(lr=1e-3), rules=[Rule("discriminator.*", SGD(lr=0.5))])
    run.fit(steps=3)
    slow = trainer(**data, optimizer=Adam(lr=1e-3), rules=[Rule("discriminator.*", frozen=True)])
    slow.fit(steps=3)
    fresh = trainer(**data, optimizer=Adam(lr=1e-3), rules=[Rule("*", frozen=True)])
    fresh.fit(steps=1)
    judge = [name for name in run.params if name.startswith("discriminator.")]
    assert judge and all(np.array_equal(slow.params[name], fresh.params[name]) for name in judge)
    assert any(not np.array_equal(run.params[name], fresh.params[name]) for name in judge)
    with pytest.raises(ConfigError, match="no parameter matches"):
        trainer(rules=[Rule("judge*")]).fit(steps=1)


def test_float16_works_with_every_optimizer_of_a_job():
    x = X.astype(np.float16)
    run = trainer({"train.dtype": "float16"}, data=(x, Y), optimizer=Momentum(lr=0.05))
    run.fit(steps=3)
    assert {value.dtype for value in run.params.values()} == {np.dtype("float16")}
    with pytest.raises(ConfigError, match=r"float16 does not go with .* adam"):
        trainer({"train.dtype": "float16"}, data=(x, Y), optimizer=Adam())


def test_patience_needs_something_to_wait_for():
    with pytest.raises(ConfigError, match="patience is 2"):
        trainer({"train.patience": 2})
    trainer({"train.patience": 2}, validation=(X[:20], Y[:20])).fit(epochs=2)


def test_truth_values_are_two_classes():
    truth = X[:, 0] > 0
    summary = trainer(data=(X, truth), test=(X, truth), optimizer=Adam(lr=1e-2)).fit(epochs=20)
    assert summary["test"]["accuracy"] > 0.9
    only = trainer(data=(X, np.zeros(96, bool)))  # and so they are where one alone occurs
    only.fit(steps=1)
    assert only.predict(X).shape == (96, 2)


def test_bytes_that_are_normalised_are_images():
    pictures = RANDOM.integers(0, 255, (64, 8, 8, 1)).astype(np.uint8)
    pictures[0, 0, 0, 0], pictures[0, 0, 1, 0] = 0, 255
    run = trainer(data=(pictures, Y[:64]), model="linear", normalize="unit", optimizer=SGD(lr=0.1))
    run.fit(steps=2)
    (weight,) = (value for name, value in run.params.items() if name.endswith("weight"))
    (bias,) = (value for name, value in run.params.items() if name.endswith("bias"))
    assert np.allclose(run.predict(pictures), pictures.reshape(64, 64) / 255 @ weight + bias)
    assert run.evaluate((pictures, Y[:64]))["samples"] == 64


@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.1), "cross_entropy", None])
def test_a_loss_of_classes_measures_accuracy_however_it_is_given(loss):
    assert "accuracy" in trainer(loss=loss, test=(X, Y)).fit(steps=2)["test"]


def test_a_loss_object_shapes_the_model_as_its_name_does():
    y = Y.astype(np.float64)[:, None]
    run = trainer(model="linear", data=(X, y), loss=BinaryCrossEntropy(), test=(X, y))
    assert "accuracy" in run.fit(steps=2)["test"]
    with pytest.raises(ConfigError, match="needs"):
        trainer(model=ddl.models.MLP([4, 3]), loss=CrossEntropy())


def test_a_tuning_table_is_read_as_in_a_job(here):
    (here / "table.json").write_text("no table")
    with pytest.raises(UserError, match=r"table\.json"):
        trainer({"comm.tuning": str(here / "table.json")}).fit(steps=1)


WRONG = {
    "a number of a schedule that is a function": (
        {"optim.min_lr": 0.1},
        {"schedule": Cosine(3)},
        "schedule is a function",
    ),
    "a schedule that is neither": ({}, {"schedule": 3}, "neither a name"),
    "an unknown schedule": ({}, {"schedule": "stairs"}, "stairs"),
    "an unknown optimizer": ({}, {"optimizer": "adamm"}, "adamm"),
    "the number of an optimizer that says it": ({"optim.lr": 0.1}, {"optimizer": SGD()}, r"optim.lr .*optimizer"),
    "rules and a name": ({}, {"optimizer": "adam", "rules": [Rule("*")]}, "optim.groups"),
    "the schedule twice": ({"optim.schedule": "step"}, {}, r"optim.schedule .*\(schedule\)"),
    "steps without a length": ({}, {"schedule": "step"}, "step_every is 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_combinations_are_rejected(case):
    settings, changes, expected = WRONG[case]
    with pytest.raises(UserError, match=expected):
        trainer(settings, **changes).fit(steps=1)


def lines_of(capsys, door, *words):
    capsys.readouterr()
    status = door(list(words))
    said = capsys.readouterr()
    return status, said.out, said.err.splitlines()


def test_the_folder_records_objects_made_in_python_and_commands_report_them(here, capsys):
    network = Sequential(Dense(8), Own(), Dense(2))
    settings = {"run.dir": "run", "metrics.console_every_s": 60}
    run = trainer(settings, model=network, optimizer=SGD(lr=0.3), normalize="all")
    run.fit(steps=2)
    banner = capsys.readouterr().out
    assert "(python) Sequential(" in banner and "cnn" not in banner
    config = (here / "run" / "config.toml").read_text()
    for expected in (
        'name = "(python) Sequential(',
        '"(python) ddl.data.memory.Arrays"',
        'name = "sgd"',
        "lr = 0.3",
        '"all"',
    ):
        assert expected in config, expected
    np.save("x.npy", X)
    asked = ("run", "--input", "x.npy", "--output", "y.npy")
    for door, words in ((predict.main, asked), (evaluate.main, ("run",)), (train, ("run/config.toml",))):
        status, _, said = lines_of(capsys, door, *words)
        assert status == 2 and len(said) == 1 and "built by a script" in said[0], said


class Own(ReLU):
    """A layer that no name leads to."""


NETWORKS = {
    "by name": "mlp",
    "of layers": ddl.models.MLP([4, 8, 2], dropout=0.2),
    "of named layers": Sequential(inner=Sequential(Dense(6, "tanh"), BatchNorm()), last=Dense(2, bias=False)),
    "of layers in layers": Sequential(Reshape((2, 2)), Residual(Dense(2)), Flatten(), Dense(2)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_doors_open_the_run_of_a_model_that_can_be_made_again(network, here, capsys):
    loss = CrossEntropy(label_smoothing=0.1)
    run = trainer({"run.dir": "run"}, model=NETWORKS[network], normalize="feature", loss=loss)
    run.fit(steps=5)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    assert lines_of(capsys, predict.main, "run", "--input", "x.npy", "--output", "z.npy", "--raw")[0] == 0
    assert np.allclose(np.load("z.npy"), run.predict(X))
    status, out, _ = lines_of(capsys, evaluate.main, "run", "--input", "x.npy", "--targets", "y.npy", "--json")
    wanted = run.evaluate((X, Y))
    assert status == 0 and {name: json.loads(out)[name] for name in wanted} == pytest.approx(wanted)
    status, _, said = lines_of(capsys, evaluate.main, "run")
    assert status == 2 and len(said) == 1 and "built by a script" in said[0] and "--input" in said[0]


def test_a_finished_run_whose_loss_was_not_finite_can_be_started_again():
    validation = (np.full((8, 4), np.nan), Y[:8])
    first = trainer({"run.dir": "run"}, validation=validation)
    assert first.fit(epochs=2)["validation"]["loss"] is None  # JSON has no NaN
    again = trainer({"run.dir": "run"}, validation=validation)
    assert again.fit(epochs=2)["steps"] == 12
    assert again.fit(epochs=3)["steps"] == 18


def test_a_trainer_resumes_from_another_and_a_users_loop_from_both():
    first = trainer()
    first.fit(steps=4)
    second = trainer({"model.from": str(first.folder)}, optimizer=SGD(lr=1e-9))
    second.fit(steps=1)
    assert all(np.allclose(value, second.params[name], atol=1e-6) for name, value in first.params.items())
    assert second.group is first.group is ddl.init() and ddl.size() == 1


def test_a_run_starts_from_the_state_in_which_another_ended():
    wrong = (X[:16], 1 - Y[:16])  # training makes the validation loss worse
    first = trainer({"train.restore_best": "on"}, validation=wrong, optimizer=SGD(lr=0.5))
    assert first.fit(epochs=3)["final"]["checkpoint"] == "best" and first.summary["best"]["epoch"] < 3
    second = trainer({"model.from": str(first.folder)}, optimizer=SGD(lr=1e-9))
    second.fit(steps=1)
    assert all(np.allclose(value, second.params[name], atol=1e-6) for name, value in first.params.items())


WHOLE = {
    "uint8": (40, 100),
    "uint16": (8000, 30000),
    "int16": (8000, 0),
    "int32": (2**27, -(2**28)),
    "int64": (2**27, 2**40),
    "bool": (0.8, 0.5),
}


@pytest.mark.parametrize("shape", [(4,), (2, 2)], ids=["rows", "images"])
@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_are_measurements_and_are_normalised_as_in_a_job(dtype, shape):
    scale, offset = WHOLE[dtype]
    x = np.clip(X * scale + offset, 0 if dtype[0] in "ub" else None, None).astype(dtype).reshape(96, *shape)
    network = Sequential(*[Flatten()] * (len(shape) > 1), Dense(8), ReLU(), Dense(2))
    one = trainer(model=network, data=(x, Y))
    other = trainer(model=network, data=(x.astype(np.float64), Y), normalize="feature")
    assert one.fit(steps=8)["train"] == other.fit(steps=8)["train"] and same(one, other)
    assert np.array_equal(one.predict(x[:5]), other.predict(x[:5]))
    assert one.evaluate((x, Y)) == other.evaluate((x, Y))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_whole_numbers_are_tokens_to_a_network_that_embeds_them(dtype):
    x = RANDOM.integers(0, 9, (96, 4)).astype(dtype)
    run = trainer(model=Sequential(Embedding(9, 3), Flatten(), Dense(2)), data=(x, Y))
    assert run.data.fields["x"].dtype == dtype and np.isfinite(run.fit(steps=2)["train"]["loss"])
