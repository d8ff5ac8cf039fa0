"""Gradient buffers on a GPU: staged through the host, or handed to a CUDA-aware MPI.

Staged copies go to and from the host memory in which sums.py adds the gradients. That memory is pinned where the
driver allows it, so that copies on a separate stream overlap with the computation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ddl.arrays import Array, Device
from ddl.comm import Group
from ddl.kernels.sums import squares
from ddl.parallel.contract import Sum, SumPlan
from ddl.parallel.sparse_rows import PrivateRows


class Staged:
    """Copies the gradient to the host, where ``inner`` sums it, and copies the sum back."""

    pays_to_overlap = True

    def __init__(self, inner: Sum, device: Device, parts: Sequence[slice]):
        self._inner, self._device = inner, device
        self.header, self.total, self.touched = inner.header, inner.total, inner.touched
        self.algorithm = inner.algorithm
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
        """Pin ``x`` if the driver allows it. Copies of pageable memory are correct too, only slower."""
        runtime: Any = self._device.xp.cuda.runtime
        try:
            runtime.hostRegister(x.ctypes.data, x.nbytes, 0)
        except runtime.CUDARuntimeError:
            return
        self._pinned.append(x.ctypes.data)

    def stage(self, number: int) -> None:
        with self._device.activate():
            self._written[number].record()  # on the caller's stream, which computes the gradient
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
            self._stream.synchronize()  # the next step overwrites the host memory
        return norm

    def release(self) -> None:
        with self._device.activate():
            self._stream.synchronize()
            for address in self._pinned:
                self._device.xp.cuda.runtime.hostUnregister(address)
        self._pinned.clear()
        self._inner.release()


class Direct:
    """Hands GPU memory to MPI, which must accept it on every rank (``Group.refuses_device_memory``)."""

    pays_to_overlap = True
    algorithm = "native"

    def __init__(self, group: Group, plan: SumPlan, device: Device):
        self.group, self._device, layout = group, device, plan.layout
        with device.activate():
            self.local: Array = device.xp.zeros(layout.length, layout.dtype)
            self._written = [device.xp.cuda.Event(disable_timing=True) for _ in plan.parts]
        self.result = self.local
        self.header, self.total = np.zeros(plan.header_length), np.zeros(plan.header_length)
        self._parts = [self.local[part] for part in plan.parts]
        self._rows = {n: PrivateRows(group, sparse, self.local, self._allreduce) for n, sparse in plan.sparse.items()}
        self.touched = {n: rows.touched for n, rows in self._rows.items()}

    def stage(self, number: int) -> None:
        with self._device.activate():
            self._written[number].record()  # on the caller's stream, which computes the gradient

    def open(self, numbers: Iterable[int]) -> None:
        with self._device.activate():
            for number in numbers:
                self._written[number].synchronize()  # MPI does not wait for CUDA streams

    def reduce(self, number: int) -> None:
        dense = functools.partial(self._allreduce, self._parts[number], self.group)
        with self._device.activate():
            if number in self._rows:
                self._rows[number].reduce(dense)
            else:
                dense()

    def _allreduce(self, x: Array, group: Group) -> None:
        self._device.xp.cuda.get_current_stream().synchronize()  # finish packing rows before MPI reads them
        group.native_allreduce(x)

    def close(self) -> float:
        self.total[...] = self.header
        self.group.native_allreduce(self.total)
        self.group.barrier()
        with self._device.activate():
            return squares(self.result)

    def release(self) -> None:
        """Nothing to do: CuPy's memory pool reuses the buffers once their last view is gone."""
