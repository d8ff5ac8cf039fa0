"""The ranks that hold one stage, as a group: gradients of a stage are summed over them alone.

It uses only messages of the whole group, so that a death anywhere ends its calls as it ends the whole group's."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddl.arrays import Array
from ddl.collectives import ring
from ddl.comm import EAGER_BYTES, Group, NodeMemory
from ddl.comm.group import Probe, check_contiguous


class Column(Group):
    """``ranks`` of ``whole`` as ranks 0, 1, ...; this rank is one of them. It ends with ``whole``."""

    def __init__(self, whole: Group, ranks: Sequence[int]):
        self.whole, self.ranks = whole, list(ranks)
        self.rank, self.size, self.generation = self.ranks.index(whole.rank), len(ranks), whole.generation
        self.members = [whole.members[rank] for rank in ranks]
        self.tolerant, self.waits, self.element_limit = whole.tolerant, whole.waits, whole.element_limit

    @property
    def doing(self) -> str:  # type: ignore[override]
        return self.whole.doing

    @doing.setter
    def doing(self, use: str) -> None:
        self.whole.doing = use

    @property
    def probe(self) -> Probe:  # type: ignore[override]
        return self.whole.probe

    def send(self, x: Array, to: int) -> None:
        self.whole.send(x, self.ranks[to])

    def receive(self, x: Array, source: int) -> None:
        self.whole.receive(x, self.ranks[source])

    def exchange(self, outgoing: Array, to: int, incoming: Array, source: int) -> None:
        self.whole.exchange(outgoing, self.ranks[to], incoming, self.ranks[source])

    def stream(
        self,
        outgoing: Sequence[Array],
        to: int,
        incoming: Sequence[Array],
        source: int,
        arrived: Callable[[int], None],
        ahead: int,
    ) -> None:
        self.whole.stream(outgoing, self.ranks[to], incoming, self.ranks[source], arrived, ahead)

    def _all(self, mine: Array, sizes: Sequence[int]) -> list[Array]:
        """Every rank's array, by rank. sizes: their lengths; passed on around the ring."""
        parts = [mine if rank == self.rank else np.empty(sizes[rank], mine.dtype) for rank in range(self.size)]
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for step in range(self.size - 1):
            outgoing, incoming = (self.rank - step) % self.size, (self.rank - step - 1) % self.size
            self.exchange(parts[outgoing], after, parts[incoming], before)
        return parts

    def barrier(self) -> None:
        word = np.zeros(1, np.uint8)
        step = 1
        while step < self.size:
            self.exchange(word, (self.rank + step) % self.size, np.empty(1, np.uint8), (self.rank - step) % self.size)
            step *= 2

    def node_barrier(self) -> None:
        raise AssertionError("the ranks of a stage share no memory")

    def native_allreduce(self, x: Array) -> None:
        check_contiguous(x)
        if self.size == 1:
            return
        if x.nbytes > EAGER_BYTES:
            ring.allreduce(x, self)
            return
        first, *others = self._all(x.reshape(-1).copy(), [x.size] * self.size)
        x.reshape(-1)[...] = first
        for other in others:  # in the order of ranks: the same bits on all of them
            x += other.reshape(x.shape)

    def broadcast(self, x: Array, root: int) -> None:
        if self.rank != root:
            self.receive(x, root)
            return
        for to in range(self.size):
            if to != root:
                self.send(x, to)

    def gather_objects(self, value: Any) -> list[Any]:
        packed = np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)
        sizes = [int(size[0]) for size in self._all(np.array([packed.size], np.int64), [1] * self.size)]
        return [pickle.loads(part.tobytes()) for part in self._all(packed, sizes)]

    def share(self, slot_bytes: int, common_bytes: int) -> NodeMemory | None:
        return None

    def refuses_device_memory(self, index: int) -> str:
        return "the ranks of a stage sum through the host"

    # What concerns all members is the whole group's.
    def wait_as_spare(self) -> int:
        raise AssertionError("a spare holds no stage")

    def release_spares(self, status: int = 0) -> None:
        raise AssertionError("spares wait for the whole group")

    def _vote(self, flags: int) -> int:
        raise AssertionError("a stage's ranks vote with the whole group")

    def _next(self, workers: int) -> Group:
        raise AssertionError("the whole group shrinks")

    def revoke(self) -> None:
        self.whole.revoke()

    def close(self) -> None:
        """Nothing to do."""
