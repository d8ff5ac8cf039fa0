"""The reducer: one sum a step over all ranks' gradients and headers, during backward where that pays.

Buckets are cut in buckets.py, summed in sums.py; what the header says is the training loop's business."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf, prod
from queue import Empty, SimpleQueue
from typing import Literal

import numpy as np

from ddl.arrays import Array, Device, FlatBuffer, Layout, host
from ddl.collectives import Tuning
from ddl.comm import Group
from ddl.parallel.buckets import Progress, buckets
from ddl.parallel.sums import SharedMemory, make_sum
from ddl.parallel.tables import Table

BUCKET_MIB = 4.0  # between hosts at 1 Gbit/s the step times of 1 to 8 MiB lie within the noise
# Smaller tables are summed whole: what agreeing on their rows takes is saved only from here on.
TABLE_BYTES, TABLE_BYTES_BETWEEN_NODES = 1 << 20, 128 << 10


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
    order: all names as they become whole (default: the layout's, reversed); buckets leave in it.
    by_rows: names, the same on all ranks, of tables (rows, width). Where ``local.views.zero_outside`` names the rows
    that a step has touched, on all ranks, and they are few together, those alone are summed.
    gpu: "staged" through the host, or, by the other words, given to MPI where all ranks compute on GPUs and their MPI
    takes what lies there; ``staged_because`` says why not.
    replica: flat arrays, the same on all workers, that an update changes element by element; each as long as the
    gradient, or shorter by what it does not look at. Where the ranks of a node can update them together, ``banks`` are
    two places in the node's memory for all of them, which hold what they hold: the second is for the update that
    ``finish`` is given. Otherwise it is empty, and every rank updates its own.
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
        order: Sequence[str] | None = None,
        by_rows: Sequence[str] = (),
        gpu: Literal["auto", "direct", "staged"] = "staged",
        replica: Sequence[Array] = (),
        span: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    ):
        self.group, self.device = group, device or Device()
        may_overlap = overlap not in ("off", False)
        least = TABLE_BYTES if len(group.nodes) == 1 else TABLE_BYTES_BETWEEN_NODES
        sizes = {name: prod(layout.shapes[name]) * layout.dtype.itemsize for name in by_rows}
        tables = [name for name, nbytes in sizes.items() if nbytes >= least]
        plan = buckets(layout, bucket_mib * (1 << 20) if may_overlap else inf, order, alone=tables)
        if group.size == 1:
            plan = []
        self._parts = [bucket.span for bucket in plan] or [slice(0, layout.length)]
        self._tables = {
            number: Table(bucket.names[0], bucket.span.start, *layout.shapes[bucket.names[0]])
            for number, bucket in enumerate(plan)
            if bucket.names[0] in tables
        }
        self.staged_because, may_share = _agreed(group, self.device, gpu, algorithm, bool(replica))
        self._sum = make_sum(
            group,
            layout,
            header_length,
            self._parts,
            self._tables,
            algorithm,
            tuning,
            self.device,
            not self.staged_because,
            [flat.nbytes for flat in replica] if may_share else [],
        )
        self._shared = self._sum if isinstance(self._sum, SharedMemory) and self._sum.banks[0] else None
        self.banks: list[list[Array]] = [] if self._shared is None else self._shared.banks
        if self._shared is not None:
            for bank in self.banks:  # both: what no update writes must not change with them
                for flat, shared in zip(replica, bank, strict=True):
                    for share in self._shared.shares:
                        shared[share] = flat[share]
        wanted = overlap in ("on", True) or (overlap == "auto" and self._sum.pays_to_overlap)
        wanted = wanted and len(plan) > 1
        # All open their parts alike: where some rank may send them as its backward writes them, nobody opens several.
        # Behind this call the banks are whole, too.
        self._one_by_one = any(group.gather_objects(wanted))
        self._progress = Progress(plan)
        self._span = span
        self._sender = _Sender(self._send) if wanted else None
        self.header = self._sum.header
        self.local = FlatBuffer(layout, self._sum.local)
        self._total = Total(self._sum.result, self._sum.total, 0.0)

    @property
    def overlaps(self) -> bool:
        return self._sender is not None

    def _stage(self, number: int) -> None:
        if number in self._tables:
            rows = self.local.views.zero_outside.get(self._tables[number].name)
            self._sum.touched[number].mark(None if rows is None else host(rows))
        self._sum.stage(number)

    def _reduce(self, number: int) -> None:
        with self._span(f"bucket {number}"):
            self._sum.reduce(number)

    def _send(self, number: int) -> None:
        self._sum.open([number])
        self._reduce(number)

    def announce(self, names: Iterable[str]) -> None:
        """Backward has written the gradients ``names`` for the last time in this step."""
        if self._sender is not None:
            for number in self._progress.announce(names):
                self.group.doing = "allreduce"
                self._stage(number)
                self._sender.submit(number)

    def finish(self, update: Callable[[Sequence[slice], Total], None] | None = None, whole: bool = False) -> Total:
        """Sum what has not left yet; returns behind the closing barrier. Raises PeerLost; the sums are then garbage.

        update: where there are ``banks``: writes some places of the second one, which are this rank's, knowing the
        header's sum and the gradient's in these places; if ``whole``, the whole gradient's and the norm, which is NaN
        otherwise. All ranks of the node have written theirs when this returns; before, nobody may read them."""
        rest = range(len(self._parts))
        if self._sender is not None:
            rest = self._progress.flush()
            self._sender.join()
        self.group.doing = "allreduce"
        for number in rest:
            self._stage(number)
        if self._one_by_one:
            for number in rest:
                self._send(number)
        else:
            self._sum.open(rest)
            for number in rest:
                self._reduce(number)
        if update is None:
            self._total.squared_norm = self._sum.close()
        else:
            assert self._shared is not None, "there are no banks"
            self._total.squared_norm = self._shared.close(functools.partial(self._hand_over, update), whole)
        if self._sum.result is self._sum.local and self.group.size > 1:  # it now holds what any rank has touched
            rows = {t.name: np.flatnonzero(self._sum.touched[number].union) for number, t in self._tables.items()}
            self.local.views.zero_outside.clear()
            self.local.views.zero_outside.update(rows)
        self.group.doing = "job"
        return self._total

    def _hand_over(self, update: Callable[[Sequence[slice], Total], None], squared_norm: float) -> None:
        assert self._shared is not None
        with self._span("prepare"):
            update(self._shared.shares, Total(self._total.gradient, self._total.header, squared_norm))

    @property
    def evicts(self) -> bool:
        """Whether this step flushes what other ranks have read before writing it (kernels/cache_flush.py)."""
        return self._shared is not None and self._shared.evicts

    def is_quiet(self, timeout_s: float) -> bool:
        """Whether, within that time, no bucket is on its way any more: then the caller may use the group itself."""
        return self._sender is None or self._sender.settle(timeout_s)

    def close(self) -> None:
        """End the communication thread; the memory lives as long as the group and the arrays that view it."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._sum.release()


def _agreed(group: Group, device: Device, gpu: str, algorithm: str, has_replica: bool) -> tuple[str, bool]:
    """Why GPU memory is not given to MPI, in words, "" where it is; and whether all ranks' replicas lie on the host.
    The same on all ranks."""
    if group.size == 1:
        return "nobody else is there", False
    on_host, refused = device.index is None, "it was asked for"
    if gpu != "staged" and algorithm not in ("auto", "native"):
        refused = f"MPI sums GPU memory by its own algorithm, and comm.algorithm is {algorithm}"
    elif gpu != "staged":
        refused = (
            "not all ranks compute on a GPU" if device.index is None else group.refuses_device_memory(device.index)
        )
    told = group.gather_objects((refused, on_host)) if gpu != "staged" or has_replica else [(refused, on_host)]
    return next((why for why, _ in told if why), ""), has_replica and all(on_host for _, on_host in told)


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
