"""The reducer: one sum a step over all ranks' gradients and headers, during backward where that pays.

Buckets are cut in buckets.py, summed in sums.py; what the header says is the training loop's business."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal

import numpy as np

from ddl.arrays import Array, Device, FlatBuffer, Layout
from ddl.collectives import Tuning
from ddl.comm import Group
from ddl.parallel.buckets import Progress, buckets
from ddl.parallel.sums import make_sum

BUCKET_MIB = 4.0  # between hosts at 1 Gbit/s the step times of 1 to 8 MiB lie within the noise


@dataclass
class Total:
    """The sum over all ranks; valid until the next step's first announcement, or its ``finish``."""

    gradient: Array  # (layout.length,)
    header: np.ndarray  # (header_length,) float64
    squared_norm: float  # of the gradient; not finite exactly when an element is not


class GradientSum:
    """Sums gradients and header of each step. All workers make it, and finish each step, together.

    Write gradients into ``local`` (on ``device``) and the header into ``header``; ``finish`` returns the sums.
    Between the first announcement and the return of ``finish`` nobody else may use the group.

    overlap: send a bucket while backward still runs: "auto" where that pays (between nodes, from a GPU).
    span: around each bucket, for a trace. After PeerLost it is closed and another one made for the next generation."""

    local: FlatBuffer

    def __init__(
        self,
        group: Group,
        layout: Layout,
        header_length: int,
        *,
        device: Device | None = None,
        algorithm: str = "auto",
        bucket_mib: float = BUCKET_MIB,
        overlap: Literal["auto", "on", "off"] | bool = "auto",
        tuning: Tuning | None = None,
        span: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    ):
        self.group, device = group, device or Device()
        plan = buckets(layout, bucket_mib * (1 << 20)) if overlap not in ("off", False) and group.size > 1 else []
        self._parts = [bucket.span for bucket in plan] or [slice(0, layout.length)]
        self._sum = make_sum(group, layout, header_length, self._parts, algorithm, tuning, device)
        wanted = overlap in ("on", True) or (overlap == "auto" and self._sum.pays_to_overlap)
        self._progress = Progress(plan)
        self._span = span
        self._sender = _Sender(self._reduce) if wanted and len(plan) > 1 else None
        self.header = self._sum.header
        self.local = FlatBuffer(layout, self._sum.local)
        self._total = Total(self._sum.result, self._sum.total, 0.0)

    @property
    def overlaps(self) -> bool:
        return self._sender is not None

    def _reduce(self, number: int) -> None:
        with self._span(f"bucket {number}"):
            self._sum.reduce(number)

    def announce(self, names: Iterable[str]) -> None:
        """Backward has written the gradients ``names`` for the last time in this step."""
        if self._sender is not None:
            for number in self._progress.announce(names):
                self.group.doing = "allreduce"
                self._sum.stage(number)
                self._sender.submit(number)

    def finish(self) -> Total:
        """Sum what has not left yet; returns behind the closing barrier. Raises PeerLost; the sums are then garbage."""
        rest = range(len(self._parts))
        if self._sender is not None:
            rest = self._progress.flush()
            self._sender.join()
        self.group.doing = "allreduce"
        for number in rest:
            self._sum.stage(number)
        for number in rest:
            self._reduce(number)
        self._total.squared_norm = self._sum.close()
        self.group.doing = "job"
        return self._total

    def is_quiet(self, timeout_s: float) -> bool:
        """Whether, within that time, no bucket is on its way any more: then the caller may use the group itself."""
        return self._sender is None or self._sender.settle(timeout_s)

    def close(self) -> None:
        """End the communication thread; the memory lives as long as the group and the arrays that view it."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._sum.release()


class _Sender:
    """A thread that owns the group from the first ``submit`` of a step to the return of ``join``."""

    def __init__(self, work: Callable[[int], None]):
        self._work = work
        self._orders: SimpleQueue[int | None] = SimpleQueue()
        self._answers: SimpleQueue[BaseException | None] = SimpleQueue()
        self._pending = 0
        self._thread = threading.Thread(target=self._run, name="ddl-communication", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failed: BaseException | None = None
        while (number := self._orders.get()) is not None:
            if failed is None:
                try:
                    self._work(number)
                except BaseException as error:  # surfaces in join, also a scripted death
                    failed = error
            self._answers.put(failed)

    def submit(self, number: int) -> None:
        self._pending += 1
        self._orders.put(number)

    def join(self) -> None:
        """Wait until all that was submitted is done. Raises what went wrong."""
        failed = None
        while self._pending:
            failed = self._answers.get() or failed
            self._pending -= 1
        if failed is not None:
            raise failed

    def settle(self, timeout_s: float) -> bool:
        """Whether all that was submitted is done, or has failed, within that time."""
        deadline = time.monotonic() + timeout_s
        while self._pending:
            try:
                self._answers.get(timeout=max(deadline - time.monotonic(), 0.0))
            except Empty:
                return False
            self._pending -= 1
        return True

    def close(self) -> None:
        self._orders.put(None)
