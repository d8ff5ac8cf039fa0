"""Plots: curves of a run's metrics, a confusion matrix, a grid of images.

The only module that imports matplotlib. The caller chooses the images of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddl.metrics.console import is_share
from ddl.wording import counted

_DPI = 120


@dataclass(frozen=True)
class Look:
    """The colours of a plot."""

    paper: str
    text: str
    dim: str
    grid: str
    first: str  # training
    second: str  # validation
    good: str
    bad: str


THEMES = {
    "light": Look("#ffffff", "#1b2027", "#5b6470", "#e6e9ed", "#2563eb", "#dd6b20", "#15803d", "#d1293d"),
    "dark": Look("#14181f", "#e6e9ee", "#98a2af", "#2a313b", "#6ea0ff", "#f6a35c", "#4ade80", "#ff6b7a"),
}


def has_matplotlib() -> bool:
    """Whether matplotlib is installed (extra: plot)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def curves(events: Sequence[Mapping[str, Any]], path: Path, theme: str = "light", title: str = "") -> Path | None:
    """Plot the metrics of training and validation and the learning rate over the steps, with the failures and the best
    epoch marked; None if there is no step.

    events: the lines of metrics.jsonl. If a step occurs more than once, since training resumed from an older
    checkpoint, the last line counts. title: default: the run's name."""
    steps = {e["step"]: e for e in events if e.get("event") == "step" and e.get("loss") is not None}
    epochs = {e["step"]: e for e in events if e.get("event") == "epoch"}
    if not steps:
        return None
    look = THEMES[theme]
    names = [n for n in _figures(next(iter(steps.values()))) if n not in _NO_CURVE] or ["loss"]
    has_lr = any(_is_number(e, "lr") for e in steps.values())
    heights = [2.6] * len(names) + [1.2] * has_lr
    figure, axes = _figure(len(heights), 1, look, 8.0, 0.8 + sum(heights), heights)
    for axis, name in zip(axes, names):
        _draw_metric(axis, name, steps, epochs, look)
    if has_lr:
        rates = [(step, e["lr"]) for step, e in sorted(steps.items()) if _is_number(e, "lr")]
        axes[-1].plot(*zip(*rates), color=look.second, linewidth=1.4)
        axes[-1].set_ylabel("learning rate")
        axes[-1].set_ylim(bottom=0, top=1.1 * max(rate for _, rate in rates) or 1.0)
    recoveries = [e for e in events if e.get("event") == "recovery"]
    failures = [e for e in events if e.get("event") == "failure"]
    for place, axis in enumerate(axes):
        axis.set_xlim(min(steps) - 0.5, max(max(steps), min(steps) + 1))
        axis.label_outer()
        _mark_failures(axis, failures, recoveries, look, has_text=place == 0)
    start = next((e for e in events if e.get("event") == "start"), {})
    ranks = f"{start['model']}, {counted(start['ranks'], 'rank')}" if "model" in start and "ranks" in start else ""
    heading = {"x": 0.02, "ha": "left", "fontsize": 13, "fontweight": "bold", "color": look.text}
    figure.suptitle(title or str(start.get("name", "")), **heading)
    figure.text(0.98, 0.985, ranks, ha="right", va="top", fontsize=9, color=look.dim)
    frame = {"facecolor": look.paper, "edgecolor": "none", "framealpha": 1.0}
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles, labels, fontsize=8.5, ncols=4, loc="best", labelcolor=look.text, **frame)
    axes[-1].set_xlabel("step")
    return _save(figure, path)


def _draw_metric(axis: Any, name: str, steps: Mapping[int, Any], epochs: Mapping[int, Any], look: Look) -> None:
    """One metric: its raw values behind the smoothed ones, the epochs' validation and the best epoch."""
    own = [(step, e[name]) for step, e in sorted(steps.items()) if _is_number(e, name)]
    shown: list[list[float]] = []  # the curves that the range of the axis must contain
    if own:
        at, raw = zip(*own)
        smoothed = smooth(raw)
        axis.plot(at, raw, color=look.first, alpha=0.25, linewidth=0.7, label="_step")
        axis.plot(at, smoothed, color=look.first, linewidth=1.8, label="training")
        shown.append(smoothed)
    found = [
        (step, e["validation"][name]) for step, e in sorted(epochs.items()) if _is_number(e.get("validation"), name)
    ]
    if found:
        marker = "o" if len(found) <= 60 else ""
        axis.plot(*zip(*found), color=look.second, marker=marker, markersize=3, linewidth=1.4, label="validation")
        shown.append([value for _, value in found])
    scored = [step for step, e in epochs.items() if _is_number(e.get("validation"), "loss")]
    if scored and found:
        best = min(scored, key=lambda step: epochs[step]["validation"]["loss"])
        value = dict(found).get(best)
        if value is not None:
            text = f"best epoch ({epochs[best]['epoch']}): {100 * value:.1f} %" if is_share(name) else None
            text = text or f"best epoch ({epochs[best]['epoch']}): {value:.4g}"
            ring = {
                "markersize": 9,
                "markerfacecolor": "none",
                "markeredgewidth": 1.8,
                "linestyle": "none",
                "clip_on": False,
            }
            axis.plot([best], [value], marker="o", color=look.good, label=text, **ring)
    axis.set_ylabel(name)
    if is_share(name):
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    values = [value for curve in shown for value in curve if math.isfinite(value)]
    if not is_share(name) and _spans_decades(values):
        axis.set_yscale("log")
        axis.set_ylim(min(values) / 1.3, max(values) * 1.3)
    else:
        ranges = [_bulk(curve) for curve in shown]
        low, high = min((one[0] for one in ranges), default=0.0), max((one[1] for one in ranges), default=1.0)
        room = 0.06 * (high - low or abs(high) or 1.0)
        axis.set_ylim(low - room, high + room)


def _mark_failures(axis: Any, failures: Sequence[Any], recoveries: Sequence[Any], look: Look, has_text: bool) -> None:
    """Vertical lines where ranks were lost; with ``has_text`` named by rank and by the recovery's milliseconds."""
    width = axis.get_xlim()[1] - axis.get_xlim()[0]
    free = -math.inf
    for failure in failures:
        step = failure["step"]
        axis.axvline(step, color=look.bad, linewidth=1, linestyle=(0, (4, 3)), alpha=0.9)
        after = next((e for e in recoveries if e["step"] == step), None)
        text = f"rank {failure['rank']}" + (f", {1000 * after['seconds']:.0f} ms" if after else "")
        if has_text and step >= free:
            side = "right" if step > axis.get_xlim()[1] - 0.12 * width else "left"
            place = {"xytext": (-2 if side == "left" else 2, 3), "textcoords": "offset points"}
            axis.annotate(
                text, (step, 1), xycoords=axis.get_xaxis_transform(), color=look.bad, fontsize=8, ha=side, **place
            )
            free = step + 0.14 * width


def smooth(values: Sequence[float]) -> list[float]:
    """Means over the neighbours on both sides, which count less the further away they are; the curve does not lag."""
    keep = math.exp(-1 / max(len(values) / 100, 1.0))
    sums, weights = [0.0] * len(values), [0.0] * len(values)
    for order in (range(len(values)), range(len(values) - 1, -1, -1)):
        total = weight = 0.0
        for place in order:
            sums[place] += total
            weights[place] += weight
            total, weight = keep * (total + values[place]), keep * (weight + 1)
    return [(around + value) / (weight + 1) for around, value, weight in zip(sums, values, weights)]


def _bulk(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest value of a curve, without extreme ones at either end that would flatten the rest."""
    ordered = sorted(value for value in values if math.isfinite(value)) or [0.0, 1.0]
    low, high = ordered[0], ordered[-1]
    upper, lower = ordered[int(0.95 * (len(ordered) - 1))], ordered[int(0.05 * (len(ordered) - 1))]
    if high - low > 2.5 * (upper - low) > 0:
        high = low + 1.6 * (upper - low)
    if high - low > 2.5 * (high - lower) > 0:
        low = high - 1.6 * (high - lower)
    return low, high


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


_NO_CURVE = ("step", "epoch", "lr", "samples", "seconds", "gradient_norm", "time")


def _figures(event: Mapping[str, Any]) -> list[str]:
    found = [name for name, value in event.items() if isinstance(value, float) or name == "loss"]
    return sorted(found, key=lambda name: name != "loss")


def _is_number(values: Mapping[str, Any] | None, name: str) -> bool:
    return bool(values) and isinstance((values or {}).get(name), (int, float))


def confusion(
    matrix: Sequence[Sequence[float]], names: Sequence[str], path: Path, theme: str = "light", title: str = ""
) -> Path:
    """Plot how often each class (row) was predicted as each other (column): colours and percentages are of the row."""
    size, look = len(matrix), THEMES[theme]
    labels = list(names) if len(names) == size else [str(i) for i in range(size)]
    shares = [[cell / (sum(row) or 1) for cell in row] for row in matrix]
    side = max(4.2, 0.52 * size + 1.4)
    figure, (axis,) = _figure(1, 1, look, side, side)
    axis.imshow(shares, cmap=_ramp(look), vmin=0, vmax=1)
    axis.grid(False)
    if size <= 30:
        for i, row in enumerate(matrix):
            for j, cell in enumerate(row):
                if cell:
                    colour = look.paper if shares[i][j] > 0.5 else look.text
                    share, small = 100 * shares[i][j], size > 5
                    percent = f"{share:.0f} %" if share >= 1 else "<1 %"
                    text = percent if size > 12 else f"{percent}\n{cell:g}"
                    axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=7 if small else 9)
    is_long = max(map(len, labels)) > 2
    axis.set_xticks(range(size), labels, rotation=45 if is_long else 0, ha="right" if is_long else "center")
    axis.set_yticks(range(size), labels)
    axis.tick_params(length=0)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    right, total = sum(matrix[i][i] for i in range(size)), sum(map(sum, matrix))
    heading = f"{right:g} of {total:g} right, {100 * right / (total or 1):.2f} %"
    axis.set_title(f"{title}: {heading}" if title else heading, fontsize=10.5, loc="left", color=look.text)
    return _save(figure, path)


def _ramp(look: Look) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shares", [look.paper, look.first])


def grid(
    images: Any,
    path: Path,
    columns: int = 8,
    title: str = "",
    scale: tuple[float, float] | None = None,
    theme: str = "light",
) -> Path:
    """Images (count, height, width) or (count, height, width, channels) side by side, row by row; one scale for all.

    scale: the values of white and black, default: the least and the largest there are."""
    count = len(images)
    rows = -(-count // columns)
    low, high = scale or (float(images.min()), float(images.max()))
    look = THEMES[theme]
    figure, axes = _figure(rows, columns, look, columns * 0.8, rows * 0.8 + (0.3 if title else 0.0))
    if title:
        figure.suptitle(title, fontsize=10, color=look.text)
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


def learning_rates(
    rates: Sequence[float],
    losses: Sequence[float],
    suggestion: float,
    path: Path,
    name: str = "learning rate",
    theme: str = "light",
) -> Path:
    """Plot the loss over the learning rate of a search, and its suggestion. name: what the rates are."""
    look = THEMES[theme]
    figure, (axis,) = _figure(1, 1, look, 7.0, 4.0)
    axis.plot(rates, losses, color=look.first)
    axis.axvline(suggestion, color=look.second, linestyle="--", label=f"suggestion {suggestion:.2g}")
    axis.set_xscale("log")
    axis.set_xlabel(name)
    axis.set_ylabel("loss (smoothed)")
    axis.set_title("Search for a learning rate", fontsize=10)
    axis.legend(frameon=False, labelcolor=look.text)
    return _save(figure, path)


def _figure(
    rows: int, columns: int, look: Look, width: float, height: float, heights: Sequence[float] | None = None
) -> tuple[Any, list[Any]]:
    # Without pyplot, matplotlib neither needs a display nor keeps global state in the user's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="tight", facecolor=look.paper)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights}).flat)
    for axis in axes:
        axis.set_facecolor(look.paper)
        axis.grid(color=look.grid, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(which="both", colors=look.dim, labelsize=8.5)
        axis.xaxis.label.set_color(look.dim), axis.yaxis.label.set_color(look.dim), axis.title.set_color(look.text)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(look.grid)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path)
    return path
