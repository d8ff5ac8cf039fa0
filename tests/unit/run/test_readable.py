"""What ``ddl.predict``, ``ddl.evaluate`` and ``ddl.load`` say about samples can be read by a person, and agrees."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

import ddl
from ddl import evaluate, predict
from ddl.checkpoint import Store
from ddl.errors import ConfigError, UserError
from ddl.output import SafeStream
from ddl.run.predictions import ColumnGroup, Predictions, write
from ddl.train.__main__ import main as train
from ddl.train.initial import choose_checkpoint

QUIET = ("--metrics.console_every_s=0", "--fault.tolerance=off", "--data.prefetch=0", "--train.epochs=6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """customers.csv, whose churn depends on age, and a run on it; texts.jsonl, and a run on it."""
    folder, rng = tmp_path_factory.mktemp("readable"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ages, plans = rng.integers(18, 80, 90), rng.choice(["basic", "pro, plus", "team"], 90)
        churn = np.where(ages > 50, "left", "kept")
        rows = [[f"C{i:03d}", *row] for i, row in enumerate(zip(ages, plans, churn))]
        with open("customers.csv", "w", newline="") as file:
            csv.writer(file).writerows([["name", "age", "plan", "churn"], *rows])
        words = ("--data.path=customers.csv", "--data.targets=churn", "--data.options.features=['age','plan']")
        assert train([*QUIET, "--data.source=files", *words, "--model.name=mlp", "--run.dir=table"]) == 0
        kinds = {"ham": ["meeting", "lunch"], "spam": ["buy", "cheap"]}
        lines = [{"text": " ".join(rng.choice(kinds[k], 4)), "label": k} for k in rng.choice(list(kinds), 60)]
        Path("texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        words = ("--data.path=texts.jsonl", "--data.normalize=none", "--model.name=text", "--optim.lr=0.05")
        assert train([*QUIET, "--data.source=files", *words, "--run.dir=text"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch, request):
    monkeypatch.chdir(folder)


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def said(capsys, door, *words, status=0):
    """(stdout, lines of stderr)"""
    capsys.readouterr()
    assert door(list(words)) == status
    captured = capsys.readouterr()
    return captured.out, captured.err.splitlines()


def test_every_format_holds_the_same_predictions(capsys):
    words = ("table", "--input", "customers.csv", "--id", "name")
    out, notes = said(capsys, predict.main, *words)
    assert notes == ["ddl.predict: newest checkpoint, step 6"]
    table = rows_of(out)
    assert list(table[0]) == ["name", "label", "probability_kept", "probability_left"]
    assert [row["name"] for row in table[:2]] == ["C000", "C001"] and len(table) == 90
    shares = np.array([[row["probability_kept"], row["probability_left"]] for row in table], float)
    labels = [row["label"] for row in table]
    assert np.allclose(shares.sum(axis=1), 1) and labels == [("kept", "left")[i] for i in shares.argmax(axis=1)]
    out, _ = said(capsys, predict.main, *words, "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert records[1] == {"name": "C001", "label": labels[1], "probability": dict(zip(("kept", "left"), shares[1]))}
    for name in ("out.csv", "out.npz"):
        assert name in said(capsys, predict.main, *words, "--output", name)[0]
    assert rows_of(Path("out.csv").read_text()) == table
    with np.load("out.npz") as arrays:
        assert arrays["label"].tolist() == labels and arrays["probability_names"].tolist() == ["kept", "left"]
        assert np.allclose(arrays["probability"], shares)
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert predict.main([*words, "--output", "out.parquet"]) == 0
    found = parquet.read_table("out.parquet").to_pydict()
    assert found["label"] == labels and np.allclose(found["probability_left"], shares[:, 1])
    out, _ = said(capsys, predict.main, *words, "--raw")
    logits = np.array([[row["output_kept"], row["output_left"]] for row in rows_of(out)], float)
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), shares, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("table",), "one of --input FILE, --text LINE"),
        (("table", "--input", "customers.csv", "--split", "test"), "exclude each other"),
        (("table", "--input", "customers.csv", "--output", "x.xlsx"), ".csv, .jsonl, .parquet, .npz or .npy"),
        (("table", "--input", "customers.csv", "--format", "jsnl"), "did you mean 'jsonl'?"),
        (("table", "--input", "customers.csv", "--format", "npz"), "name a file with --output FILE"),
        (("table", "--input", "customers.csv", "--output", "no/where.csv"), "there is no folder 'no'"),
        (("table", "--input", "customers.csv", "--output", "table"), "is a folder: name a file in it"),
        (("text", "--text", "buy cheap", "--text", " "), "--text '' holds no text"),
        (("table", "--input", "customers.csv", "--id", "nam"), "did you mean 'name'?"),
        (("table", "--text", "buy cheap"), "was not trained on lines of text"),
        (("text", "--input", "buy cheap"), "--text LINE takes a line of text"),
        (("table", "--input", "customers.csv", "--checkpoint", "nowhere"), "nowhere"),
        (("table", "--samples", "0"), "the fewest is 1"),
        (("table", "--samples", "2"), "draws no samples"),
    ],
)
def test_wrong_requests_are_one_line(words, says, capsys):
    capsys.readouterr()
    try:
        status = predict.main(list(words))
    except SystemExit as end:  # a wrong argument
        status = end.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and says in line, line


def test_a_line_of_text_is_answered(capsys):
    out, _ = said(capsys, predict.main, "text", "--text", "cheap buy", "--text", "lunch meeting")
    assert [row["label"] for row in rows_of(out)] == ["spam", "ham"]
    model = ddl.load("text")
    assert model.labels.tolist() == ["ham", "spam"]
    assert model.predict("cheap buy") == "spam" and model.predict(["lunch", "buy"]).tolist() == ["ham", "spam"]
    assert model.predict(Path("texts.jsonl")).tolist() == [
        json.loads(line)["label"] for line in Path("texts.jsonl").read_text().splitlines()
    ]


def test_a_loaded_model_answers_as_the_door_does(capsys, tmp_path):
    table = rows_of(said(capsys, predict.main, "table", "--input", "customers.csv")[0])
    model = ddl.load("table")
    assert "2 labels" in repr(model) and "newest checkpoint" in repr(model)
    with open("customers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"age": [int(row["age"]) for row in rows], "plan": [row["plan"] for row in rows], "extra": [0] * 90}
    shares = model.predict_proba(columns)
    assert np.allclose(shares[:, 1], [float(row["probability_left"]) for row in table], atol=1e-6)
    assert model.predict(columns).tolist() == [row["label"] for row in table]
    assert model.predict({"age": 20, "plan": "team"}) == "kept" and model.predict_proba(
        {"age": 79, "plan": "unseen"}
    ).shape == (2,)
    assert (
        model.write(columns, tmp_path / "p.csv").read_text()
        == "\n".join(",".join(row.values()) for row in [dict(zip(table[0], table[0])), *table]) + "\n"
    )
    cells = [[age, plan] for age, plan in zip(columns["age"], columns["plan"], strict=True)]
    assert np.array_equal(model.predict_proba(cells), shares)  # rows of cells, in the order of the columns
    assert model.predict(tuple(cells[0])) == table[0]["label"]
    saved = model.save(tmp_path / "copy")
    assert np.array_equal(ddl.load(saved).predict_proba(columns), shares)
    with pytest.raises(ConfigError, match="holds a run already"):
        model.save(saved)
    with pytest.raises(UserError, match="'plan'"):
        model.predict({"age": [3]})
    with pytest.raises(UserError, match=r"samples have the shape \(rows, "):
        model.predict(np.zeros((3, 1)))
    with pytest.raises(ConfigError, match=r"\.onnx or \.safetensors"):
        model.export(tmp_path / "model.pt")


def test_evaluation_shows_the_confusion_matrix_and_the_worst_samples_by_name(capsys):
    out, _ = said(capsys, evaluate.main, "table", "--split", "train", "--worst", "3")
    first, matrix, worst = out.split("\n\n")
    assert "accuracy" in first and "newest checkpoint, step 6" in first
    assert matrix.splitlines()[0].split() == ["true", "\\", "predicted", "kept", "left"]
    found = json.loads(said(capsys, evaluate.main, "table", "--split", "train", "--worst", "3", "--json")[0])
    assert found["classes"] == ["kept", "left"] and np.sum(found["confusion"]) == found["samples"]
    rows = rows_of(said(capsys, predict.main, "table", "--split", "train")[0])
    loss = {int(row["row"]): -np.log(float(row[f"probability_{row['target']}"])) for row in rows}
    largest = sorted(loss, key=lambda row: -loss[row])[:3]
    assert [row["row"] for row in found["worst"]] == largest
    assert [row["loss"] for row in found["worst"]] == pytest.approx([loss[row] for row in largest], rel=1e-3)
    assert [line.split()[0] for line in worst.splitlines()[2:]] == list(map(str, largest))
    assert np.mean(list(loss.values())) == pytest.approx(found["loss"], rel=1e-5)


def test_the_checkpoint_that_training_evaluated_at_its_end_is_the_default(tmp_path):
    store = Store(tmp_path / "checkpoints", keep=5)
    paths = [store.save(step, {"params/w": np.ones(2)}, {}, score) for step, score in ((1, -3.0), (2, -1.0), (3, -2.0))]

    def chosen(asked, final=None):
        summary = {"status": "finished", "launch": "x", **({} if final is None else {"final": {"checkpoint": final}})}
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        return choose_checkpoint(tmp_path, asked, store)

    assert chosen("final") == (None, "newest") == chosen("final", "newest") == chosen("newest", "best")
    assert chosen("final", "best") == (paths[1], "best") == chosen("best", "newest")
    assert chosen(paths[0].name, "best") == (paths[0], paths[0].name) == chosen(str(paths[0]))
    (tmp_path / "summary.json").write_text("{")
    assert choose_checkpoint(tmp_path, "final", store) == (None, "newest")


def test_numbers_keep_their_digits_and_a_failed_write_leaves_the_old_file(tmp_path):
    values = np.array([0.1, np.nan, 1e-30], np.float32)
    predictions = Predictions(
        {"row": np.arange(1, 4), "p": ColumnGroup(("a", "b"), np.stack([values, values], axis=1))}
    )
    path = tmp_path / "p.jsonl"
    write(predictions, str(path), "jsonl")
    assert json.loads(path.read_text().splitlines()[0]) == {"row": 1, "p": {"a": 0.1, "b": 0.1}}
    assert json.loads(path.read_text().splitlines()[1])["p"]["a"] is None
    write(predictions, str(tmp_path / "p.csv"), "csv")
    assert (tmp_path / "p.csv").read_text().splitlines()[1] == "1,0.1,0.1"
    before = path.read_bytes()
    with pytest.raises(IndexError):
        write(Predictions({"row": np.arange(2), "odd": ColumnGroup(("a", "b"), np.zeros(2))}), str(path), "csv")
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "p.jsonl"]


def test_a_reader_that_has_gone_ends_the_output_quietly(monkeypatch, capsys):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", SafeStream(Closed()))
    assert predict.main(["table", "--input", "customers.csv"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1  # the checkpoint


def test_rows_of_several_files_are_named_by_a_column_of_them(capsys, tmp_path):
    head, *lines = Path("customers.csv").read_text().splitlines(keepends=True)
    (tmp_path / "a.csv").write_text(head + "".join(lines[:20]))
    (tmp_path / "b.csv").write_text(head + "".join(lines[20:30]))
    out, _ = said(capsys, predict.main, "table", "--input", f"{tmp_path}/*.csv", "--id", "name")
    assert [row["name"] for row in rows_of(out)] == [f"C{i:03d}" for i in range(30)]


def test_messages_about_a_file_that_python_writes_name_no_option(folder):
    with pytest.raises(ConfigError, match=r"^x.xlsx: the name must end with .csv, .jsonl, .parquet, .npz or .npy$"):
        ddl.load("table").write("customers.csv", "x.xlsx")


def test_a_file_of_another_size_is_answered_by_a_model_of_arrays_of_images(folder, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 80)
    x = rng.integers(0, 100, (80, 16, 16)) + 120 * y[:, None, None]
    np.savez("images.npz", x=x.astype(np.uint8), y=np.array(["dark", "light"])[y])
    assert train([*QUIET, "--data.source=files", "--data.path=images.npz", "--model.name=mlp", "--run.dir=images"]) == 0
    image.new("RGB", (50, 30), (240, 230, 250)).save(tmp_path / "wide.png")
    out, _ = said(capsys, predict.main, "images", "--input", str(tmp_path / "wide.png"))
    assert [row["label"] for row in rows_of(out)] == ["light"]
    with image.open(tmp_path / "wide.png") as opened:
        assert ddl.load("images").predict(opened) == "light"


def test_damaged_images_that_are_left_out_are_counted(folder, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for name, grey in (("dark", 0), ("light", 200)):
        (tmp_path / name).mkdir()
        for number in range(20):
            image.new("L", (16, 16), grey + number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "dark" / "none.png").write_text("no image")
    words = [f"--data.path={tmp_path}", "--model.name=mlp", "--run.dir=pictures", "--data.damaged=skip"]
    assert train([*QUIET, "--data.source=files", *words]) == 0
    out, notes = said(capsys, predict.main, "pictures", "--input", str(tmp_path))
    assert len(rows_of(out)) == 40 and "1 of 41 images are damaged and left out" in notes[0]
    said(capsys, predict.main, "pictures", "--input", str(tmp_path), "--output", "named.npz")
    with np.load("named.npz") as arrays:  # one of them is called "file", as an argument of np.savez is
        assert len(arrays["file"]) == 40 and arrays["probability"].shape == (40, 2)
    _, notes = said(capsys, evaluate.main, "pictures", "--input", str(tmp_path))
    assert "1 of 41 images are damaged and left out" in notes[0]


def test_truth_values_of_python_fit_a_column_of_zeros_and_ones(folder):
    lines = [f"{i % 2},{'true' if i % 3 else 'false'},{'ab'[i % 2]}" for i in range(60)]
    Path("flags.csv").write_text("\n".join(["flag,member,y", *lines]))
    words = ("--data.path=flags.csv", "--data.targets=y", "--run.dir=flags")
    assert train([*QUIET, "--data.source=files", *words]) == 0
    model = ddl.load("flags")
    as_numbers = model.outputs({"flag": [0, 1], "member": ["true", "false"]})
    assert np.array_equal(model.outputs({"flag": [False, np.True_], "member": [True, False]}), as_numbers)
