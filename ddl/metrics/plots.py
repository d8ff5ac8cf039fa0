"""Plots: curves of a run's metrics, a confusion matrix, a grid of images.

The only module that imports matplotlib. The caller chooses the images of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddl.metrics.console import is_share

_DPI = 120


def has_matplotlib() -> bool:
    """Whether matplotlib is installed (extra: plot)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def curves(events: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Plot the loss and the other metrics of training and validation over the steps; None if there are none.

    events: the lines of metrics.jsonl. If a step occurs more than once, since training resumed from an older
    checkpoint, the last line counts."""
    steps = {e["step"]: e for e in events if e.get("event") == "step" and e.get("loss") is not None}
    epochs = {e["step"]: e for e in events if e.get("event") == "epoch"}
    if not steps:
        return None
    names = [n for n in _figures(next(iter(steps.values()))) if n not in _NO_CURVE] or ["loss"]
    figure, axes = _figure(len(names), 1)
    for axis, name in zip(axes, names, strict=True):
        own = [(step, e[name]) for step, e in sorted(steps.items()) if isinstance(e.get(name), (int, float))]
        axis.plot(*zip(*own, strict=True), color="tab:blue", alpha=0.3, linewidth=0.8, label="step")
        for part, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
            found = [(step, e[part][name]) for step, e in sorted(epochs.items()) if _is_number(e.get(part), name)]
            if found:
                axis.plot(*zip(*found, strict=True), color=colour, marker=".", label=part)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        if is_share(name):
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        elif _spans_decades([value for line in axis.lines for value in line.get_ydata()]):
            axis.set_yscale("log")  # otherwise the first steps dominate the axis
    axes[0].legend()
    axes[-1].set_xlabel("step")
    return _save(figure, path)


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


_NO_CURVE = ("step", "epoch", "lr", "samples", "seconds", "gradient_norm", "time")


def _figures(event: Mapping[str, Any]) -> list[str]:
    found = [name for name, value in event.items() if isinstance(value, float) or name == "loss"]
    return sorted(found, key=lambda name: name != "loss")


def _is_number(values: Mapping[str, Any] | None, name: str) -> bool:
    return bool(values) and isinstance((values or {}).get(name), (int, float))


def confusion(matrix: Sequence[Sequence[float]], names: Sequence[str], path: Path) -> Path:
    """Plot how often each class (row) was predicted as each other (column): colours by row, numbers where they fit."""
    size = len(matrix)
    labels = list(names) if len(names) == size else [str(i) for i in range(size)]
    shares = [[cell / (sum(row) or 1) for cell in row] for row in matrix]
    side = max(4.0, 0.45 * size)
    figure, (axis,) = _figure(1, 1, side, side)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if size <= 30:
        for i, row in enumerate(matrix):
            for j, cell in enumerate(row):
                if cell:
                    colour = "white" if shares[i][j] > 0.5 else "black"
                    axis.text(j, i, f"{cell:g}", ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(size), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    axis.set_yticks(range(size), labels)
    axis.set_xlabel("taken for")
    axis.set_ylabel("is")
    right, total = sum(matrix[i][i] for i in range(size)), sum(map(sum, matrix))
    axis.set_title(f"{right:g} of {total:g} right", fontsize=10)
    return _save(figure, path)


def grid(images: Any, path: Path, columns: int = 8, title: str = "", scale: tuple[float, float] | None = None) -> Path:
    """Images (count, height, width) or (count, height, width, channels) side by side, row by row; one scale for all.

    scale: the values of white and black, default: the least and the largest there are."""
    count = len(images)
    rows = -(-count // columns)
    low, high = scale or (float(images.min()), float(images.max()))
    figure, axes = _figure(rows, columns, columns * 0.8, rows * 0.8 + (0.3 if title else 0.0))
    if title:
        figure.suptitle(title, fontsize=10)
    for place, axis in enumerate(axes):
        axis.axis("off")
        if place < count:
            image = images[place]
            if image.ndim == 3 and image.shape[-1] == 1:
                image = image[..., 0]
            if image.ndim == 3:
                image = ((image - low) / ((high - low) or 1.0)).clip(0, 1)
            axis.imshow(image, cmap="gray_r", vmin=low, vmax=high)
    return _save(figure, path)


def learning_rates(rates: Sequence[float], losses: Sequence[float], suggestion: float, path: Path) -> Path:
    """Plot the loss over the learning rate of a search, and its suggestion."""
    figure, (axis,) = _figure(1, 1, 7.0, 4.0)
    axis.plot(rates, losses, color="tab:blue")
    axis.axvline(suggestion, color="tab:orange", linestyle="--", label=f"suggestion {suggestion:.2g}")
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss (smoothed)")
    axis.set_title("Search for a learning rate", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    return _save(figure, path)


def _figure(rows: int, columns: int, width: float = 7.0, height: float = 0.0) -> tuple[Any, list[Any]]:
    # Without pyplot, matplotlib neither needs a display nor keeps global state in the user's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height or 1 + 2.2 * rows), dpi=_DPI, layout="tight")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path)
    return path
