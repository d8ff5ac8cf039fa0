"""Sums of gradients that wait for the end of backward, and are then done together.

DDP asks for the sum of a bucket while backward computes the others. In the middle of backward, on cores that are all
computing, each sum would make the ranks wait for the slowest once more. What a sum is, is in process_group.py."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ddl.collectives import PersistentAllreduce
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
        """Call it during backward."""
        number = torch._C._current_graph_task_id()
        backward = self._backwards.get(number)
        if backward is None:
            backward = self._backwards[number] = _Backward()
            # DDP queues a callback that waits for its sums after it has asked for the last: it runs after this one.
            torch.autograd.Variable._execution_engine.queue_callback(partial(self.run, backward))
        made = Deferred(tensors, operation, self.run)
        backward.sums.append(made)
        return made

    def run(self, backward: _Backward | None = None) -> None:
        """Do the sums of all passes that are running, also those that their callbacks ask for."""
        while sums := [one for each in list(self._backwards.values()) for one in each.sums]:
            for each in list(self._backwards.values()):
                each.sums.clear()
            self._do(sums)
            for one in sums:
                one.finish()


class Sums:
    """Sums tensors over a group's ranks, in place, through memory that the ranks of a node share where possible."""

    def __init__(self, group: Group):
        self.group = group
        self._kept: dict[tuple[int, torch.dtype], PersistentAllreduce] = {}

    def sum(self, flats: Sequence[Tensor]) -> None:
        """flats: (length,) each, contiguous, of one type. Raises PeerLost; they are then undefined."""
        dtype, length = flats[0].dtype, sum(flat.numel() for flat in flats)
        pieces = -(-length * flats[0].itemsize // PIECE_BYTES)
        most = -(-length // max(pieces, 1))
        for views in cut(flats, most):
            kept = self._kept.get((most, dtype))
            if kept is None:
                kept = self._kept[most, dtype] = PersistentAllreduce(self.group, most, _NUMPY[dtype])
            sizes = [view.numel() for view in views]
            rest = most - sum(sizes)
            local, result = (torch.from_numpy(array).split([*sizes, rest]) for array in (kept.local, kept.result))
            for view, place in zip(views, local):
                place.copy_(view)
            kept.run()
            for view, place in zip(views, result):
                view.copy_(place)


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}
SUMMED = tuple(_NUMPY)


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
