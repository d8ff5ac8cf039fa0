"""What a smaller form of a model costs and saves: bytes, metrics on held-out samples, and the time of an answer."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ddl.comm.threads import alone
from ddl.data import Source
from ddl.metrics.console import figures
from ddl.metrics.jsonl import plain
from ddl.run.loaded import TrainedModel
from ddl.run.trained import Trained

BATCH = 256  # samples, fewer if there are not so many
ROUNDS, LEAST_S = 15, 0.01  # blocks of calls, and the seconds of each


@dataclass(frozen=True)
class Variant:
    """A form of a model. name: for the user. bytes: of its file, or of its parameters. metrics: on held-out samples.

    answer: computes the outputs for samples as they are stored."""

    name: str
    bytes: int
    metrics: Mapping[str, Any]
    answer: Callable[[Mapping[str, np.ndarray]], object]


def own_form(name: str, trained: Trained, held_out: Source) -> Variant:
    """The model of a run, as ddl computes it."""
    model = TrainedModel(trained)
    size = sum(view.nbytes for view in (*trained.state.params.views.values(), *trained.state.buffers.values()))
    return Variant(name, size, trained.evaluate(held_out, alone()), lambda batch: model.outputs(batch["x"]))


@dataclass(frozen=True)
class VariantFigures:
    """A form with the median seconds of its answers: to one sample, and to ``batch`` samples at once."""

    name: str
    bytes: int
    metrics: Mapping[str, float]
    single_s: float
    batch_s: float
    batch: int


def measured(forms: Sequence[Variant], held_out: Source) -> list[VariantFigures]:
    """The forms with their latencies on samples of ``held_out``, in blocks of calls that alternate between them."""
    count = min(BATCH, len(held_out))
    held_out.hold([range(count)])
    batch = {name: value for name, value in held_out.gather(np.arange(count)).items() if name != "y"}
    one = {name: value[:1] for name, value in batch.items()}
    single, many = (_latencies([lambda f=form, x=x: f.answer(x) for form in forms]) for x in (one, batch))  # type: ignore[misc]
    return [
        VariantFigures(form.name, form.bytes, _scalars(form.metrics), single[place], many[place], count)
        for place, form in enumerate(forms)
    ]


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0 and name != "samples"}


def _latencies(calls: Sequence[Callable[[], object]]) -> list[float]:
    """The median seconds of each call over blocks that alternate."""
    repeats = []
    for call in calls:
        call()  # compiles kernels, allocates memory
        began = time.perf_counter()
        call()
        repeats.append(max(1, round(LEAST_S / max(time.perf_counter() - began, 1e-7))))
    blocks: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, count, found in zip(calls, repeats, blocks, strict=True):
            began = time.perf_counter()
            for _ in range(count):
                call()
            found.append((time.perf_counter() - began) / count)
    return [statistics.median(found) for found in blocks]


def as_text(found: Sequence[VariantFigures]) -> str:
    """A table with a row for each form, the size as a share of the first's."""
    rows = [["", "bytes", "", "one sample", f"{found[0].batch} samples", "on held-out samples"]]
    for one in found:
        share = "" if one is found[0] else f"{100 * one.bytes / found[0].bytes:.0f} %"
        times = [f"{one.single_s * 1e6:,.0f} us", f"{one.batch_s * 1e3:,.2f} ms"]
        rows.append([one.name, f"{one.bytes:,}", share, *times, figures(one.metrics)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())
    return "\n".join(lines)


def as_json(found: Sequence[VariantFigures], **more: Any) -> str:
    """The same as a JSON object: ``forms``, in their order, and ``more``."""
    return json.dumps(plain({**more, "forms": [asdict(one) for one in found]}), indent=2) + "\n"
