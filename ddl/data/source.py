"""The contract of a data source: samples by number, and the promise to keep only what a rank needs in memory.

Readers of files are in data/formats; how samples are cut into shards is decided in shards.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Batch = Mapping[str, np.ndarray]
_drawing: ContextVar[tuple[int, int] | None] = ContextVar("drawing", default=None)
LABELS_AT_ONCE = 4096  # samples


def drawing() -> tuple[int, int] | None:
    """(seed, epoch) while samples are gathered for training, else None.

    A source whose samples are random draws keys them by these and the sample's number."""
    return _drawing.get()


@contextmanager
def draw_for(seed: int, epoch: int) -> Iterator[None]:
    """Within this context, samples are gathered for training in this epoch."""
    token = _drawing.set((seed, epoch))
    try:
        yield
    finally:
        _drawing.reset(token)


@dataclass(frozen=True)
class Field:
    """One named part of a sample: ``shape`` without the batch axis, ``dtype`` as delivered.

    size: the values are whole numbers in 0 .. size - 1 (class numbers, token numbers); None for anything else."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))  # your own source may say "float32"


class Source:
    """Samples numbered 0 .. len - 1. A source has the field "x", "y" if there are targets, and may have others.

    A subclass implements ``fields``, ``__len__``, ``hold`` and ``gather``; every other member has a default. A class
    that implements these four without inheriting works too: ``as_source`` adds the defaults.
    Opening a source reads little more than headers. It raises DataError with file and offset for a damaged file."""

    names: Sequence[str] = ()  # names of the classes of "y", by class number; () if they have none
    notes: Sequence[str] = ()  # what was decided or left out on opening, one line each, printed at the start
    left_out = ""  # which samples cannot be read and were left out; every command that reads the source prints it
    stays_on_thread = False  # ``gather`` must be called by the thread that trains: no thread reads ahead
    is_cheap = False  # gathering is a copy in memory: no thread reads ahead
    is_sequential = False  # neighbouring samples continue one text: fractions split it into runs, not at random
    reads_from_start = False  # reaching a sample takes reading all before it
    fills_arrays = False  # ``gather_into`` writes straight into the given arrays

    @property
    def fields(self) -> Mapping[str, Field]:
        raise self._lacks("fields")

    def __len__(self) -> int:
        raise self._lacks("__len__")

    def hold(self, ranges: Sequence[range]) -> None:
        """Make exactly these samples available to ``gather`` and drop others: memory grows with them only.

        Called before the first ``gather``, and again whenever shards move to another rank."""
        raise self._lacks("hold")

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Samples by number, (n,) int64, all within the held ranges: field -> new array (n, *shape).

        Must be safe to call from two threads at once, unless the source ``stays_on_thread``."""
        raise self._lacks("gather")

    def _lacks(self, member: str) -> NotImplementedError:
        return NotImplementedError(f"the data source {type(self).__name__} does not define {member}")

    def gather_into(self, indices: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """``gather`` into the arrays ``out``, each (n, *shape) and of its field's dtype."""
        for name, value in self.gather(indices).items():
            out[name][...] = value

    def fit(self, indices: np.ndarray) -> None:
        """Learn from these samples, the training part, what reading depends on (a vocabulary)."""

    def learned(self) -> dict[str, Any]:
        """Columns, words and class names as plain JSON values; a checkpoint keeps them."""
        return {}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Apply the numbering of classes and words recorded in ``learned``. Raises DataError for unknown ones."""

    def exact(self) -> Source:
        """The source with its numbers in float64 where the stored ones have more precision than the delivered ones."""
        return self

    def targets(self) -> np.ndarray | None:
        """Every sample's target as stored, before any conversion; None if reading them all is not cheap."""
        return None

    def content(self) -> Sequence[Path | np.ndarray]:
        """The files or arrays that hold all samples, to be hashed whole; none if that is unknown."""
        return ()

    def identifiers(self) -> tuple[str, np.ndarray]:
        """(heading, (n,) values): a name for each sample, such as its file's; default: its row, counted from 1."""
        return "row", np.arange(1, len(self) + 1)

    def original(self, index: int) -> int:
        """The number of sample ``index`` in the data from which this source was taken, for messages."""
        return index

    def labels(self) -> np.ndarray:
        """The field "y" of every sample, read piece by piece; afterwards the source holds nothing."""
        pieces = []
        for start in range(0, len(self), LABELS_AT_ONCE):
            piece = range(start, min(start + LABELS_AT_ONCE, len(self)))
            self.hold([piece])
            pieces.append(self.gather(np.arange(piece.start, piece.stop))["y"])
        self.hold([])
        return np.concatenate(pieces)


class Wrapper(Source):
    """A source made from another: everything is passed on until a subclass changes it."""

    def __init__(self, source: Source):
        self.source = source

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return self.source.names

    @property
    def notes(self) -> Sequence[str]:  # type: ignore[override]
        return self.source.notes

    @property
    def left_out(self) -> str:  # type: ignore[override]
        return self.source.left_out

    @property
    def stays_on_thread(self) -> bool:  # type: ignore[override]
        return self.source.stays_on_thread

    @property
    def is_cheap(self) -> bool:  # type: ignore[override]
        return self.source.is_cheap

    @property
    def is_sequential(self) -> bool:  # type: ignore[override]
        return self.source.is_sequential

    @property
    def reads_from_start(self) -> bool:  # type: ignore[override]
        return self.source.reads_from_start

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.source.fields

    def __len__(self) -> int:
        return len(self.source)

    def hold(self, ranges: Sequence[range]) -> None:
        self.source.hold(ranges)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.source.gather(indices)

    def fit(self, indices: np.ndarray) -> None:
        self.source.fit(indices)

    def learned(self) -> dict[str, Any]:
        return self.source.learned()

    def recall(self, learned: Mapping[str, Any]) -> None:
        self.source.recall(learned)

    def targets(self) -> np.ndarray | None:
        return self.source.targets()

    def content(self) -> Sequence[Path | np.ndarray]:
        return self.source.content()

    def identifiers(self) -> tuple[str, np.ndarray]:
        return self.source.identifiers()

    def labels(self) -> np.ndarray:
        return self.source.labels()

    def original(self, index: int) -> int:
        return self.source.original(index)


_MEMBERS = (
    *("hold", "gather", "gather_into", "fit", "learned", "recall", "targets", "labels", "content"),
    *("identifiers", "original", "names", "notes", "left_out", "stays_on_thread", "is_cheap", "is_sequential"),
)


class _Adapted(Source):
    """A source that does not inherit ``Source``: its own members, and the defaults for those it lacks."""

    def __init__(self, source: Any):
        self.source = source
        for name in _MEMBERS:
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))
        self.fills_arrays = hasattr(source, "gather_into")

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.source.fields

    def __len__(self) -> int:
        return len(self.source)


def as_source(source: Any) -> Source:
    """``source`` itself, or with the defaults of ``Source`` for the members that it lacks."""
    return source if isinstance(source, Source) else _Adapted(source)
