"""A sum between nodes in few bytes: every rank sends its part compressed, and keeps its rounding error for later.

Each of n ranks owns one slice of the array. All others send it their part of that slice; the owner adds them up in
float32 and sends everyone the sum, compressed again. So each rank sends 2(n-1)/n of the elements, each value is rounded
twice whatever n is, and all ranks decode the same bytes to the same bits. What rounding has cut off is added to the
same elements in the next call (error feedback), so that no part of a gradient is lost, only late.
Sources: Karimireddy et al., Error feedback fixes SignSGD, 2019; Tang et al., 1-bit Adam, 2021."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddl.arrays import Array, partition, partition_slice
from ddl.comm import Group
from ddl.kernels.wire import BLOCK, Wire

SEGMENT = 1 << 16  # elements: one is encoded while others are on their way
AHEAD = 4


class CompressedSum:
    """Sums float32 arrays of ``length`` elements over ``ranks``, of which this rank is one; all construct it.

    Call ``settle`` after each sum, before the next one."""

    def __init__(self, group: Group, ranks: Sequence[int], length: int, wire: Wire):
        self.group, self.ranks, self.wire = group, ranks, wire
        self.position = ranks.index(group.rank)
        self.slices = partition(length, len(ranks))
        # By element: the error of the newest settled sum, and of the sum since. In this rank's own slice it is the
        # error of the sum that it sent, elsewhere that of its part.
        self.error, self._next_error = np.zeros(length, np.float32), np.zeros(length, np.float32)
        self._is_open = False
        longest = max(s.stop - s.start for s in self.slices)
        self._segments = max(1, -(-longest // SEGMENT))
        self._cuts = [partition_slice(s, self._segments) for s in self.slices]
        self._room = wire.nbytes(-(-longest // self._segments) + BLOCK)
        self._message = np.empty((self._segments, self._room), np.uint8)
        self._arriving = np.empty((AHEAD, self._room), np.uint8)

    def run(self, x: Array) -> None:
        """x (length,) becomes the sum over the ranks, the same bits on each.

        Raises PeerLost; ``x`` is then undefined."""
        count, me = len(self.ranks), self.position
        self._is_open = True
        np.add(x, self.error, out=self._next_error)
        mine = self.slices[me]
        x[mine] = self._next_error[mine]
        for k in range(1, count):
            self._exchange((me + k) % count, (me - k) % count, (me + k) % count, x, me, adds=True)
        self._next_error[mine] = x[mine]
        for k in range(1, count):
            source = (me - k) % count
            self._exchange((me + k) % count, source, me if k == 1 else None, x, source, adds=False)
        for cut, message in zip(self._cuts[me], self._messages(me), strict=True):
            self.wire.decode(x[cut], message, False)

    def settle(self, committed: bool) -> None:
        """Keep the errors of the newest sum, or, if its step was not committed, those from before."""
        if self._is_open and committed:
            self.error, self._next_error = self._next_error, self.error
        self._is_open = False

    def _exchange(self, to: int, source: int, encodes: int | None, x: Array, received: int, adds: bool) -> None:
        """Send the message to ``to`` and receive slice ``received`` of ``x`` from ``source``.

        encodes: the slice that is encoded on the way; None: the message has been encoded by an earlier exchange."""
        outgoing = self._messages(self.position if encodes is None else encodes)
        incoming = self._messages(received, self._arriving)

        def prepare(number: int) -> None:
            if encodes is not None and number < self._segments:
                self.wire.encode(self._next_error[self._cuts[encodes][number]], outgoing[number])

        def arrived(number: int) -> None:
            self.wire.decode(x[self._cuts[received][number]], incoming[number], adds)
            prepare(number + AHEAD)

        for number in range(AHEAD):
            prepare(number)
        self.group.stream(outgoing, self.ranks[to], incoming, self.ranks[source], arrived, AHEAD)

    def _messages(self, number: int, memory: np.ndarray | None = None) -> list[np.ndarray]:
        """Views of ``memory`` (default: of what is sent), one for each segment of a slice."""
        memory = self._message if memory is None else memory
        cuts = enumerate(self._cuts[number])
        return [memory[k % len(memory), : self.wire.nbytes(cut.stop - cut.start)] for k, cut in cuts]
