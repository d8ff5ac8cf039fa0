"""The state that a step commits: parameters, optimizer slots, running averages and counters.

Equal on all ranks between two steps. Who computes the next one is step.py's."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddl.arrays import Array, Device, FlatBuffer, Layout, aligned, host
from ddl.metrics.jsonl import plain
from ddl.models.model import Model, initial_values


@dataclass
class Progress:
    """How far training has come: small values that travel as JSON.

    step: committed steps, skipped ones included. stage: evaluations since the start; together they order states.
    epoch_sums: header sums of the running epoch. results: metrics by split, as last evaluated.
    best, stale: early stopping; ended: it has come. stopping: the ranks agreed to end early.
    normalise: statistics of the training data, once they are known. total_steps: of the job. schedule_span: the steps
    for which the schedule of the learning rate is made; empty: all of them."""

    step: int = 0
    stage: int = 0
    samples: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    epoch_sums: list[float] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluated_at: int = -1
    validated_at: int = -1
    tested_at: int = -1
    best: float | None = None
    stale: int = 0
    ended: bool = False
    stopping: bool = False
    normalise: dict[str, Any] | None = None
    total_steps: int = 0
    schedule_span: list[int] = field(default_factory=list)

    @property
    def position(self) -> tuple[int, int]:
        """Orders the states of ranks: the largest is the newest."""
        return self.step, self.stage

    def become(self, other: Progress) -> None:
        """Take over all of ``other``'s values; whoever holds this object sees them."""
        self.__dict__.update(copy.deepcopy(other.__dict__))

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = plain(self.__dict__)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """JSON has no NaN: what is null in results and sums was a value that is not finite."""
        known = copy.deepcopy(dict(values))
        for name in ("epoch_sums", "results"):
            if name in known:
                known[name] = _numbers(known[name])
        return cls(**known)


def _numbers(value: Any) -> Any:
    """``value``, in which null stands for NaN."""
    if isinstance(value, Mapping):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return math.nan if value is None else value


@dataclass(frozen=True)
class Replica:
    """What an optimizer changes: parameters and slots, flat arrays of one layout."""

    params: FlatBuffer
    slots: Mapping[str, Array]

    def flat_arrays(self) -> list[Array]:
        """The parameters, then the slots in their order."""
        return [self.params.flat, *self.slots.values()]


class State:
    """Flat buffers on a device, and the progress.

    The replica lies in memory of this rank's own, where an update writes over it; or in memory that the ranks of a
    node share, in two places: one holds what is committed, in the other they prepare what comes next, each rank its
    share (``lodge``). Whoever keeps one of its arrays across a commit may see either."""

    def __init__(self, model: Model, slots: tuple[str, ...], dtype: np.dtype | str, seed: int, device: Device):
        self.device = device
        self.layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, dtype)
        average_layout = Layout.of({name: a.shape for name, a in model.averages.items()}, dtype)
        self.progress = Progress()
        self._coming: Replica | None = None  # where the next one is prepared
        self._is_guest = False  # in memory of a node that has been left
        with device.activate():
            params = FlatBuffer(self.layout, xp=device.xp)
            self.replica = Replica(
                params, {n: aligned.zeros(self.layout.length, params.flat.dtype, device.xp) for n in slots}
            )
            self.averages = FlatBuffer(average_layout, xp=device.xp)
            for name, value in initial_values(model, seed).items():
                self.params[name][...] = device.array(value)
            for name, average in model.averages.items():
                self.averages[name][...] = average.initial

    @property
    def params(self) -> FlatBuffer:
        return self.replica.params

    @property
    def slots(self) -> Mapping[str, Array]:
        return self.replica.slots

    def flat_arrays(self) -> list[Array]:
        """Every array of the state, in a fixed order: what a rank that is behind receives."""
        return [self.params.flat, self.averages.flat, *self.slots.values()]

    def assign(self, arrays: Sequence[np.ndarray]) -> None:
        """Hold what another rank's ``flat_arrays`` hold, on the host; in a shared replica also where the next is to
        come, since what no update writes must be the same there. All ranks of its node then assign the same."""
        self.own()
        for flat, received in zip(self.flat_arrays(), arrays, strict=True):
            flat[...] = self.device.array(received)
        if self._coming is not None:
            for flat, known in zip(self._coming.flat_arrays(), self.replica.flat_arrays(), strict=True):
                flat[...] = known

    # A replica that the ranks of a node share.

    def lodge(self, committed: Sequence[Array], coming: Sequence[Array]) -> None:
        """Live in memory of the node: two sets of arrays in the order of ``Replica.flat_arrays``, of which the first
        holds what this state holds."""
        self.replica, self._coming, self._is_guest = self._placed(committed), self._placed(coming), False

    def _placed(self, arrays: Sequence[Array]) -> Replica:
        params, *slots = arrays
        return Replica(FlatBuffer(self.layout, params), dict(zip(self.slots, slots, strict=True)))

    @property
    def coming(self) -> Replica:
        """Where the ranks of the node prepare the next replica; nobody reads it before all have."""
        assert self._coming is not None, "this state is not shared"
        return self._coming

    def advance(self) -> None:
        """What they have prepared is the committed replica now."""
        self.replica, self._coming = self.coming, self.replica

    def leave(self) -> None:
        """Share no more. What is committed stays where it lies, in memory that nobody writes again: where many ranks
        share a large replica there may be no room for one each."""
        self._is_guest, self._coming = self._is_guest or self._coming is not None, None

    def own(self) -> None:
        """Before this rank writes to the replica: into memory of its own, where it has left the node's."""
        if self._is_guest:
            self.replica = self._placed([aligned.copy(flat) for flat in self.replica.flat_arrays()])
            self._is_guest = False

    def to_named(self) -> dict[str, np.ndarray]:
        """Host views or copies by name, as a checkpoint stores them: ``params/``, ``averages/``, ``<slot>/``."""
        named = {f"params/{name}": host(view) for name, view in self.params.views.items()}
        named.update({f"averages/{name}": host(view) for name, view in self.averages.views.items()})
        for slot, flat in self.slots.items():
            named.update({f"{slot}/{name}": host(view) for name, view in self.layout.views(flat).items()})
        return named

    def load_named(self, named: Mapping[str, np.ndarray]) -> None:
        """The inverse of ``to_named``; raises ValueError, changing nothing, when names or shapes differ."""
        self.own()
        targets = {f"params/{name}": view for name, view in self.params.views.items()}
        targets.update({f"averages/{name}": view for name, view in self.averages.views.items()})
        for slot, flat in self.slots.items():
            targets.update({f"{slot}/{name}": view for name, view in self.layout.views(flat).items()})
        if set(named) != set(targets):
            lacking, surplus = sorted(set(targets) - set(named)), sorted(set(named) - set(targets))
            raise ValueError(f"the saved state lacks {lacking[:3]} and has {surplus[:3]} besides")
        for name, view in targets.items():
            if named[name].shape != view.shape:
                raise ValueError(f"{name} was saved with shape {named[name].shape}, the model has {view.shape}")
        for name, view in targets.items():
            view[...] = self.device.array(named[name])

    def digest(self) -> str:
        """SHA-256 over parameters, averages and slots: equal on ranks whose states are equal bit for bit."""
        sha = hashlib.sha256()
        for flat in self.flat_arrays():
            sha.update(np.ascontiguousarray(host(flat)).data)
        return sha.hexdigest()

    def parameters_digest(self) -> str:
        """SHA-256 of the parameters by name: what summary.json carries."""
        sha = hashlib.sha256()
        for name, view in sorted(self.params.views.items()):
            sha.update(name.encode())
            sha.update(np.ascontiguousarray(host(view)).data)
        return sha.hexdigest()
