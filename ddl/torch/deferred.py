"""Sums of gradients that wait for the end of backward, and are then done together.

DDP asks for the sum of a bucket while backward computes the others. In the middle of backward, on cores that are all
computing, each sum would make the ranks wait for the slowest once more. What a sum is, is in process_group.py."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ddl.collectives import allreduce
from ddl.collectives.shared import runs
from ddl.comm import Group

PIECE_BYTES = 4 << 20  # in the cache; each piece costs two barriers


class Deferred(dist.Work):
    """An asynchronous sum of ``tensors``. run: does all the sums that wait."""

    def __init__(self, tensors: Sequence[Tensor], operation: Any, run: Callable[[], None]):
        super().__init__()
        self.tensors, self.operation = tensors, operation
        self._future, self._run = _Future(run), run

    def finish(self) -> None:
        self._future.set_result(self.tensors)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        self._run()
        return True

    def get_future(self) -> Any:
        return self._future

    def is_completed(self) -> bool:
        return bool(self._future.done())

    def is_success(self) -> bool:
        return self.is_completed()


class _Future(torch.futures.Future):  # type: ignore[type-arg]
    def __init__(self, run: Callable[[], None]):
        super().__init__()
        self._run = run

    def wait(self) -> Any:
        self._run()
        return super().wait()


class _Backward:
    """What one backward pass has deferred. PyTorch holds it until the pass has ended or failed."""

    def __init__(self) -> None:
        self.sums: list[Deferred] = []


class Deferrals:
    """do: does some sums, in the order in which they were asked for, which is the same on all ranks."""

    def __init__(self, do: Callable[[Sequence[Deferred]], None]):
        self._do = do
        # By PyTorch's number of the pass. Reentrant checkpointing runs a pass inside another.
        self._backwards: weakref.WeakValueDictionary[int, _Backward] = weakref.WeakValueDictionary()

    def add(self, tensors: Sequence[Tensor], operation: Any) -> Deferred:
        """Call it during backward. A sum that is asked for after the last gradient is done at once: DDP with a static
        graph asks so in its first step, and then waits where no Python runs."""
        made = Deferred(tensors, operation, self.run)
        if torch._C._current_autograd_node() is None:
            self.run()
            self._do([made])
            made.finish()
            return made
        number = torch._C._current_graph_task_id()
        backward = self._backwards.get(number)
        if backward is None:
            backward = self._backwards[number] = _Backward()
            # DDP queues a callback that waits for its sums after it has asked for the last: it runs after this one.
            torch.autograd.Variable._execution_engine.queue_callback(partial(self.run, backward))
        backward.sums.append(made)
        return made

    def run(self, backward: _Backward | None = None) -> None:
        """Do the sums of all passes that are running. backward: stays alive as an argument until its callback runs."""
        while sums := [one for each in list(self._backwards.values()) for one in each.sums]:
            for each in list(self._backwards.values()):
                each.sums.clear()
            self._do(sums)
            for one in sums:
                one.finish()


class Sums:
    """Sums tensors over a group's ranks, in place, in memory that the ranks share if they are on one node.

    In PyTorch's own kernels: with ddl's, a rank would load Numba for this alone."""

    def __init__(self, group: Group):
        self.group = group
        self._memory: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor] | None] = {}

    def sum(self, flats: Sequence[Tensor]) -> None:
        """flats: (length,) each, contiguous, of one type. Raises PeerLost; they are then undefined."""
        dtype, length = flats[0].dtype, sum(flat.numel() for flat in flats)
        if not length:
            return
        pieces = max(-(-length * flats[0].itemsize // PIECE_BYTES), 1)
        most = -(-length // pieces)
        shared = self._shared(most, dtype) if dtype in SUMMED_IN_NODE else None
        if shared is None:
            for flat in flats:
                allreduce(flat.numpy(), self.group)
            return
        rows, total = shared
        me = self.group.local_ranks.index(self.group.rank)
        for views in cut(flats, most):
            places = [slice(stop - len(view), stop) for view, stop in zip(views, accumulate(map(len, views)))]
            for view, place in zip(views, places):
                rows[me, place] = view
            self.group.node_barrier()
            lane = runs(places[-1].stop, len(rows), flats[0].itemsize)[me]
            torch.add(rows[0, lane], rows[1, lane], out=total[lane])
            for row in rows[2:]:
                total[lane] += row[lane]
            self.group.node_barrier()
            for view, place in zip(views, places):
                view.copy_(total[place])

    def _shared(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """(ranks, length) and (length,) in shared memory; None on all ranks if they cannot share any."""
        key = length, dtype
        if key not in self._memory:
            nbytes = length * dtype.itemsize
            memory = self.group.share(nbytes, nbytes) if len(self.group.nodes) == 1 < self.group.size else None
            self._memory[key] = None
            if memory is not None:
                arrays = memory.slots[:, :nbytes], memory.common[:nbytes]
                rows, total = (torch.from_numpy(array).view(dtype) for array in arrays)
                self._memory[key] = rows, total
        return self._memory[key]


SUMMED = (torch.float32, torch.float64, torch.float16)
SUMMED_IN_NODE = (torch.float32, torch.float64)  # halves are added in float32 and rounded once


def cut(flats: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """The elements of ``flats`` in their order, as lists of views that hold ``most`` elements together; the last one
    may hold fewer."""
    views: list[Tensor] = []
    room = most
    for flat in flats:
        while len(flat):
            views.append(flat[:room])
            flat = flat[room:]
            room -= len(views[-1])
            if not room:
                yield views
                views, room = [], most
    if views:
        yield views
