"""Gradients on a GPU: copied straight into the host memory in which they are summed, and the sum back; or given to
MPI where they lie, by a library that takes them.

Host memory is pinned where the driver allows it, so copies run beside the computation on a stream of
their own. How the host arrays are summed is sums.py's."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl.arrays import Array, Device, Layout
from ddl.comm import Group
from ddl.kernels.sums import squares
from ddl.parallel.tables import PrivateRows, Table, Touched

if TYPE_CHECKING:
    from ddl.parallel.sums import Sum


class Staged:
    """A Sum on a GPU around ``inner``, the Sum of its host copies."""

    pays_to_overlap = True

    def __init__(self, inner: Sum, device: Device, parts: Sequence[slice]):
        self._inner, self._device = inner, device
        self.header, self.total, self.touched = inner.header, inner.total, inner.touched
        self._pinned: list[int] = []
        xp = device.xp
        with device.activate():
            self.local: Array = xp.zeros(inner.local.shape, inner.local.dtype)
            self.result: Array = xp.zeros(inner.local.shape, inner.local.dtype)
            self._stream = xp.cuda.Stream(non_blocking=True)
            self._written, self._copied = (
                [xp.cuda.Event(disable_timing=True) for _ in parts] for _ in ("written", "copied")
            )
            self._pin(inner.local)
            if inner.result is not inner.local:
                self._pin(inner.result)
        self._copies = [(self.local[part], inner.local[part]) for part in parts]

    def _pin(self, x: np.ndarray) -> None:
        """Copies from memory that is not pinned are right as well, only slower."""
        runtime: Any = self._device.xp.cuda.runtime
        try:
            runtime.hostRegister(x.ctypes.data, x.nbytes, 0)
        except runtime.CUDARuntimeError:
            return
        self._pinned.append(x.ctypes.data)

    def stage(self, number: int) -> None:
        with self._device.activate():
            self._written[number].record()  # on the stream of the computation, which is the caller's
            self._stream.wait_event(self._written[number])
            on_device, on_host = self._copies[number]
            on_device.get(stream=self._stream, out=on_host, blocking=False)
            self._copied[number].record(self._stream)

    def open(self, numbers: Iterable[int]) -> None:
        with self._device.activate():
            for number in numbers:
                self._copied[number].synchronize()
        self._inner.open(numbers)

    def reduce(self, number: int) -> None:
        self._inner.reduce(number)

    def close(self) -> float:
        norm = self._inner.close()
        with self._device.activate():
            self.result.set(self._inner.result, stream=self._stream)
            self._stream.synchronize()  # the host memory is written again in the next step
        return norm

    def release(self) -> None:
        with self._device.activate():
            self._stream.synchronize()
            for address in self._pinned:
                self._device.xp.cuda.runtime.hostUnregister(address)
        self._pinned.clear()
        self._inner.release()


class Direct:
    """A Sum that hands GPU memory to MPI, which must take it on every rank (``Group.refuses_device_memory``)."""

    pays_to_overlap = True

    def __init__(
        self,
        group: Group,
        layout: Layout,
        header_length: int,
        parts: Sequence[slice],
        tables: Mapping[int, Table],
        device: Device,
    ):
        self.group, self._device = group, device
        with device.activate():
            self.local: Array = device.xp.zeros(layout.length, layout.dtype)
            self._written = [device.xp.cuda.Event(disable_timing=True) for _ in parts]
        self.result = self.local
        self.header, self.total = np.zeros(header_length), np.zeros(header_length)
        self._parts = [self.local[part] for part in parts]
        self._rows = {n: PrivateRows(group, table, self.local, self._allreduce) for n, table in tables.items()}
        self.touched: dict[int, Touched] = {n: rows.touched for n, rows in self._rows.items()}

    def stage(self, number: int) -> None:
        with self._device.activate():
            self._written[number].record()  # on the stream of the computation, which is the caller's

    def open(self, numbers: Iterable[int]) -> None:
        with self._device.activate():
            for number in numbers:
                self._written[number].synchronize()  # MPI knows of no stream

    def reduce(self, number: int) -> None:
        dense = functools.partial(self._allreduce, self._parts[number], self.group)
        with self._device.activate():
            if number in self._rows:
                self._rows[number].reduce(dense)
            else:
                dense()

    def _allreduce(self, x: Array, group: Group) -> None:
        self._device.xp.cuda.get_current_stream().synchronize()  # what this thread has put together
        group.native_allreduce(x)

    def close(self) -> float:
        self.total[...] = self.header
        self.group.native_allreduce(self.total)
        self.group.barrier()
        with self._device.activate():
            return squares(self.result)

    def release(self) -> None:
        """The pool takes back what nobody views."""
