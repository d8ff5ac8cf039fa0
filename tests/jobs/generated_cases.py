"""Small generated data sets: types and shapes of samples, kinds of labels and file formats, in all combinations.

What may happen to them is in generated_data.py."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

SPLIT = {"data.validation": 0.0, "data.test": 0.0}
TOKENS = {"data.normalize": "auto"}


@dataclass
class Case:
    """settings: of its job. arrays: x and y, for the Trainer. kind, classes, rows, width: what has to be read where it
    is read at all: the kind of the target, how many classes, how many samples of how many values; None: anything.
    is_plain: nothing is wrong with it, so it has to learn. refused: what an error has to say, of alternatives apart by
    "|"; "": it need not be refused."""

    text: str
    settings: dict[str, Any]
    arrays: tuple[Any, Any] | None = None
    kind: str | None = None
    classes: int | None = None
    rows: int | None = None
    width: int | None = None
    is_plain: bool = False
    refused: str = ""


# Labels: from a signal (rows,) to what is stored, the kind that it has to be read as, and the number of classes.


def _label_kinds(draw: Random, signal: np.ndarray) -> tuple[str, np.ndarray, str | None, int | None]:
    classes = draw.choice([2, 3, 5])
    number = np.searchsorted(np.quantile(signal, np.arange(1, classes) / classes), signal)
    names = np.array(["alpha", "beta", "gamma", "delta", "a longer name"])[:classes]
    spread = np.array([3, 17, 41, 60, 99])[:classes]
    kinds: dict[str, tuple[Callable[[], np.ndarray], str | None, int | None]] = {
        "class numbers": (lambda: number, "classes", classes),
        "class numbers as bytes": (lambda: number.astype(np.uint8), "classes", classes),
        "class numbers in a column": (lambda: number[:, None], "classes", classes),
        "class numbers from 1": (lambda: number + 1, "classes", None),
        "class numbers with gaps": (lambda: spread[number], "classes", None),
        "-1 and 1": (lambda: np.where(number > 0, 1, -1), "classes", 2),
        "truth values": (lambda: number > 0, "classes", 2),
        "texts": (lambda: names[number], "classes", classes),
        "texts of digits": (lambda: spread[number].astype(str), "classes", None),
        "one-hot whole": (lambda: np.eye(classes, dtype=int)[number], "classes", classes),
        "one-hot floats": (lambda: np.eye(classes)[number], "values", None),
        "several labels": (lambda: np.stack([number > 0, signal > 0.5, signal < -0.5], 1) * 1, "multilabel", None),
        "probabilities": (lambda: _softmax(np.outer(signal, np.arange(classes))), "values", None),
        "whole floats": (lambda: number * 1.0, "values", None),
        "values": (lambda: 2 * signal + 1, "values", None),
        "values in float32": (lambda: signal.astype(np.float32), "values", None),
        "two values": (lambda: np.stack([signal, -3 * signal], 1), "values", None),
        "large values": (lambda: 1e6 + 1e4 * signal, "values", None),
        "tiny values": (lambda: 1e-6 * signal, "values", None),
        "counts": (lambda: np.round(np.exp(signal + 3)).astype(int), None, None),
        "numbers of days": (lambda: np.round(1e5 * signal).astype(int), None, None),
        "one class": (lambda: np.zeros(len(signal), int), None, None),
        "one value": (lambda: np.full(len(signal), 2.5), "values", None),
        "padding alone": (lambda: np.full(len(signal), -1), None, None),
        "NaN in a target": (lambda: np.where(np.arange(len(signal)) == 1, np.nan, signal), None, None),
        "complex numbers": (lambda: signal + 1j, None, None),
        "objects": (lambda: np.array([None, *names[number][1:]], dtype=object), None, None),
    }
    name = draw.choice(sorted(kinds))
    make, kind, size = kinds[name]
    return name, make(), kind, size


def _softmax(x: np.ndarray) -> np.ndarray:
    shares = np.exp(x - x.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


# Samples: measured values that hold the signal, in many shapes and types.

SHAPES = ((4,), (1,), (), (12,), (6, 6), (6, 6, 1), (8, 8, 3), (3, 2, 2, 2))
TYPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float64": lambda x: x,
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "int8": lambda x: np.clip(x * 20, -128, 127).astype(np.int8),
    "int32": lambda x: (x * 1000).astype(np.int32),
    "int64": lambda x: (x * 1000).astype(np.int64),
    "uint8": lambda x: np.clip(x * 40 + 128, 0, 255).astype(np.uint8),
    "uint16": lambda x: np.clip(x * 4000 + 30000, 0, 65535).astype(np.uint16),
    "bool": lambda x: x > 0,
    "big-endian": lambda x: x.astype(">f4"),
    "column by column": lambda x: np.asfortranarray(x),
    "far from 0": lambda x: 1.7e9 + x,
    "NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.nan, x),
    "infinite": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.inf, x),
    "texts": lambda x: x.astype(str),
    "complex": lambda x: x + 1j,
}


def _samples(draw: Random, rows: int) -> tuple[str, np.ndarray, np.ndarray]:
    random = np.random.default_rng(draw.randrange(2**32))
    signal = random.normal(size=rows)
    shape = draw.choice(SHAPES)
    noise = random.normal(size=(rows, *shape)) * 0.3
    x = signal.reshape(rows, *([1] * len(shape))) + noise
    kind = draw.choice(["float64", "float32", *sorted(TYPES), *sorted(set(TYPES) - set(ODD_TYPES))])
    return kind, TYPES[kind](x), signal


# What cannot be trained on, or carries no information.
ODD_TYPES = ("NaN", "infinite", "texts", "complex")
ODD_LABELS = (
    *("one class", "one value", "padding alone", "NaN in a target", "complex numbers", "objects"),
    *("counts", "numbers of days", "large values", "tiny values"),
)


def _arrays(draw: Random, folder: Path, format: str) -> Case:
    rows = draw.choice([150] * 6 + [64, 33, 3, 2, 1])
    type_, x, signal = _samples(draw, rows)
    label, y, kind, classes = _label_kinds(draw, signal)
    settings: dict[str, Any] = {"model.name": draw.choice(["cnn" if x.ndim == 4 else "mlp", "linear"]), **SPLIT}
    is_plain = rows >= 33 and type_ not in ODD_TYPES and label not in ODD_LABELS
    if draw.random() < 0.2:
        settings["model.loss"] = draw.choice(["mse", "cross_entropy", "binary_cross_entropy"])
        kind, classes, is_plain = None, None, False
    if rows < 33:  # whatever they are, a few labels can be something else too
        kind = classes = None
    text = f"{format}: {rows} rows, x {type_} {x.shape[1:]}; y {label}; {settings}"
    case = Case(text, settings, None, kind, classes, rows, int(np.prod(x.shape[1:])), is_plain)
    if format == "Trainer":
        as_given = draw.choice(["arrays", "lists"])
        case.arrays = (x, y) if as_given == "arrays" else (x.tolist(), y.tolist())
        return case
    settings["data.path"] = str(folder / f"data.{format}")
    if format == "npz":
        save = draw.choice([np.savez, np.savez_compressed])
        if save is np.savez_compressed and type_ == "column by column" and not x.flags.c_contiguous:
            case.is_plain, case.refused = False, "compressed and stored column by column"
        names = draw.choice([("x", "y"), ("data", "target"), ("images", "labels")])
        save(folder / "data.npz", **dict(zip(names, (x, y), strict=True)))
    else:
        np.save(folder / "data.npy", x)
        np.save(folder / "targets.npy", y)
        settings["data.targets"] = str(folder / "targets.npy")
    return case


def _table(draw: Random, folder: Path, format: str) -> Case:
    rows, width = draw.choice([120, 120, 120, 40, 5, 1]), draw.choice([1, 3, 7])
    random = np.random.default_rng(draw.randrange(2**32))
    signal = random.normal(size=rows)
    x = np.round(signal[:, None] + 0.3 * random.normal(size=(rows, width)), 3)
    label, y, kind, classes = _label_kinds(draw, signal)
    if y.ndim > 1 or y.dtype.kind == "c":
        label, y, kind, classes = "texts", np.where(signal > 0, "yes", "no"), "classes", len(set(signal > 0))
    if kind == "classes" and rows >= 40:
        classes = len(set(y.tolist()))
    if rows < 40:
        kind = classes = None
    columns: list[list[str]] = [[f"{value:g}" for value in column] for column in x.T]
    names = [f"f{number}" for number in range(width)]
    cells = [str(value) for value in y.tolist()]
    case = Case("", {"model.name": "mlp", **SPLIT}, None, kind, classes, rows, width)
    case.is_plain = rows >= 40 and label not in ODD_LABELS
    delimiter = "\t" if format == "tsv" else draw.choice([",", ",", ";", "|"])
    header: list[str] | None = [*names, "label"]
    oddities = draw.choice([[], draw.sample(ODDITIES, 1), draw.sample(ODDITIES, 2), draw.sample(ODDITIES, 2)])
    end, start, decimal = "\n", "", "."
    for oddity in oddities:
        if oddity == "no header":
            header = None
        elif oddity == "years":
            header = [str(2000 + number) for number in range(width)] + ["label"]
            case.is_plain, case.rows = False, rows if rows >= 5 else None
        elif oddity == "index" and header is not None:
            columns, header = [list(map(str, range(rows))), *columns], [draw.choice(["", "Unnamed: 0", "id"]), *header]
            case.width = case.width if rows >= 10 else None
        elif oddity == "twice" and header is not None:
            header[-2] = header[0]
        elif oddity == "category":
            columns, case.width = [(["red", "blue"] * rows)[:rows], *columns], None
            header = None if header is None else ["colour", *header]
        elif oddity == "missing":
            columns[-1][rows // 2] = draw.choice(["", "?", "NA", "nan"])
            case.width = None
        elif oddity == "CRLF":
            end = "\r\n"
        elif oddity == "BOM":
            start = "\ufeff"
        elif oddity == "blank lines":
            end = end * 2
        elif oddity == "decimal comma":
            decimal = ","
            delimiter = ";" if delimiter == "," else delimiter
    if decimal == ",":
        columns = [[cell.replace(".", ",") for cell in column] for column in columns]
        cells = [cell.replace(".", ",") for cell in cells]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    if header is not None:
        writer.writerow(header)
    writer.writerows([*row, cell] for row, cell in zip(zip(*columns, strict=False), cells, strict=False))
    (folder / f"data.{format}").write_text(start + out.getvalue(), newline="")
    case.settings["data.path"] = str(folder / f"data.{format}")
    case.text = f"{format}: {rows} rows of {width}, delimiter {delimiter!r}; y {label}; {oddities}"
    return case


ODDITIES = (
    *("no header", "years", "index", "twice", "category", "missing"),
    *("CRLF", "BOM", "blank lines", "decimal comma"),
)


def _json_lines(draw: Random, folder: Path, format: str) -> Case:
    rows = draw.choice([90, 90, 20, 1])
    words = ["good fine great", "bad poor awful", "so so"]
    classes = draw.choice([2, 3, 3, 1])
    odd: list[Callable[[int], Any]] = [lambda k: k * 0.5, lambda k: None, lambda k: [k]]
    label = draw.choice([str, int, lambda k: f"class {k}", lambda k: k > 0] * 3 + odd)
    records = [{"text": f"{words[i % classes]} number {i % 7}", "label": label(i % classes)} for i in range(rows)]
    damage = draw.choice(["none", "none", "none", "half a line", "no label", "mixed labels", "unicode"])
    lines = [json.dumps(record) for record in records]
    if damage == "half a line":
        lines[-1] = lines[-1][:-9]
    elif damage == "no label":
        lines[-1] = json.dumps({"text": "nothing"})
    elif damage == "mixed labels":
        lines[-1] = json.dumps({"text": "nothing", "label": "other" if label is int else 7})
    elif damage == "unicode":
        lines[0] = json.dumps({**records[0], "text": "größer 見る \u2028 ende"}, ensure_ascii=False)
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"data.path": str(folder / "data.jsonl"), "model.name": draw.choice(["text", "rnn"]), **TOKENS}
    settings["data.options"] = {"length": 8}
    case = Case(f"jsonl: {rows} rows, labels such as {label(1)!r}, {damage}; {settings['model.name']}", settings)
    case.is_plain = label not in odd and damage in ("none", "unicode") and rows >= 20 and classes > 1
    if case.is_plain:
        case.kind, case.classes, case.rows = "classes", len({label(k) for k in range(classes)}), rows
    return case


def _text(draw: Random, folder: Path, format: str) -> Case:
    length, what = draw.choice([4000, 4000, 300, 9, 0]), draw.choice(["ascii", "utf-8", "one letter", "latin-1"])
    words = {"ascii": "the quick brown fox ", "utf-8": "größer als 見る ", "one letter": "a", "latin-1": "größer als "}
    text = (words[what] * length)[:length]
    (folder / "data.txt").write_bytes(text.encode("latin-1" if what == "latin-1" else "utf-8"))
    unit, model = draw.choice(["bytes", "characters"]), draw.choice(["rnn", "transformer", "mlp"])
    settings = {"data.path": str(folder / "data.txt"), "model.name": model, **TOKENS}
    settings["data.options"] = {"window": 8, "unit": unit}
    case = Case(f"text: {length} letters of {what} as {unit}; {model}", settings)
    case.is_plain = length >= 300 and model != "mlp" and (what != "latin-1" or unit == "bytes")
    return case


def _images(draw: Random, folder: Path, format: str) -> Case:
    what = draw.choice(["png", "idx", "cifar", "html", "damaged png"])
    random = np.random.default_rng(draw.randrange(2**32))
    rows = draw.choice([60, 60, 10])
    labels = random.integers(0, 3, rows).astype(np.uint8)
    pixels = np.clip(random.integers(0, 60, (rows, 8, 8)) + 80 * labels[:, None, None], 0, 255).astype(np.uint8)
    settings: dict[str, Any] = {"data.path": str(folder), "model.name": draw.choice(["cnn", "mlp"])}
    case = Case(f"images: {rows} as {what}; {settings['model.name']}", settings, is_plain=rows == 60)
    if what == "png":
        for number, (label, image) in enumerate(zip(labels, pixels, strict=True)):
            (folder / f"class {label}").mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"class {label}" / f"{number}.png")
    elif what == "damaged png":
        (folder / "cats").mkdir()
        (folder / "cats" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + pixels.tobytes())
        case.refused = "cannot be decoded"
    elif what == "html":
        (folder / "train-images-idx3-ubyte").write_text("<html><body>not found</body></html>")
        case.refused = "IDX"
    elif what == "idx":
        (folder / "train-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape) + pixels.tobytes()
        )
        (folder / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + rows.to_bytes(4, "big") + labels.tobytes())
        case.kind, case.classes, case.rows, case.width = "classes", 3, rows, 64
    else:
        images = np.zeros((rows, 1 + 3072), np.uint8)
        images[:, 0], images[:, 1:] = labels, 80 * labels[:, None]
        (folder / "data_batch_1.bin").write_bytes(images.tobytes())
        case.kind, case.classes, case.rows, case.width = "classes", 10, rows, 3072
    return case


FORMATS: dict[str, Callable[[Random, Path, str], Case]] = {
    "Trainer": _arrays,
    "npz": _arrays,
    "npy": _arrays,
    "csv": _table,
    "tsv": _table,
    "jsonl": _json_lines,
    "text": _text,
    "images": _images,
}


def make(seed: int, folder: Path) -> Case:
    """The data set of a seed, written into ``folder``."""
    draw = Random(seed)
    format = list(FORMATS)[seed % len(FORMATS)]
    return FORMATS[format](draw, folder, format)
