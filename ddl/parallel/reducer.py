"""The reducer: sums the gradients and headers of all ranks once per step, during backward if that pays.

buckets.py cuts the buckets and sums.py adds them; the training loop defines what the header holds."""

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
from ddl.kernels.wire import WIRES
from ddl.parallel.buckets import BucketTracker, buckets
from ddl.parallel.contract import SumPlan
from ddl.parallel.sparse_rows import SparseGradient
from ddl.parallel.sums import SharedMemory, make_sum

BUCKET_MIB = 4.0  # between hosts at 1 Gbit/s, step times with 1 to 8 MiB differ by less than the noise
# Smaller gradients are summed whole: below these sizes, agreeing on the touched rows costs more than it saves.
SPARSE_BYTES, SPARSE_BYTES_BETWEEN_NODES = 1 << 20, 128 << 10

Update = Callable[[Sequence[slice], "Total"], None]


@dataclass
class Total:
    """The sum over all ranks, valid until the next step's first ``announce`` or its ``finish``."""

    gradient: Array  # (layout.length,)
    header: np.ndarray  # (header_length,) float64
    squared_norm: float  # of the gradient; finite exactly when every element is finite


@dataclass(frozen=True)
class SumOptions:
    """How gradients are summed; the settings of section [comm].

    overlap: send buckets while backward is running; "auto": if that pays (between nodes, from a GPU).
    gpu: "staged": copy gradients through the host. "direct" or "auto": give GPU memory to MPI if all ranks compute on
    GPUs and their MPI accepts it; otherwise ``GradientSum.staged_because`` gives the reason.
    wire: how float32 gradients travel between nodes: as they are, or as "bfloat16", "float16" or "int8"
    (collectives/compressed.py); sums are float32 in any case."""

    algorithm: str = "auto"
    bucket_mib: float = BUCKET_MIB
    overlap: Literal["auto", "on", "off"] = "auto"
    tuning: Tuning | None = None
    gpu: Literal["auto", "direct", "staged"] = "staged"
    wire: Literal["float32", "bfloat16", "float16", "int8"] = "float32"


@dataclass(frozen=True)
class Backward:
    """How backward writes gradients; the same on all ranks.

    order: all names in the order in which they are finished (default: the layout's, reversed).
    by_rows: names of gradients (rows, width) that may be sparse. If ``local.views.zero_outside`` names the rows that a
    step has touched, and few rows are touched on all ranks together, only those are summed.
    exact: names that are no gradients, and are never compressed."""

    order: Sequence[str] | None = None
    by_rows: Sequence[str] = ()
    exact: Sequence[str] = ()


class GradientSum:
    """Sums the gradients and the header of each step. All workers construct it, and finish each step, together.

    Write gradients into ``local`` (on ``device``) and the header into ``header``; ``finish`` returns the sums.
    Between the first ``announce`` and the return of ``finish`` the caller must not use the group.

    replica: flat arrays, equal on all workers, that the optimizer updates element by element; each is as long as the
    gradient, or shorter by a tail that is not trained. If the ranks of a node can update one replica together, each its
    ``shares``, ``replicas`` holds two copies in shared memory, and ``finish`` takes the update that writes the second.
    Otherwise ``replicas`` is empty, and every rank updates its own.
    span: context manager around each bucket, for tracing.

    substitute: what sums the gradients instead of the requested algorithm, with the reason; "" if nothing does.
    wire: what gradients travel as; "float32" on one node, and where the ranks of a node cannot share memory.
    After PeerLost, close it and construct a new one for the next generation. Raises ConfigError for an unknown
    algorithm."""

    local: FlatBuffer

    def __init__(
        self,
        group: Group,
        layout: Layout,
        header_length: int,
        options: SumOptions = SumOptions(),
        backward: Backward = Backward(),
        *,
        device: Device | None = None,
        replica: Sequence[Array] = (),
        span: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    ):
        self.group, self.device, self._span = group, device or Device(), span
        least = SPARSE_BYTES if len(group.nodes) == 1 else SPARSE_BYTES_BETWEEN_NODES
        large = [name for name in backward.by_rows if prod(layout.shapes[name]) * layout.dtype.itemsize >= least]
        bucket_bytes = inf if options.overlap == "off" else options.bucket_mib * (1 << 20)
        wire = WIRES.get(options.wire) if len(group.nodes) > 1 else None
        exact = backward.exact if wire else ()
        plan = buckets(layout, bucket_bytes, backward.order, alone=large, apart=exact)
        if group.size == 1:
            plan = []
        self._parts = [bucket.span for bucket in plan] or [slice(0, layout.length)]
        self._sparse = {
            number: SparseGradient(bucket.names[0], bucket.span.start, *layout.shapes[bucket.names[0]])
            for number, bucket in enumerate(plan)
            if bucket.names[0] in large
        }
        self.staged_because, may_share = _agree_on_memory(group, self.device, options, bool(replica))
        sizes = [flat.nbytes for flat in replica] if may_share else []
        wires = [None if bucket.names[0] in exact else wire for bucket in plan] if wire else []
        spec = SumPlan(
            layout, header_length, self._parts, self._sparse, options.algorithm, options.tuning, sizes, wires
        )
        self._sum = make_sum(group, spec, self.device, direct=not self.staged_because)
        self.substitute = _substitute(group, options.algorithm, self._sum.algorithm)
        self.wire = options.wire if wire and self._sum.algorithm == "hierarchical" else "float32"
        self._shared = self._sum if isinstance(self._sum, SharedMemory) and self._sum.replicas[0] else None
        self.replicas: list[list[Array]] = [] if self._shared is None else self._shared.replicas
        for copy in self.replicas:  # both copies: the second must also hold what no update ever writes
            for flat, shared in zip(replica, copy, strict=True):
                # What lies behind the gradients' length is frozen: there all ranks write the same.
                for share in (*self.shares, slice(layout.length, None)):
                    shared[share] = flat[share]
        wanted = options.overlap == "on" or (options.overlap == "auto" and self._sum.pays_to_overlap)
        wanted = wanted and len(plan) > 1
        # ``open`` is collective: if one rank sends its parts one by one during backward, all ranks must open them one
        # by one. The gather is also the barrier after which both replicas are complete.
        self._one_by_one = any(group.gather_objects(wanted))
        self._progress = BucketTracker(plan)
        self._sender = _Sender(self._send) if wanted else None
        self.header = self._sum.header
        self.local = FlatBuffer(layout, self._sum.local)
        self._total = Total(self._sum.result, self._sum.total, 0.0)

    @property
    def overlaps(self) -> bool:
        """Whether this rank sends buckets while backward is running."""
        return self._sender is not None

    @property
    def shares(self) -> Sequence[slice]:
        """The slices of the shared replica that this rank updates; empty if the replica is not shared."""
        return [] if self._shared is None else self._shared.shares

    @property
    def flushes(self) -> bool:
        """Whether ranks flush, in this step, memory that others have read, before they write it again."""
        return isinstance(self._sum, SharedMemory) and self._sum.flushes

    def _stage(self, number: int) -> None:
        if number in self._sparse:
            rows = self.local.views.zero_outside.get(self._sparse[number].name)
            self._sum.touched[number].mark(None if rows is None else host(rows))
        self._sum.stage(number)

    def _reduce(self, number: int) -> None:
        with self._span(f"bucket {number}"):
            self._sum.reduce(number)

    def _send(self, number: int) -> None:
        self._sum.open([number])
        self._reduce(number)

    def announce(self, names: Iterable[str]) -> None:
        """The gradients ``names`` are final for this step; sends every bucket that is now complete."""
        if self._sender is not None:
            for number in self._progress.announce(names):
                self.group.doing = "allreduce"
                self._stage(number)
                self._sender.submit(number)

    def finish(self, update: Update | None = None, whole: bool = False) -> Total:
        """Sum the remaining buckets and return the totals after the closing barrier. Raises PeerLost; the sums are
        then undefined.

        update: called where ``replicas`` are shared, to write this rank's ``shares`` of the second replica. It gets
        the shares and a Total whose gradient is complete there; with ``whole`` the gradient is complete everywhere and
        the norm is known, otherwise the norm is NaN. All ranks of the node have run theirs when this returns; until
        then no rank may read the second replica."""
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
        else:  # one barrier for all parts
            self._sum.open(rest)
            for number in rest:
                self._reduce(number)
        if update is None:
            self._total.squared_norm = self._sum.close()
        else:
            assert self._shared is not None, "the replica is not shared"
            self._total.squared_norm = self._shared.close(functools.partial(self._run_update, update), whole)
        if self._sum.result is self._sum.local and self.group.size > 1:
            # The local gradient now holds the sum, so backward must clear the rows that any rank has touched.
            rows = {s.name: np.flatnonzero(self._sum.touched[number].union) for number, s in self._sparse.items()}
            self.local.views.zero_outside.clear()
            self.local.views.zero_outside.update(rows)
        self.group.doing = "job"
        return self._total

    def _run_update(self, update: Update, squared_norm: float) -> None:
        with self._span("prepare"):
            update(self.shares, Total(self._total.gradient, self._total.header, squared_norm))

    def is_quiet(self, timeout_s: float) -> bool:
        """Whether all buckets sent so far finish within that time, so that the caller may use the group itself."""
        return self._sender is None or self._sender.settle(timeout_s)

    def close(self) -> None:
        """End the communication thread. Shared memory lives as long as the group and the arrays that view it."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._sum.release()


def _agree_on_memory(group: Group, device: Device, options: SumOptions, has_replica: bool) -> tuple[str, bool]:
    """(why GPU memory is not given to MPI, "" if it is; whether the replicas of all ranks lie on the host).

    The same on all ranks."""
    if group.size == 1:
        return "there is only one rank", False
    gpu, algorithm = options.gpu, options.algorithm
    on_host, refused = device.index is None, "comm.gpu is staged"
    if gpu != "staged" and algorithm not in ("auto", "native"):
        refused = f"MPI sums GPU memory by its own algorithm, and comm.algorithm is {algorithm}"
    elif gpu != "staged" and options.wire != "float32":
        refused = f"comm.wire is {options.wire}"
    elif gpu != "staged":
        refused = (
            "not all ranks compute on a GPU" if device.index is None else group.refuses_device_memory(device.index)
        )
    answers = group.gather_objects((refused, on_host)) if gpu != "staged" or has_replica else [(refused, on_host)]
    return next((why for why, _ in answers if why), ""), has_replica and all(is_host for _, is_host in answers)


def _substitute(group: Group, asked: str, used: str) -> str:
    if asked not in ("shared", "hierarchical") or used == asked or group.size == 1:
        return ""
    if used == "auto":
        return "an algorithm chosen by size: the ranks of a node cannot share memory"
    return f"{used}: the ranks are on {'one node' if len(group.nodes) == 1 else f'{len(group.nodes)} nodes'}"


class _Sender:
    """A thread that sends buckets. It alone may use the group from the first ``submit`` of a step until ``join``."""

    def __init__(self, work: Callable[[int], None]):
        self._work = work
        self._requests: SimpleQueue[int | None] = SimpleQueue()
        self._results: SimpleQueue[BaseException | None] = SimpleQueue()
        self._pending = 0
        self._thread = threading.Thread(target=self._run, name="ddl-communication", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failed: BaseException | None = None
        while (number := self._requests.get()) is not None:
            if failed is None:
                try:
                    self._work(number)
                except BaseException as error:  # raised by join; a scripted rank failure is a BaseException
                    failed = error
            self._results.put(failed)

    def submit(self, number: int) -> None:
        self._pending += 1
        self._requests.put(number)

    def join(self) -> None:
        """Wait for all submitted buckets. Raises the first error of the thread."""
        failed = None
        while self._pending:
            failed = self._results.get() or failed
            self._pending -= 1
        if failed is not None:
            raise failed

    def settle(self, timeout_s: float) -> bool:
        """Whether all submitted buckets finish or fail within that time. Drops their errors."""
        deadline = time.monotonic() + timeout_s
        while self._pending:
            try:
                self._results.get(timeout=max(deadline - time.monotonic(), 0.0))
            except Empty:
                return False
            self._pending -= 1
        return True

    def close(self) -> None:
        self._requests.put(None)
