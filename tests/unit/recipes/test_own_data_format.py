"""Recipe: a data format. An opener from outside the package, entered in the registry, reads the training data."""

from __future__ import annotations

import numpy as np
import pytest

from ddl.data import FORMATS, Field, Source, open_dataset
from ddl.errors import DataError


class Points(Source):
    """A text file of "label: number number ..." lines; each rank keeps only the lines of its shards."""

    def __init__(self, path):
        self.lines = path.read_text().splitlines()
        for number, line in enumerate(self.lines, 1):
            if ":" not in line:
                raise DataError("a line without a label", path, number, "line")
        self.width = len(self.lines[0].split()) - 1
        self.held = {}

    @property
    def fields(self):
        return {"x": Field((self.width,), np.dtype(np.float64)), "y": Field((), np.dtype(np.int64), size=2)}

    def __len__(self):
        return len(self.lines)

    def hold(self, ranges):
        self.held = {i: self.lines[i].partition(":") for r in ranges for i in r}

    def gather(self, indices):
        rows = [self.held[i] for i in indices.tolist()]
        return {
            "x": np.array([numbers.split() for _, _, numbers in rows], np.float64),
            "y": np.array([label for label, _, _ in rows], np.int64),
        }


def open_points(paths, request):
    return Points(paths[0])


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "points", open_points)
    x = np.random.default_rng(2).normal(size=(60, 4))
    path = tmp_path / "train.points"
    path.write_text("".join(f"{int(row[0] > row[1])}: {' '.join(map(str, row))}\n" for row in x))
    return path


def read(path):
    parts = open_dataset("files", path=str(path), format="points", validation=0.0, test=0.0, dtype="float64")
    return parts.train


def test_training_reads_the_own_format_on_one_rank_and_on_three(file, trained):
    # Each rank opens the file itself, as processes would: sources hold what their own rank needs.
    [(alone, results)] = trained(1, source=lambda: read(file))
    assert results["accuracy"] > 0.85
    for params, _ in trained(3, source=lambda: read(file)):
        np.testing.assert_allclose(params, alone, rtol=1e-9, atol=1e-12)


def test_a_damaged_file_of_the_own_format_is_refused_with_its_line(file):
    file.write_text("0: 1 2 3 4\n1 5 6 7 8\n")
    with pytest.raises(DataError, match="line 2"):
        read(file)
