"""Data that every machine has: a straight line with noise, and the source code of Python's standard library.

The bundled digits are in digits.py."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddl.arrays import generator
from ddl.data.formats.corpus import Windows, open_text
from ddl.data.formats.labelled_text import LabelledText, TextList
from ddl.data.memory import Arrays
from ddl.errors import ConfigError, DataError

# Packages that every Python installation has, each with enough source lines.
PACKAGES = ("asyncio", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest", "urllib", "xml")
LEAST_LINE = 20  # characters: shorter lines ("return None", "else:") occur in every package
LEAST_FILE = 4096  # bytes
HELD_OUT_EVERY = 12  # files


def linear(
    samples: int = 1000,
    weights: float | Sequence[float] = 3.0,
    bias: float = 2.0,
    noise: float = 0.1,
    seed: int = 0,
) -> Arrays:
    """x (inputs,) standard normal, y (1,) = weights . x + bias + noise. One weight per input."""
    slope = np.atleast_1d(np.asarray(weights, np.float64))
    if samples < 1 or slope.ndim != 1:
        raise ConfigError(f"linear data of {samples} samples with weights {weights}")
    draw = generator(seed, "linear")
    x = draw.standard_normal((samples, len(slope)))
    y = x @ slope + bias + noise * draw.standard_normal(samples)
    return Arrays(x, y[:, None])


def diabetes() -> Arrays:
    """442 patients: x (10,) scaled measurements, y (1,) progression of the disease a year later. Needs scikit-learn."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ConfigError("source 'diabetes' needs scikit-learn") from error
    x, y = load_diabetes(return_X_y=True)
    return Arrays(x, y[:, None])


def library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_lines(
    packages: Sequence[str] = PACKAGES,
    lines_per_package: int = 1500,
    length: int = 32,
    vocabulary: int = 10_000,
    hashed: bool = False,
) -> LabelledText:
    """Classify lines of source code by their package of the standard library.

    Lines that occur more than once are left out, so no line of the training part is in the other parts. At most
    ``lines_per_package`` lines of each package, drawn by a fixed key."""
    places: dict[str, int] = {}
    repeated: set[str] = set()
    for number, package in enumerate(packages):
        for path in _sources(library() / package):
            for raw in path.read_text(encoding="utf-8", errors="replace").splitlines():
                line = raw.strip()
                if len(line) < LEAST_LINE:
                    continue
                if line in places:
                    repeated.add(line)
                places[line] = number
    by_package: list[list[str]] = [[] for _ in packages]
    for line, number in places.items():
        if line not in repeated:
            by_package[number].append(line)
    texts, classes = [], []
    for number, lines in enumerate(by_package):
        if not lines:
            raise DataError(f"no sources of the package {packages[number]!r}", library())
        order = generator(0, f"stdlib-lines {packages[number]}").permutation(len(lines))
        for place in sorted(order[:lines_per_package].tolist()):
            texts.append(lines[place])
            classes.append(number)
    return LabelledText(TextList(texts, classes, packages), length=length, vocabulary=vocabulary, hashed=hashed)


def _sources(folder: Path) -> list[Path]:
    """The Python files below a folder without tests, in the order of their names."""
    found = (path for path in folder.rglob("*.py") if not {"test", "tests"} & set(path.parts[len(folder.parts) :]))
    return sorted(found)


def stdlib_files(limit_mib: float = 4.0) -> dict[str, list[Path]]:
    """Modules of the standard library for language modelling: training, validation and test files.

    Every twelfth file is held out for each; ``limit_mib`` bounds all of them together."""
    found = [path for path in sorted(library().glob("*.py")) if path.stat().st_size >= LEAST_FILE]
    for package in PACKAGES:
        found += [path for path in _sources(library() / package) if path.stat().st_size >= LEAST_FILE]
    order = generator(0, "stdlib-text").permutation(len(found))
    parts: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    left = limit_mib * 2**20
    for number, place in enumerate(order.tolist()):
        path = found[place]
        left -= path.stat().st_size
        if left < 0:
            break
        parts[{5: "validation", 11: "test"}.get(number % HELD_OUT_EVERY, "train")].append(path)
    if not all(parts.values()):
        raise DataError(f"too few files within {limit_mib} MiB to hold any out", library())
    return parts


def stdlib_text(window: int = 128, limit_mib: float = 4.0, unit: str = "bytes") -> dict[str, Windows]:
    """The sources of the standard library as text to predict, in files held out for validation and test."""
    return {part: open_text(paths, window, unit) for part, paths in stdlib_files(limit_mib).items()}
