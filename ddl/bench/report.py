"""Print rows as lines of a table, and plot them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddl.errors import UserError
from ddl.wording import counted


def size_text(nbytes: int) -> str:
    """Bytes as people say them: 4 KiB, 1 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:g} {unit}"
        nbytes = nbytes // 1024 if nbytes % 1024 == 0 else nbytes / 1024  # type: ignore[assignment]
    return f"{nbytes:g} GiB"


def time_text(seconds: float) -> str:
    """Three digits and a unit."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


HEAD = ("ranks", "what", "ours", "time", "peer", "its time", "ratio", "")
WIDTHS = (5, 20, 13, 9, 19, 9, 6, 0)


def line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS)).rstrip()


def row_text(row: Mapping[str, Any]) -> str:
    """One row as a line under ``HEAD``."""
    what = size_text(row["bytes"]) if "bytes" in row else " ".join(filter(None, [row["model"], row.get("mode", "")]))
    name = row["algorithm"] + (f" ({row['chosen']})" if "chosen" in row else "")
    notes = []
    if "bus_gb_s" in row:
        notes.append(f"{row['algorithm_gb_s']:.3g} GB/s, bus {row['bus_gb_s']:.3g}")
    if "cost_us" in row:
        low, high = row["cost_quartiles_us"]
        notes.append(f"costs {row['cost_us']:.0f} us ({low:.0f} to {high:.0f}), {row['cost_share']:.1%} of a step")
    if "ceiling" in row:
        notes.append(f"ceiling {row['ceiling']:.2f}; resident {row['resident_mib']:.0f} MiB ({row['above_mib']:+.0f})")
    if "idle" in row:
        notes.append(f"idle {row['idle']:.1%}, by the schedule {row['ideal_idle']:.1%}")
    if "samples_per_s" in row:
        notes.append(f"{row['samples_per_s']:.0f} samples/s")
    if "shares" in row:
        notes.append(" ".join(f"{name} {share:.0%}" for name, share in row["shares"].items()))
    if "range_s" in row:
        notes.append(f"{' to '.join(map(time_text, row['range_s']))}, plus a step of {time_text(row['step_s'])}")
    if row.get("peer_lost"):
        notes.append(f"torchrun did not recover {counted(row['peer_lost'], 'time')}")
    if "phases" in row:
        notes.append(" ".join(f"{name} {time_text(value)}" for name, value in row["phases"].items()))
    if row.get("settings", "default") != "default":
        notes.append(row["settings"])
    ours, theirs = time_text(row["ours_s"]), time_text(row["peer_s"])
    return line((str(row["ranks"]), what, name, ours, row["peer"], theirs, f"{row['ratio']:.2f}", "; ".join(notes)))


def plot(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw the rows: times over sizes for allreduce, ratios as bars otherwise. Raises UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'ddl-mpi[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_size = [row for row in rows if "bytes" in row]
    if by_size:
        ranks = sorted({row["ranks"] for row in by_size})
        figure, axes = pyplot.subplots(1, len(ranks), figsize=(7 * len(ranks), 5), squeeze=False)
        for axis, count in zip(axes[0], ranks):
            here = [row for row in by_size if row["ranks"] == count]
            curves: dict[str, dict[int, float]] = {}
            for row in here:
                curves.setdefault(f"ddl {row['algorithm']}", {})[row["bytes"]] = row["ours_s"]
                curves.setdefault(row["peer"], {})[row["bytes"]] = row["peer_s"]
            for name, curve in curves.items():
                bold = {"linewidth": 2.5} if name == "ddl auto" else {"linestyle": "--"}
                axis.plot(list(curve), list(curve.values()), label=name, marker=".", **bold)
            axis.set(xscale="log", yscale="log", xlabel="bytes", ylabel="seconds", title=f"allreduce on {count} ranks")
            axis.legend()
            axis.grid(alpha=0.3)
    else:
        figure, axis = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1.5))
        names = [f"{row['model']} {row.get('mode', '')} / {row['peer']}" for row in rows]
        axis.barh(names, [row["ratio"] for row in rows])
        axis.axvline(1, color="black", linewidth=1)
        axis.set(xlabel="times faster than the peer", title=f"{rows[0]['bench']} on {rows[0]['ranks']} ranks")
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
