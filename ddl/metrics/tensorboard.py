"""TensorBoard: scalars of steps, epochs and the end as event files (extra: tensorboard).

The only file that imports tensorboardX, and only once a sink is made."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddl.errors import ConfigError
from ddl.metrics.events import EpochDone, Event, Finished, StepDone


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


class TensorBoard:
    """Writes event files into ``folder``; a leader that takes over adds another file."""

    def __init__(self, folder: str | Path):
        self._writer = writer_class()(str(folder))
        self._step = 0

    def write(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._step = event.step
            self._scalars("step", {"loss": event.loss, "gradient_norm": event.gradient_norm, **event.metrics})
            self._scalars("step", {"lr": event.lr, "seconds": event.seconds})
        elif isinstance(event, EpochDone):
            self._step = event.step
            self._scalars("train", event.train)
            self._scalars("validation", event.validation)
        elif isinstance(event, Finished):
            self._scalars("test", event.summary.get("test") or {})

    def _scalars(self, group: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            # Only finite numbers can be plotted.
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                self._writer.add_scalar(f"{group}/{name}", value, self._step)

    def close(self) -> None:
        self._writer.close()
