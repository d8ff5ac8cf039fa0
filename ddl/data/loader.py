"""Load batches in order: gather a rank's samples of each step, transform them, and read ahead if that pays.

order.py chooses the samples; transforms.py transforms them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddl.arrays import generator
from ddl.data.order import Order, Table
from ddl.data.source import Batch, Source, as_source, draw_for
from ddl.data.transforms import Transform
from ddl.registry import adapt

CLOSE_DEADLINE_S = 5.0

Key = tuple[int, int, int]  # epoch, step in epoch, part


class Draws(Sequence[np.random.Generator]):
    """One generator per segment, keyed by (seed, epoch, step, part, shard); made on demand, since few steps need it."""

    def __init__(self, seed: int, key: Key, shards: Sequence[int]):
        self._seed, self._key, self._shards = seed, key, shards
        self._made: dict[int, np.random.Generator] = {}

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, place: Any) -> Any:
        if place not in self._made:
            shard = self._shards[place]  # IndexError ends an iteration
            self._made[place] = generator(self._seed, "augment", *self._key, shard)
        return self._made[place]


class Slot:
    """Arrays that a batch is gathered into; they are reused."""

    def __init__(self, source: Source, rows: int):
        self._arrays = {name: np.empty((rows, *f.shape), f.dtype) for name, f in source.fields.items()}
        self._views: dict[int, dict[str, np.ndarray]] = {}

    def views(self, rows: int) -> dict[str, np.ndarray]:
        """The first ``rows`` rows of each; a new dict, since transforms may put other arrays into it."""
        views = self._views.get(rows)
        if views is None:
            views = self._views[rows] = {name: value[:rows] for name, value in self._arrays.items()}
        return dict(views)


class Loader:
    """The batches of the shards of one rank.

    shards: the shards to load; ``source.hold`` is called with their samples. transforms: applied to each batch one
    after another, see transforms.py. prefetch: batches that a thread reads ahead; there is no thread if it is 0, or
    for a source in memory without a costly transform. parts: micro-batches of a step.

    The arrays of a batch stay valid until the second call of ``batch`` after it."""

    def __init__(
        self,
        source: Source,
        order: Order,
        shards: Sequence[int],
        *,
        transforms: Sequence[Any] = (),
        prefetch: int = 2,
        seed: int = 0,
        parts: int = 1,
    ):
        if len(source) != order.samples:
            raise ValueError(f"an order of {order.samples} samples for a source of {len(source)}")
        self.source, self.order, self.shards = as_source(source), order, list(shards)
        self.transforms, self.seed, self.parts = [adapt(one, Transform) for one in transforms], seed, parts
        self.source.hold([order.shard_range(shard) for shard in self.shards])
        self._tables: dict[int, Table] = {}
        cheap = self.source.is_cheap and all(transform.is_cheap for transform in self.transforms)
        self.prefetch = 0 if cheap or self.source.stays_on_thread or not self.shards else prefetch
        self._slots: list[Slot] = []
        self._free: deque[int] = deque()  # numbers of unused slots
        self._given: deque[int] = deque()  # slots of the last two batches handed out
        self._ready: deque[tuple[Key, int, Any]] = deque()  # key, slot, batch or exception
        self._turn = 0
        self._next: Key | None = None  # what the thread makes next; None: nothing
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def batch(self, epoch: int, step_in_epoch: int, part: int = 0) -> tuple[Batch, list[slice]]:
        """The micro-batch, rows by shard, and the slice of each shard. May raise whatever the source raises.

        In sequence, it has been read ahead; any other batch is read now."""
        key = (epoch, step_in_epoch, part)
        if not self._slots:
            self._make_slots(epoch)
        if self._closed:
            raise ValueError("the loader is closed")
        if not self.prefetch:  # without a thread, the slots are used in rotation
            self._turn = (self._turn + 1) % len(self._slots)
            return self._make(key, self._slots[self._turn])
        with self._changed:
            if len(self._given) == 2:
                self._free.append(self._given.popleft())
            ready = self._take_ready(key)
            if ready is None:
                # The thread was reading ahead in another order. If it is making this very batch now, it is made twice.
                self._free.extend(slot for _, slot, _ in self._ready)
                self._ready.clear()
                self._next = self._after(key)
                slot = self._free.popleft()
                self._changed.notify_all()
        if ready is not None:
            slot, made = ready
            self._given.append(slot)
            if isinstance(made, BaseException):
                raise made
            return made
        self._given.append(slot)
        if self._thread is None:
            self._thread = threading.Thread(target=self._read_ahead, name="ddl-prefetch", daemon=True)
            self._thread.start()
        return self._make(key, self._slots[slot])

    def direct(self, epoch: int, step_in_epoch: int, part: int, shards: Sequence[int]) -> tuple[Batch, list[slice]]:
        """The same rows for some of this rank's shards, in new arrays; batches read ahead stay valid."""
        indices, segments = self.order.indices(epoch, step_in_epoch, shards, part, self.parts)
        with draw_for(self.seed, epoch):
            batch: Any = self.source.gather(indices)
        return self._transformed(batch, segments, (epoch, step_in_epoch, part), shards), segments

    def not_finite(self, epoch: int, step_in_epoch: int, shards: Sequence[int]) -> str:
        """The first value of these shards in a step that is NaN or infinite in the data; "" if none is."""
        for part in range(self.parts):
            indices, _ = self.order.indices(epoch, step_in_epoch, shards, part, self.parts)
            with draw_for(self.seed, epoch):
                batch: Any = self.source.gather(indices)
            for name, values in batch.items():
                if values.dtype.kind != "f" or (fine := np.isfinite(values)).all():
                    continue
                row, *place = np.argwhere(~fine)[0].tolist()
                where = f" in column {place[0]}" if len(place) == 1 else f" at index {tuple(place)}" if place else ""
                sample = self.source.original(int(indices[row]))
                return f"{name} of sample {sample} is {values[row][tuple(place)]}{where}"
        return ""

    def close(self) -> bool:
        """End the thread; False if it did not end in time, being stuck in a read; it then ends with the process."""
        with self._changed:
            self._closed = True
            self._next = None
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(CLOSE_DEADLINE_S)
        return not self._thread.is_alive()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _make_slots(self, epoch: int) -> None:
        rows = self._table(epoch).most_rows
        # The caller uses two, ``prefetch`` are ready, one is being filled.
        self._slots = [Slot(self.source, rows if self.source.fills_arrays else 0) for _ in range(self.prefetch + 3)]
        self._free.extend(range(len(self._slots)))

    def _table(self, epoch: int) -> Table:
        table = self._tables.get(epoch)
        if table is None:
            table = self._tables[epoch] = self.order.table(epoch, self.shards, self.parts)
            for old in list(self._tables)[:-2]:
                self._tables.pop(old, None)
        return table

    def _after(self, key: Key) -> Key:
        epoch, step, part = key
        if part + 1 < self.parts:
            return epoch, step, part + 1
        return (epoch, step + 1, 0) if step + 1 < self.order.steps_per_epoch else (epoch + 1, 0, 0)

    def _make(self, key: Key, slot: Slot) -> tuple[Batch, list[slice]]:
        epoch, step, part = key
        indices, segments = self._table(epoch).row(step * self.parts + part)
        if self.source.fills_arrays:
            batch: Any = slot.views(len(indices))
            self.source.gather_into(indices, batch)
        else:
            with draw_for(self.seed, epoch):
                batch = self.source.gather(indices)
        return self._transformed(batch, segments, key, self.shards), segments

    def _transformed(self, batch: Any, segments: list[slice], key: Key, shards: Sequence[int]) -> Mapping[str, Any]:
        if self.transforms:
            draws = Draws(self.seed, key, shards)
            for transform in self.transforms:
                batch = transform(batch, segments, draws)
        return batch

    def _take_ready(self, key: Key) -> tuple[int, Any] | None:
        """The batch of ``key`` when it was read ahead or is being read; waits for the latter. Holds the lock."""
        if self._next is None and not self._ready:
            return None
        first = self._ready[0][0] if self._ready else self._next
        if first != key:
            return None
        while not self._ready:
            # The thread always produces a result: a batch, its exception, or its death.
            self._changed.wait(1.0)
            if self._closed or (not self._ready and (self._thread is None or not self._thread.is_alive())):
                return None
        _, slot, made = self._ready.popleft()
        self._changed.notify_all()
        return slot, made

    def _read_ahead(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (self._next is None or len(self._ready) >= self.prefetch or not self._free):
                    self._changed.wait()
                if self._closed:
                    return
                key = self._next
                assert key is not None
                number = self._free.popleft()
            try:
                made: Any = self._make(key, self._slots[number])
            except BaseException as error:  # raised by the next call of batch()
                made = error
            with self._changed:
                if self._next != key:  # the caller has asked for another batch meanwhile
                    self._free.append(number)
                    continue
                self._ready.append((key, number, made))
                # After an exception nothing more is read ahead until the caller asks for something else.
                self._next = None if isinstance(made, BaseException) else self._after(key)
                self._changed.notify_all()
