"""A run as lines of text: a screenful for a terminal, and what is new since the last look for a file or pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from ddl.metrics.console import duration, epoch_line, figures
from ddl.metrics.events import EpochDone
from ddl.watch.run import RunView
from ddl.wording import counted

BARS = "▁▂▃▄▅▆▇█"
_PLAIN, _BOLD, _DIM = "\033[0m", "\033[1m", "\033[2m"
_COLOURS = {"running": "\033[32m", "finished": "\033[32m", "stopped": "\033[33m", "silent": "\033[33m"}
_RED = "\033[31m"
EPOCHS, FAILURES, RANKS = 6, 5, 16  # how many are shown


def screen(run: RunView, columns: int = 80, colours: bool = False) -> list[str]:
    """What is known of a run, in lines of at most ``columns`` characters."""

    def shown(text: str, code: str = "") -> str:
        text = text if len(text) <= columns else text[: columns - 1] + "…"
        return f"{code}{text}{_PLAIN}" if colours and code else text

    status = run.status
    model = f": {run.start['model']} on {run.start['device']}" if run.start else ""
    lines = [shown(f"{run.name}{model}   {status}", _BOLD + _COLOURS.get(status, _RED))]
    if run.start:
        lines.append(shown(_progress(run, columns)))
        lines.append(shown(_pace(run)))
    curve = [point.curves["loss"] for point in run.curves.points if "loss" in point.curves]
    if len(curve) > 1:
        means = [one[0] / one[1] for one in curve]
        lines += ["", shown(f"loss   {spark(means, columns - 30)}  {means[0]:.4g} → {means[-1]:.4g}")]
    if run.epochs:
        lines += ["", *(shown(line) for line in _epochs(run, columns))]
    if run.start:
        lines += ["", *(shown(line, code) for line, code in _ranks(run))]
    if run.failures:
        lines += ["", *(shown(line, _RED) for line in _failures(run))]
    for warning in run.warnings[-2:]:
        lines.append(shown(f"warning: {warning['message']}", _DIM))
    lines += [shown(f"note: {note}", _DIM) for note in run.notes]
    lines += ["", *map(shown, _ending(run))] if run.has_ended or not run.start else []
    return lines


def news(run: RunView, seen: dict[str, int]) -> Iterator[str]:
    """Lines about what is new since the last call with the same ``seen``."""
    for name, describe in (("failures", _failure), ("recoveries", _recovery), ("warnings", _warning)):
        entries: Sequence[dict[str, Any]] = getattr(run, name)
        yield from (describe(one) for one in entries[seen.get(name, 0) :])
        seen[name] = len(entries)
    for one in run.epochs:
        if one["epoch"] > seen.get("epoch", 0):
            yield _epoch(run, one)
            seen["epoch"] = one["epoch"]
    if run.has_ended and not seen.get("end"):
        seen["end"] = 1
        yield from _ending(run)


def spark(values: Sequence[float], width: int) -> str:
    """A curve of ``width`` characters. The range is that of all but the most extreme twentieth at either end."""
    width = max(min(width, len(values)), 1)
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    ordered = sorted(means)
    low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
    span = (high - low) or 1.0
    return "".join(BARS[min(max(int(len(BARS) * (value - low) / span), 0), len(BARS) - 1)] for value in means)


def _progress(run: RunView, columns: int) -> str:
    steps, done = run.start["steps"], run.steps_done
    share = min(done / steps, 1.0) if steps else 0.0
    epochs = -(-steps // run.start["steps_per_epoch"])
    epoch = min(-(-done // run.start["steps_per_epoch"]) or 1, epochs)
    text = f"{100 * share:3.0f} %  epoch {epoch}/{epochs}  step {done:,}/{steps:,}"
    width = max(columns - len(text) - 4, 10)
    full = round(share * width)
    return f"[{'█' * full}{'·' * (width - full)}] {text}"


def _pace(run: RunView) -> str:
    parts = [f"{run.samples_per_s:,.0f} samples/s"] if run.samples_per_s else []
    left = run.seconds_left
    if left is not None:
        parts.append(f"{duration(left)} left, until {time.strftime('%H:%M:%S', time.localtime(run.clock() + left))}")
    if run.step.get("lr") is not None:
        parts.append(f"learning rate {run.step['lr']:.3g}")
    metrics = {name: value for name, value in run.step.items() if name not in _NOT_METRICS}
    return "   ".join([*parts, figures(metrics)])


_NOT_METRICS = ("event", "time", "step", "epoch", "lr", "samples", "seconds", "gradient_norm", "skipped")


def _epochs(run: RunView, columns: int) -> list[str]:
    best = run.best
    known = run.epochs[-EPOCHS:]
    if best is not None and best not in known:
        known = [best, *known[1:]]
    return [line for one in known for line in _epoch(run, one, columns).split("\n")]


def _epoch(run: RunView, one: dict[str, Any], columns: int = 0) -> str:
    epochs = -(-run.start["steps"] // run.start["steps_per_epoch"]) if run.start else 0
    event = EpochDone(one["epoch"], one["step"], one["train"], one["validation"], run.best is one)
    return epoch_line(event, epochs, columns).replace("(best so far)", "← best")


def _ranks(run: RunView) -> list[tuple[str, str]]:
    shards, dead = run.shards, run.dead
    hosts = ", ".join(f"{host}: {ranks}" for host, ranks in run.start["hosts"].items())
    lines = [(f"{counted(len(run.alive), 'rank')} of {run.start['ranks'] + run.start['spares']} ({hosts})", "")]
    most = max(shards.values(), default=0) or 1
    for rank, count in list(shards.items())[:RANKS]:
        if rank not in dead:
            lines.append((f"  rank {rank:<4}{'■' * round(16 * count / most):<17}{counted(count, 'shard')}", ""))
    if len(shards) > RANKS:
        lines.append((f"  and {len(shards) - RANKS} more", ""))
    for rank in sorted(dead)[:RANKS]:
        lines.append((f"  rank {rank:<4}lost", _RED))
    return lines


def _failures(run: RunView) -> list[str]:
    """The newest failures, each with the recovery that followed."""
    lines = []
    for failure in run.failures[-FAILURES:]:
        after = next((one for one in run.recoveries if one["time"] >= failure["time"]), None)
        took = f"; recovered in {1000 * after['seconds']:.0f} ms" if after is not None else ""
        lines.append(_failure(failure) + took)
    if len(run.failures) > FAILURES:
        lines.insert(0, f"{len(run.failures)} ranks lost, of them the last {FAILURES}:")
    return lines


def _failure(one: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(one["time"]))
    where = f" in {one['phase']}" if one["phase"] else ""
    return f"{at} lost rank {one['rank']} on {one['host']} at step {one['step']} ({one['how']}{where})"


def _recovery(one: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(one["time"]))
    milliseconds = 1000 * one["seconds"]
    return f"{at} recovered in {milliseconds:.0f} ms: {counted(len(one['ranks']), 'rank')} after step {one['step']}"


def _warning(one: dict[str, Any]) -> str:
    return f"warning: {one['message']}"


def _ending(run: RunView) -> list[str]:
    if not run.summary:
        return ["there is no summary.json yet"]
    summary = run.summary
    lines = [f"{summary['status']} after {counted(summary['steps'], 'step')}"]
    if isinstance(wall := summary.get("wall_s"), (int, float)):
        lines[0] += f", in {duration(wall)}"
    if summary.get("stopped_early"):
        lines.append(f"stopped early: {summary['stopped_early']}")
    final = summary.get("final")
    if isinstance(final, dict) and final:
        lines.append(f"final state: the {final.get('checkpoint')} checkpoint, of step {final.get('step')}")
        for split in ("validation", "test"):
            if isinstance(final.get(split), dict):
                lines.append(f"  {split:<11}{figures(final[split])}")
    if summary.get("error"):
        lines.append(str(summary["error"]))
    return lines
