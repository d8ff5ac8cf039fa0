"""TensorBoard: scalars, hyperparameters, confusion matrices as images and failures as text (extra: tensorboard).

The only file that imports tensorboardX, and only once a sink is made."""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddl.errors import ConfigError
from ddl.metrics.console import recovery
from ddl.metrics.events import EpochDone, Event, Finished, JobStarted, RankFailed, Recovered, StepDone


def writer_class() -> Any:
    """tensorboardX's writer. Raises ConfigError if the package is missing or broken."""
    try:
        try:
            from tensorboardX import SummaryWriter
        except Exception:
            # It imports PyTorch if there is one, whose installation may be broken in any way; scalars need none.
            with _without("torch"):
                from tensorboardX import SummaryWriter
    except Exception as error:
        raise ConfigError(
            f"[metrics] tensorboard is true, but tensorboardX cannot be imported ({type(error).__name__}: {error}): "
            'pip install "ddl-mpi[tensorboard]"'
        ) from error
    return SummaryWriter


@contextmanager
def _without(package: str) -> Iterator[None]:
    """While this lasts, importing ``package`` fails as if it were not installed."""
    known = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}
    for name in known:
        del sys.modules[name]
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(known)


DESCRIPTIONS = {
    "step": "of the batch of one step",
    "train": "running mean over the steps of an epoch, while the parameters changed",
    "validation": "over the whole validation split, after an epoch",
    "test": "over the whole test split, at the end",
}
CELL = 16  # pixels of a cell of a confusion matrix


class TensorBoard:
    """Writes event files into ``folder``; a leader that takes over adds another file.

    settings: hyperparameters by name; they are written at the end, with the final metrics."""

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None):
        self._writer = writer_class()(str(folder))
        self._step, self._settings = 0, dict(settings or {})

    def write(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._step = event.step
            self._scalars("step", {"loss": event.loss, "gradient_norm": event.gradient_norm, **event.metrics})
            self._scalars("step", {"lr": event.lr, "seconds": event.seconds})
        elif isinstance(event, EpochDone):
            self._step = event.step
            self._scalars("train", event.train)
            self._scalars("validation", event.validation)
            self._confusion("validation", event.validation)
        elif isinstance(event, JobStarted):
            table = "".join(f"| {name} | {value} |\n" for name, value in self._settings.items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{table}", event.step)
        elif isinstance(event, RankFailed):
            error = f": {event.error}" if event.error else ""
            text = f"lost rank {event.rank} on {event.host} at step {event.step} ({event.how}){error}"
            self._writer.add_text("failures", text, event.step)
        elif isinstance(event, Recovered):
            self._writer.add_text("recoveries", recovery(event), event.step)
        elif isinstance(event, Finished):
            self._scalars("test", event.summary.get("test") or {})
            self._confusion("test", event.summary.get("test") or {})
            self._hyperparameters(event.summary)

    def _scalars(self, group: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if _is_finite(value):  # only finite numbers can be plotted
                what = DESCRIPTIONS[group]
                self._writer.add_scalar(f"{group}/{name}", value, self._step, summary_description=what)

    def _confusion(self, group: str, values: Mapping[str, Any]) -> None:
        """Shares of each true class (row) by predicted class (column), white to blue."""
        from tensorboardX.proto.summary_pb2 import Summary

        matrix = values.get("confusion")
        if matrix is None:
            return
        rows = [[float(cell) for cell in row] for row in matrix]
        side = CELL * len(rows)
        image = Summary.Image(height=side, width=side, colorspace=3, encoded_image_string=_heat_map(rows))
        summary = Summary(value=[Summary.Value(tag=f"{group}/confusion", image=image)])
        self._writer.file_writer.add_summary(summary, self._step)

    def _hyperparameters(self, summary: Mapping[str, Any]) -> None:
        from tensorboardX.summary import hparams

        metrics = {
            f"{split}/{name}": float(value)
            for split in ("train", "validation", "test")
            for name, value in (summary.get(split) or {}).items()
            if _is_finite(value) and name != "samples"
        }
        if self._settings:
            for part in hparams(self._settings, metrics):
                self._writer.file_writer.add_summary(part)

    def close(self) -> None:
        self._writer.close()


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _heat_map(rows: Sequence[Sequence[float]]) -> bytes:
    """A PNG with a square for each cell: its share of its row, from white to blue."""
    low, high = (255, 255, 255), (37, 99, 235)
    lines = []
    for row in rows:
        total = sum(row) or 1.0
        colours = (bytes(round(a + (b - a) * cell / total) for a, b in zip(low, high)) for cell in row)
        lines.append(b"\0" + b"".join(colour * CELL for colour in colours))  # 0: the line is not filtered
    side = CELL * len(rows)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(line * CELL for line in lines)),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
