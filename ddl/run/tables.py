"""Tables for a terminal: a confusion matrix with the names of its classes, the rows of some predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddl.run.predictions import ColumnGroup, Predictions

WIDEST = 100  # columns of a matrix on a terminal
MOST_PAIRS = 10
LONGEST = 40  # characters of a cell


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """The matrix with a row for each true and a column for each predicted class; of many classes, the pairs that are
    confused most often."""
    labels = [_short(name, 12) for name in names]
    body = [[label, *map(str, row)] for label, row in zip(labels, matrix)]
    lines = _aligned([["true \\ predicted", *labels], *body])
    if len(lines[0]) <= WIDEST:
        return "\n".join(lines)
    counts = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    pairs = sorted(counts, key=lambda pair: -pair[0])[:MOST_PAIRS]
    if not pairs:
        return f"no sample of the {len(names)} classes is confused with another class"
    return "\n".join(_aligned([["true", "predicted", "samples"], *([names[i], names[j], str(n)] for n, i, j in pairs)]))


def table(predictions: Predictions) -> str:
    """The rows in columns. Of the probabilities of all classes, those of the target and of the label are shown."""
    columns: dict[str, list[str]] = {}
    for heading, column in predictions.columns.items():
        if not isinstance(column, ColumnGroup):
            if column.ndim > 1 and column.dtype.kind == "f":
                continue  # a reconstructed image, and the like
            columns[heading] = [_cell(value) for value in column]
        elif "label" in predictions.columns and len(column.names) > 2:
            for of in ("target", "label"):
                names = np.asarray(predictions.columns[of]).astype(str)
                places = [column.names.index(name) if name in column.names else -1 for name in names]
                columns[f"p({of})"] = [_cell(row[at]) if at >= 0 else "" for at, row in zip(places, column.values)]
        else:
            for name, values in zip(column.names, column.values.T):
                columns[f"{heading} {name}"] = [_cell(value) for value in values]
    return "\n".join(_aligned([list(columns), *map(list, zip(*columns.values()))]))


def _cell(value: object) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return _short(" ".join(map(str, np.ravel(value))) if isinstance(value, np.ndarray) else str(value), LONGEST)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
