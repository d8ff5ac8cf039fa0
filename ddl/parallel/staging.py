"""Gradients on a GPU: copied straight into the host memory in which they are summed, and the sum back.

That memory is pinned where the driver allows it, so copies run beside the computation on a stream of
their own. How the host arrays are summed is sums.py's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl.arrays import Array, Device

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
            self._written = [xp.cuda.Event(disable_timing=True) for _ in parts]
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

    def open(self) -> None:
        """Nothing is whole before it has been copied."""

    def reduce(self, number: int) -> None:
        on_device, on_host = self._copies[number]
        with self._device.activate():
            self._stream.wait_event(self._written[number])
            on_device.get(stream=self._stream, out=on_host, blocking=False)
            self._stream.synchronize()
        self._inner.open()
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
