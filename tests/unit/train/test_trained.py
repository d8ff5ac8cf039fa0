"""Predict with a trained run: new samples are read like its training data, which need not exist any more."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddl import evaluate, predict
from ddl.arrays import Device
from ddl.checkpoint import Store
from ddl.run import trained
from ddl.train.__main__ import main as train

QUIET = ("--metrics.console_every_s=0", "--fault.tolerance=off", "--run.dir=run", "--data.prefetch=0")
WORDS = {"spam": ["buy", "cheap", "pills", "now"], "ham": ["meeting", "report", "lunch", "tomorrow"]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_files(path, *words):
    assert train([*QUIET, "--data.source=files", f"--data.path={path}", *words]) == 0


def predicted(path, output="out.npy"):
    assert predict.main(["run", "--input", str(path), "--output", output, "--raw"]) == 0
    return np.load(output)


def evaluated(capsys, *words):
    capsys.readouterr()
    assert evaluate.main(["run", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, door, *words):
    """The one line that a door says, with status 2."""
    capsys.readouterr()
    assert door.main(["run", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_texts_are_numbered_as_in_training_with_any_other_columns(here, rng, capsys):
    lines = []
    for _ in range(200):
        kind = str(rng.choice(list(WORDS)))
        lines.append({"text": " ".join(rng.choice(WORDS[kind], 6)), "label": kind})
    (here / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train_files("train.jsonl", "--data.normalize=none", "--model.name=text", "--train.epochs=8", "--optim.lr=0.02")
    (here / "train.jsonl").rename(here / "same.jsonl")  # the training data are gone
    whole = predicted("same.jsonl")
    # Classes are numbered by name: ham, spam.
    assert (whole.argmax(axis=1) == [line["label"] == "spam" for line in lines]).all()
    # Without labels, fewer and in another order, as JSON and as plain lines: each text gets what it got before.
    pick = [7, 3, 150]
    (here / "new.jsonl").write_text("".join(json.dumps({"text": lines[i]["text"]}) + "\n" for i in pick))
    (here / "new.txt").write_text("".join(lines[i]["text"] + "\n" for i in pick))
    for name in ("new.jsonl", "new.txt"):
        assert np.allclose(predicted(name), whole[pick], rtol=1e-5, atol=1e-6)
    assert evaluated(capsys, "--input", "same.jsonl")["accuracy"] == 1
    assert "--input FILE" in refused(capsys, evaluate, "--split", "test")
    (here / "odd.jsonl").write_text('{"text": "buy", "label": "eggs"}\n')
    assert "eggs" in refused(capsys, evaluate, "--input", "odd.jsonl")
    assert "'label'" in refused(capsys, evaluate, "--input", "new.jsonl")
    assert "classes" in refused(capsys, evaluate, "--input", "new.txt")


def test_lines_of_a_source_without_files_come_as_plain_text(here):
    words = ["--data.source=stdlib_lines", '--data.options.packages=["json", "xml"]', "--data.normalize=none"]
    assert train([*QUIET, *words, "--model.name=text", "--train.epochs=2"]) == 0
    (here / "a.txt").write_text("import xml.dom.minidom\nreturn json.dumps(obj)\n")
    (here / "b.txt").write_text("return json.dumps(obj)\n")
    both, alone = predicted("a.txt"), predicted("b.txt")
    assert both.shape == (2, 2) and np.allclose(both[1], alone[0], rtol=1e-5, atol=1e-6)


@pytest.fixture
def table(here, rng):
    """A CSV file with its target, a class, in the first column; x (60, 3), and a run trained on it."""
    x = rng.normal(size=(60, 3)).round(3)
    names = np.where(x[:, 1] > 0, "up", "down")
    write_table(here / "train.csv", ["label", "a", "b", "c"], np.column_stack([names, x.astype(str)]))
    train_files("train.csv", "--data.targets=label", "--model.name=linear", "--train.epochs=3", "--train.dtype=float64")
    return x


def write_table(path, header, rows):
    lines = ([",".join(header)] if header else []) + [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def by_hand(x):
    """The outputs of the linear model, from its checkpoint."""
    arrays, meta = Store("run/checkpoints").load()
    known = meta["progress"]["normalise"]
    z = (x - known["mean"]) / known["scale"]
    (weight,) = (value for name, value in arrays.items() if name.startswith("params/") and name.endswith("weight"))
    (bias,) = (value for name, value in arrays.items() if name.startswith("params/") and name.endswith("bias"))
    return z @ weight + bias


def test_columns_are_matched_to_those_of_training(here, table, capsys):
    x, wanted = table, by_hand(table)
    assert np.allclose(predicted("train.csv"), wanted)
    found = evaluated(capsys, "--input", "train.csv")
    assert evaluated(capsys, "--input", "train.csv", "--targets", "label") == found
    truth = np.where(x[:, 1] > 0, 1, 0)  # down, up
    assert found["samples"] == 60 and found["accuracy"] == (wanted.argmax(axis=1) == truth).mean()
    (here / "train.csv").rename(here / "gone.csv")
    write_table(here / "features.csv", None, x)
    write_table(here / "named.csv", ["c", "note", "b", "a"], [[c, "?", b, a] for a, b, c in x])
    np.save("features.npy", x)
    for name in ("gone.csv", "features.csv", "named.csv", "features.npy"):
        assert np.allclose(predicted(name), wanted), name
    write_table(here / "two.csv", None, x[:, :2])
    assert "2 columns" in refused(capsys, predict, "--input", "two.csv", "--output", "out.npy")
    assert "3 columns" in refused(capsys, evaluate, "--input", "features.csv")
    np.save("y.npy", truth)
    assert evaluated(capsys, "--input", "features.npy", "--targets", "y.npy")["accuracy"] == found["accuracy"]
    assert "no targets" in refused(capsys, evaluate, "--input", "features.npy")
    assert "--targets" in refused(capsys, evaluate, "--targets", "y.npy")


def test_the_own_split_is_the_one_of_training(here, table, capsys):
    summary = json.loads((here / "run" / "summary.json").read_text())
    found = evaluated(capsys)
    assert {name: found[name] for name in ("loss", "accuracy", "samples")} == summary["test"]
    with open(here / "train.csv", "a") as file:
        file.write("up,1,2,3\n")
    assert "its data changed since training: there were" in refused(capsys, evaluate)


def test_a_checkpoint_of_before_asks_the_training_data(here, table):
    store = Store("run/checkpoints")
    arrays, meta = store.load()
    assert meta.pop("knowledge")
    store.save(999, arrays, meta)
    assert np.allclose(predicted("train.csv"), by_hand(table))


def test_an_autoencoder_answers_in_the_units_of_the_data(here, rng):
    x = 500 + 20 * rng.normal(size=(80, 4))
    np.save("x.npy", x)
    words = ["--model.name=autoencoder", "--model.options.hidden=[16]", "--model.options.code=4", "--optim.lr=0.01"]
    train_files("x.npy", *words, "--train.epochs=60", "--data.validation=0", "--data.test=0")
    assert np.abs(predicted("x.npy") - x).mean() < 10  # the mean alone would be 16 away, normalised values 500


TOKENS = ("--data.normalize=none", "--model.name=transformer", "--train.epochs=1")
SMALL = ("--model.options.layers=1", "--model.options.width=8", "--model.options.heads=2", "--data.options.window=8")


def test_a_model_of_tokens_continues_a_prompt_of_numbers(here, rng, capsys):
    rng.integers(0, 300, 2000).astype("<u2").tofile("t.bin")
    train_files("t.bin", *TOKENS, *SMALL, "--data.format=tokens", "--data.options.vocabulary=300")
    capsys.readouterr()
    assert predict.main(["run", "--prompt", "17 4", "--tokens", "5"]) == 0
    numbers = [int(word) for word in capsys.readouterr().out.split()]
    assert numbers[:2] == [17, 4] and len(numbers) == 7 and max(numbers) < 300
    assert "numbers" in refused(capsys, predict, "--prompt", "def main")
    assert "299" in refused(capsys, predict, "--prompt", "300")


def test_characters_are_numbered_as_in_training(here, capsys):
    (here / "t.txt").write_text("abcd " * 400)
    train_files("t.txt", *TOKENS, *SMALL, "--data.options.unit=characters")
    (here / "t.txt").unlink()
    capsys.readouterr()
    assert predict.main(["run", "--prompt", "ab", "--tokens", "6", "--temperature", "0"]) == 0
    printed = capsys.readouterr().out.rstrip("\n")
    assert printed.startswith("ab") and set(printed) <= set("abcd \N{REPLACEMENT CHARACTER}")
    (here / "new.txt").write_text("dcba " * 4)
    (here / "more.txt").write_text("dcba " * 4 + "xyz!" * 5)
    assert np.allclose(predicted("more.txt")[:2], predicted("new.txt")[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("asked", "wanted"), [("auto", [("auto", 0)]), ("cpu", [])])
def test_outputs_are_computed_where_training_computed(here, table, monkeypatch, asked, wanted):
    asked_for = []
    monkeypatch.setattr(trained, "device", lambda kind, rank: asked_for.append((kind, rank)) or Device())
    config = here / "run" / "config.toml"
    config.write_text(config.read_text().replace('device = "auto"', f'device = "{asked}"'))
    predicted("train.csv")
    assert asked_for == wanted
