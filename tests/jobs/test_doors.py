"""A trained run: evaluated, asked for outputs, continued by another job and drawn, alone and on several ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddl.data import digits

QUICK = ("--train.epochs=4", "--model.options.hidden=[32]")


def figures(summary):
    return {name: value for name, value in summary["test"].items() if name != "loss"}


def test_metrics_by_name_are_exact_at_any_number_of_ranks(train):
    metrics = '["accuracy", "top3", "precision", "recall", "f1", "confusion"]'
    words = (*QUICK, "--train.dtype=float64", f"--model.metrics={metrics}")
    tests = [train("mlp", ranks, *words, name=f"on-{ranks}").summary["test"] for ranks in (1, 3)]
    one, three = tests
    assert one["confusion"] == three["confusion"]
    assert one["loss"] == pytest.approx(three["loss"], rel=1e-9)
    # The confusion matrix is the oracle of what follows from it.
    matrix = np.array(one["confusion"], float)
    right, decided, truth = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    assert matrix.sum() == one["samples"]
    for test in tests:
        assert test["accuracy"] == pytest.approx(right.sum() / matrix.sum())
        assert test["recall"] == pytest.approx((right / truth).mean())
        assert test["precision"] == pytest.approx(np.divide(right, decided, where=decided > 0, out=right * 0).mean())
        assert test["f1"] == pytest.approx((2 * right / (decided + truth)).mean())
        assert test["top3"] >= test["accuracy"]


def test_evaluate_and_predict_agree_with_training_on_any_ranks(train, door, tmp_path):
    ended = train("mlp", 2, *QUICK, "--train.epochs=10")
    truth = figures(ended.summary)
    for ranks in (0, 2, 3):
        done = door(["-m", "ddl.evaluate", ended.folder, "--json"], ranks)
        assert done.status == 0, done.said
        found = json.loads(done.out)
        assert figures({"test": {name: found[name] for name in truth}}) == truth
        assert found["loss"] == pytest.approx(ended.summary["test"]["loss"], rel=1e-5)
        assert found["step"] == ended.summary["steps"]
    pictures = digits()
    np.save(tmp_path / "x.npy", pictures.arrays["x"][:101])
    outputs = []
    for ranks in (0, 3):
        words = ["-m", "ddl.predict", ended.folder, "--input", "x.npy", "--output", "y.npy"]
        done = door(words, ranks)
        assert done.status == 0 and "101 predictions" in done.out, done.said
        outputs.append(np.load(tmp_path / "y.npy"))
    assert outputs[0].shape == (101, 10) and np.allclose(*outputs, rtol=1e-5, atol=1e-5)
    assert (outputs[0].argmax(axis=1) == pictures.arrays["y"][:101]).mean() > 0.85


def test_texts_are_numbered_as_in_training_on_any_ranks_though_its_file_is_gone(train, door, rng, tmp_path):
    kinds = {"ham": ["meeting", "report", "lunch"], "spam": ["buy", "cheap", "pills"]}
    lines = []
    for _ in range(150):
        label = str(rng.choice(list(kinds)))
        lines.append({"text": " ".join(rng.choice(kinds[label], 5)), "label": label})
    data, fresh = tmp_path / "train.jsonl", tmp_path / "new.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ("--data.source=files", f"--data.path={data}", "--data.options={}")
    ended = train("text", 2, *files, "--train.epochs=8", "--train.global_batch=30", "--optim.lr=0.02")
    assert ended.summary["test"]["accuracy"] == 1
    data.rename(tmp_path / "gone.jsonl")
    fresh.write_text("".join(json.dumps({"text": line["text"]}) + "\n" for line in lines[90:20:-1]))
    for ranks in (0, 2):
        done = door(["-m", "ddl.predict", ended.folder, "--input", fresh, "--output", "y.npy"], ranks)
        assert done.status == 0, done.said
        found = np.load(tmp_path / "y.npy").argmax(axis=1)
        assert found.tolist() == [line["label"] == "spam" for line in lines[90:20:-1]]
        done = door(["-m", "ddl.evaluate", ended.folder, "--input", "gone.jsonl", "--json"], ranks)
        assert done.status == 0 and json.loads(done.out)["accuracy"] == 1, done.said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ddl.evaluate", "nowhere"], "nowhere"),
        (["ddl.evaluate", "RUN", "--input", "none.npy"], "none.npy"),
        (["ddl.predict", "RUN"], "--input"),
        (["ddl.predict", "RUN", "--input", "none.npy", "--output", "y.npy"], "none.npy"),
        (["ddl.predict", "RUN", "--prompt", "def"], "language model"),
        (["ddl.predict", "RUN", "--samples", "3", "--output", "y.npy"], "draws no samples"),
        (["ddl.predict", "RUN", "--samples", "3", "--format", "npz"], "--output"),
    ],
)
def test_doors_refuse_in_one_line(shared_run, door, words, says):
    done = door(["-m", *(str(shared_run) if word == "RUN" else word for word in words)])
    assert done.status == 2 and says in done.said, done.said
    assert len(done.said.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory):
    """One trained run for tests that only look at it."""
    from ddl.train.__main__ import main

    folder = tmp_path_factory.mktemp("shared") / "run"
    words = ["--model.name=mlp", "--train.epochs=1", f"--run.dir={folder}", "--metrics.console_every_s=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        assert main([*words, "--fault.tolerance=off"]) == 0
    return folder


def test_training_starts_from_a_run_by_name_and_freezes_by_pattern(train):
    first = train("mlp", 2, *QUICK, "--train.epochs=10", name="first")
    source = f"--model.from={first.folder}"
    again = train("mlp", 2, *QUICK, source, "--train.epochs=1", "--optim.lr=1e-6", name="again")
    assert again.summary["test"]["accuracy"] >= first.summary["test"]["accuracy"] - 0.01  # not from scratch
    frozen = train("mlp", 2, *QUICK, source, "--train.epochs=1", '--model.freeze=["*"]', name="frozen")
    assert frozen.summary["parameters_sha256"] == first.summary["parameters_sha256"]


def test_parameters_that_do_not_match_are_rejected_or_reported(train):
    first = train("mlp", 1, *QUICK, name="first")
    words = ("--train.epochs=1", "--model.options.hidden=[32, 16]", f"--model.from={first.folder}")
    refused = train("mlp", 2, *words, name="refused")
    assert refused.status == 2 and "strict" in refused.said and "shape" in refused.said
    assert len([line for line in refused.said.splitlines() if line.startswith("ddl.train")]) == 1
    partial = train("mlp", 2, *words, "--model.strict=false", name="partial")
    assert partial.summary["steps"] > 0
    warned = [json.loads(line) for line in (partial.folder / "metrics.jsonl").read_text().splitlines()]
    messages = [line["message"] for line in warned if line["event"] == "warning" and "model.from" in line["message"]]
    assert len(messages) == 1 and "arrays were taken" in messages[0] and "shape" in messages[0]


def test_training_ends_when_it_no_longer_helps(train):
    words = ("--train.epochs=200", "--train.patience=2", "--optim.schedule=constant", "--metrics.console_every_s=60")
    ended = train("mlp", 2, *QUICK, *words)
    summary, final = ended.summary, ended.summary["final"]
    assert summary["epochs"] < 200 and "2 evaluations" in summary["stopped_early"]
    assert summary["test"]["accuracy"] > 0.9
    lines = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation"]["loss"] for line in lines if line["event"] == "epoch"}
    assert final["checkpoint"] == "best" and final["step"] == min(losses, key=losses.get) < summary["steps"]
    assert "stopped early" in ended.said and "its state is restored" in ended.said


RARE = ("--data.source=own_rare:rare", "--data.augment=[]", *QUICK)


@pytest.fixture
def rare(tmp_path):
    """A source in which one class of three is rare, and how to find it."""
    (tmp_path / "own_rare.py").write_text(
        "import numpy as np\n"
        "from ddl.data import Arrays\n"
        "def rare():\n"
        "    g = np.random.default_rng(5)\n"
        "    y = np.repeat([0, 1, 2], [400, 380, 40])\n"
        "    return Arrays(g.standard_normal((820, 6)) + 0.9 * np.eye(3, 6)[y], y)\n"
    )


@pytest.mark.parametrize("ranks", [1, 3])
def test_oversampling_shows_rare_classes_as_often_and_the_ledger_stays_exact(train, rare, ranks):
    plain = train("mlp", ranks, *RARE, '--model.metrics=["accuracy", "confusion"]', name="plain").summary
    even = train("mlp", ranks, *RARE, '--model.metrics=["accuracy", "confusion"]', "--data.oversample=1").summary
    assert even["samples"]["used"] > plain["samples"]["used"]
    per_epoch = even["samples"]["used"] / even["epochs"]
    assert per_epoch % 3 == 0  # three classes of one size, and each of these samples once per epoch
    assert even["test"]["samples"] == plain["test"]["samples"]  # what is held out stays as it is
    found = [np.array(summary["test"]["confusion"])[2, 2] for summary in (plain, even)]
    assert found[1] > found[0]


def test_balanced_class_weights_find_more_of_a_rare_class(train, rare):
    words = (*RARE, '--model.metrics=["accuracy", "confusion"]')
    plain = train("mlp", 2, *words, name="plain").summary
    even = train("mlp", 2, *words, "--model.options.loss.class_weights=balanced").summary
    found = [np.array(summary["test"]["confusion"])[2, 2] for summary in (plain, even)]
    assert found[1] > found[0]


def test_pictures_of_a_run(train):
    pytest.importorskip("matplotlib")
    words = ("--metrics.plots=true", "--train.epochs=2")
    drawn = {
        "mlp": ["confusion.png", "curves.png"],
        "autoencoder": ["curves.png", "reconstructions.png"],
        "gan": ["curves.png", "samples.png"],
    }
    for job, pictures in drawn.items():
        ended = train(job, 2, *words, name=job)
        assert ended.summary and sorted(path.name for path in ended.folder.glob("*.png")) == pictures, ended.said
        for name in pictures:
            assert (ended.folder / name).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_one_warning_and_no_picture(train, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not installed')\n")
    ended = train("mlp", 2, "--metrics.plots=true", "--train.epochs=1", environ={"PYTHONPATH": _path(tmp_path)})
    assert ended.summary and not list(ended.folder.glob("*.png"))
    lines = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["message"] for line in lines if line["event"] == "warning" and "matplotlib" in line["message"]] == [
        "metrics.plots: no pictures, matplotlib is not installed (extra: plot)"
    ]


def _path(folder):
    from pathlib import Path

    return f"{folder}:{Path(__file__).parents[2]}"
