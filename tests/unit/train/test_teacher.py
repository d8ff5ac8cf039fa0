"""A model learns from the answers of a finished run: each as if that run had answered the sample alone."""

from __future__ import annotations

import numpy as np
import pytest

from ddl.arrays import Device
from ddl.comm.threads import run_ranks
from ddl.config import Job, override
from ddl.data import Normalise
from ddl.errors import ConfigError
from ddl.train.__main__ import main as train
from ddl.train.build import build_task
from ddl.train.loop import Loop
from ddl.train.state import TrainingState

QUIET = ("--metrics.console_every_s=0", "--fault.tolerance=off", "--data.prefetch=0", "--train.dtype=float64")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    words = ("--model.name=mlp", "--model.options.hidden=[16]", "--train.steps=6")
    assert train([*QUIET, *words, f"--run.dir={folder}"]) == 0
    return str(folder)


def student(teacher, **settings):
    words = {"model.name": "linear", "model.teacher": teacher, "train.dtype": "float64", "train.steps": 5}
    return build_task(override(Job(), {**words, **{name.replace("__", "."): v for name, v in settings.items()}}))


def test_an_answer_is_computed_once_and_again_by_the_next_owner_of_its_shard(teacher, monkeypatch):
    source = student(teacher).train
    asked = []
    answer = source.teacher.answers
    monkeypatch.setattr(source.teacher, "answers", lambda batch: asked.append(len(batch["x"])) or answer(batch))
    source.hold([range(40, 60), range(10, 20)])
    first = source.gather(np.array([59, 12, 40]))["teacher"]
    again = source.gather(np.array([12, 13, 59]))["teacher"]
    assert asked == [3, 1] and np.array_equal(first[[1, 0]], again[[0, 2]])
    source.hold([range(50, 70)])
    np.testing.assert_allclose(source.gather(np.array([59, 60]))["teacher"][0], first[0], rtol=1e-12)
    assert asked == [3, 1, 2]


def test_augmented_samples_are_answered_as_they_were_augmented(teacher):
    plain, augmented = student(teacher).train, student(teacher, data__augment=["shift:1"])
    augmented.train.hold([range(4)])
    batch = augmented.train.gather(np.arange(4))
    own = Normalise([3.0], [2.0])
    seen = own({name: np.array(value) for name, value in batch.items()})
    plain.hold([range(4)])
    found = augmented.teacher.after([own])(seen, [], [])["teacher"]
    np.testing.assert_allclose(found, plain.gather(np.arange(4))["teacher"], rtol=1e-9)


def test_two_ranks_learn_what_one_learns(teacher):
    def learned(group):
        task = student(teacher, data__shards=4)
        loop = Loop(task, group, Device(), TrainingState(task.model, task.optimizer.slots, task.dtype, 0, Device()))
        assert loop.train() is None
        loop.close()
        return np.array(loop.state.params.flat)

    (one,), two = run_ranks(1, learned), run_ranks(2, learned)
    np.testing.assert_allclose(two[0], one, rtol=1e-9, atol=1e-12)
    assert np.array_equal(*two)


def test_a_teacher_of_other_samples_or_of_no_classes_is_refused(teacher, tmp_path):
    with pytest.raises(ConfigError, match=r"learned from other data: .*the classes were 0, 1"):
        student(teacher, data__source="stdlib_lines", model__name="text")
    with pytest.raises(ConfigError, match=r"needs a network of ddl\.nn and loss cross_entropy"):
        student(teacher, model__name="autoencoder")
    with pytest.raises(ConfigError, match="is not a run's folder"):
        student(str(tmp_path))
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(ConfigError, match="no checkpoint"):
        student(str(tmp_path))
