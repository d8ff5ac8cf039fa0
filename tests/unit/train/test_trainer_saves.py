"""What a Trainer keeps and finds out: its saved model, its history, a learning rate, the user's own metrics."""

from __future__ import annotations

import numpy as np
import pytest

import ddl
from ddl.errors import ConfigError, DdlError, UserError

RNG = np.random.default_rng(2)
X = RNG.normal(size=(96, 4))
Y = np.where(X[:, 0] > X[:, 1], "yes", "no")
QUIET = {"metrics.console_every_s": 0, "fault.tolerance": "off"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def share_right(outputs, targets):
    return outputs.argmax(axis=1) == targets


def mean_right(outputs, targets):
    return float(share_right(outputs, targets).mean())


def trainer(**changes):
    settings = {**QUIET, **changes.pop("settings", {})}
    given = {"model": ddl.models.MLP([4, 8, 2]), "data": (X, Y), "global_batch": 32, "normalize": "feature"}
    return ddl.Trainer(**{**given, **changes}, settings=settings)


def test_a_saved_model_is_loaded_by_a_script_and_by_another_trainer(here):
    first = trainer(validation=(X[:40], Y[:40]))
    first.fit(epochs=3)
    folder = first.save("saved")
    model = ddl.load(folder)
    assert model.labels.tolist() == ["no", "yes"] == first.trained.labels.tolist()
    assert (model.predict(X) == np.where(first.predict(X).argmax(axis=1), "yes", "no")).all()
    assert np.array_equal(model.outputs(X), first.predict(X).astype(model.outputs(X).dtype))
    second = trainer()
    with pytest.raises(DdlError, match="before fit"):
        second.predict(X)
    second.load(folder)
    assert np.array_equal(second.predict(X), first.predict(X))
    assert second.evaluate((X, Y)) == first.evaluate((X, Y))
    # The next fit begins with these parameters, in its own folder.
    second.fit(steps=1)
    assert second.folder != first.folder and second.summary["steps"] == 1
    with pytest.raises(ConfigError, match="its model needs"):
        trainer(model=ddl.models.MLP([4, 9, 2])).load(folder)
    with pytest.raises(ConfigError, match="there is none"):
        second.load("nowhere")


def test_history_has_a_list_for_each_figure_also_over_several_fits():
    run = trainer(validation=(X[:40], Y[:40]), settings={"train.evaluate_every": 2})
    assert run.history == {}
    run.fit(epochs=2)
    run.fit(epochs=4)
    history = run.history
    assert history["epoch"] == [1, 2, 3, 4] and history["step"] == [3, 6, 9, 12]
    assert history["validation_accuracy"][3] == run.summary["validation"]["accuracy"]
    assert np.isnan(history["validation_loss"][0]) and np.isfinite(history["validation_loss"][3])
    assert history["loss"][3] == pytest.approx(run.summary["train"]["loss"])


def test_plain_functions_are_metrics_and_a_loaded_run_does_without_them():
    run = trainer(metrics=["accuracy", share_right, mean_right], settings={"data.batch_eval": 7})
    run.fit(epochs=2)
    found = run.evaluate((X, Y))
    assert found["share_right"] == found["accuracy"] == pytest.approx(found["mean_right"])
    said = []
    assert ddl.load(run.folder, say=said.append).predict(X[0]) in ("yes", "no")
    assert len(said) == 1 and "metrics of the script" in said[0]
    with pytest.raises(ConfigError, match="metric 'twos' must return a number"):
        trainer(metrics=[twos]).fit(steps=1)


def twos(outputs, targets):
    return np.ones((len(targets), 2))


def test_the_repr_says_what_is_trained_and_how_far():
    run = trainer()
    assert repr(run).startswith("Trainer(") and "58 parameters; 96 samples, 32 per step" in repr(run)
    assert "not trained yet" in repr(run)
    run.fit(steps=4)
    assert "step 4, loss 0." in repr(run)


def test_a_learning_rate_is_searched_for_and_nothing_else_changes(here):
    run = trainer(optimizer=ddl.optim.SGD(lr=0.1))
    found = run.lr_find(1e-4, 100.0, 40)
    assert 1e-4 < found.suggestion < 100 and "suggestion" in repr(found)
    assert found.losses[-1] > found.losses.min() and len(found.rates) == len(found.losses)
    assert run.folder is None and not any(here.iterdir())
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert found.plot(here / "lr.png").stat().st_size > 5000
    with pytest.raises(UserError, match="lowest < highest"):
        run.lr_find(1.0, 0.1)
