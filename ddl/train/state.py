"""The state that a step commits: parameters, optimizer slots, running averages and counters.

Equal on all ranks between two steps. step.py computes the next one."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddl.arrays import Array, Device, FlatBuffer, Layout, Views, aligned, host
from ddl.data import Normalise, Transform
from ddl.metrics.jsonl import plain
from ddl.models.model import Model, initial_values
from ddl.optim import OwnState
from ddl.reading import take


@dataclass
class Progress:
    """How far training has come: small values that travel as JSON.

    step: committed steps, skipped ones included. stage: evaluations since the start; together they order states.
    epoch_sums: header sums of the running epoch. early_sums: loss and weight of the task's early steps.
    results: metrics by split, as last evaluated. optimizer: the state that it keeps beside slots, without its arrays.
    best, best_step: the lowest validation loss, and its step. stale: evaluations since. ended: early stopping has come.
    stopping: the ranks agreed to end early. final: which checkpoint the state is, once the best one has been restored.
    normalise: statistics of the training data, once they are known. total_steps: of the job. schedule_span: the steps
    for which the schedule of the learning rate is made; empty: all of them. loss_scale: of mixed precision;
    scaled_steps: steps since it last changed."""

    step: int = 0
    stage: int = 0
    samples: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    epoch_sums: list[float] = field(default_factory=list)
    early_sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluated_at: int = -1
    validated_at: int = -1
    tested_at: int = -1
    best: float | None = None
    best_step: int = -1
    stale: int = 0
    ended: bool = False
    stopping: bool = False
    final: dict[str, Any] = field(default_factory=dict)
    normalise: dict[str, Any] | None = None
    total_steps: int = 0
    schedule_span: list[int] = field(default_factory=list)
    optimizer: Any = None
    loss_scale: float = 1024.0
    scaled_steps: int = 0

    @property
    def position(self) -> tuple[int, int]:
        """Orders the states of ranks: the largest is the newest."""
        return self.step, self.stage

    @property
    def transforms(self) -> list[Transform]:
        """What a batch goes through before the model outside training: the normalisation, if there is one."""
        return [] if self.normalise is None else [Normalise.from_json(self.normalise)]

    def become(self, other: Progress) -> None:
        """Copy all values of ``other`` into this object, which other objects refer to."""
        self.__dict__.update(copy.deepcopy(other.__dict__))

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = plain(self.__dict__)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """The inverse of ``to_json``. JSON has no NaN, so nonfinite results and sums were written as null.

        Raises ValueError if ``values`` are not what ``to_json`` returns."""
        known = {**cls().__dict__, **copy.deepcopy(dict(values))}
        if unknown := set(known) - set(cls().__dict__):
            raise ValueError(f"{min(unknown)} is unknown")
        take(values, "step", int)
        for name in ("stage", "samples", "skipped", "skipped_in_row", "stale", "total_steps", "scaled_steps"):
            take(known, name, int)
        for name in ("evaluated_at", "validated_at", "tested_at", "best_step"):
            take(known, name, int, least=-1)
        take(known, "best", int, float, type(None), least=None)
        take(known, "final", dict), take(known, "loss_scale", int, float, least=1)
        take(known, "ended", bool), take(known, "stopping", bool)
        take(known, "normalise", dict, type(None)), take(known, "optimizer", dict, type(None))
        for name in ("epoch_sums", "early_sums"):
            for value in take(known, name, list):
                take({name: value}, name, int, float, type(None), least=None)
        if len(known["early_sums"]) != len(cls().early_sums):
            raise ValueError(f"early_sums is {known['early_sums']}")
        span = take(known, "schedule_span", list)
        if span and not (len(span) == 2 and all(isinstance(step, int) for step in span) and 0 <= span[0] < span[1]):
            raise ValueError(f"schedule_span = {span} are not two steps")
        for part in take(known, "results", dict):
            take(known["results"], part, dict)
        for name in ("epoch_sums", "early_sums", "results", "final"):
            known[name] = _numbers(known[name])
        return cls(**known)


def _numbers(value: Any) -> Any:
    """``value`` with NaN in place of null."""
    if isinstance(value, Mapping):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return math.nan if value is None else value


@dataclass(frozen=True)
class Replica:
    """The arrays that an optimizer updates: parameters and slots, flat and of one layout."""

    params: FlatBuffer
    slots: Mapping[str, Array]

    def flat_arrays(self) -> list[Array]:
        """The parameters, then the slots in their order."""
        return [self.params.flat, *self.slots.values()]


class TrainingState:
    """Flat buffers on a device, and the progress. buffers: averages and other buffers of the model, by name.

    The replica is either in private memory, and an update overwrites it, or in memory shared by the ranks of a node
    (``lodge``). There it exists twice: one copy is committed, and in the other each rank prepares its share of the
    next one. An array that is kept across a commit may belong to either copy.

    own: what the optimizer keeps beside the slots."""

    def __init__(
        self,
        model: Model,
        slots: tuple[str, ...],
        dtype: np.dtype | str,
        seed: int,
        device: Device,
        own: OwnState | None = None,
    ):
        self.device, self._own = device, own
        self.progress = Progress()
        self._coming: Replica | None = None  # where the next one is prepared
        self._is_guest = False  # in memory of a node that has been left
        self._slots, self._seed = slots, seed
        self.hold(model, dtype)

    def hold(self, model: Model, dtype: np.dtype | str) -> None:
        """Allocate the arrays of ``model`` with their initial values, instead of those of the model held so far."""
        device, kept = self.device, model.kept
        self.layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, dtype)
        average_layout = Layout.of({name: a.shape for name, a in model.averages.items()}, dtype)
        with device.activate():
            params = FlatBuffer(self.layout, xp=device.xp)
            self.replica = Replica(
                params, {n: aligned.zeros(self.layout.length, params.flat.dtype, device.xp) for n in self._slots}
            )
            self.averages = FlatBuffer(average_layout, xp=device.xp)
            self._kept = {name: device.array(np.array(one.initial)) for name, one in kept.items()}
            self._absent = {f"averages/{n}": one.absent for n, one in kept.items() if one.absent is not None}
            self.buffers = Views({**self.averages.views, **self._kept})
            for name, value in initial_values(model, self._seed).items():
                self.params[name][...] = device.array(value)
            for name, average in model.averages.items():
                self.averages[name][...] = device.array(np.asarray(average.initial))

    @property
    def params(self) -> FlatBuffer:
        return self.replica.params

    @property
    def slots(self) -> Mapping[str, Array]:
        return self.replica.slots

    def flat_arrays(self) -> list[Array]:
        """Every array of the state, in a fixed order; a rank that is behind receives these."""
        kept = [array.reshape(-1) for array in self._kept.values()]
        return [
            self.params.flat,
            self.averages.flat,
            *kept,
            *self.slots.values(),
            *self._arrays_of_optimizer().values(),
        ]

    def _arrays_of_optimizer(self) -> dict[str, np.ndarray]:
        return {} if self._own is None else self._own.named()[0]

    def meta(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""
        arrays, self.progress.optimizer = ({}, None) if self._own is None else self._own.named()
        return {"progress": self.progress.to_json(), "arrays": list(arrays)}

    def take_over(self, arrays: Sequence[np.ndarray], meta: Mapping[str, Any]) -> None:
        """Copy another rank's ``flat_arrays`` (host) and ``meta`` into this state; all ranks of a shared replica do."""
        names, progress = meta["arrays"], Progress.from_json(meta["progress"])
        common = len(arrays) - len(names)
        self.assign(arrays[:common])
        if self._own is not None:
            self._own.load(dict(zip(names, arrays[common:], strict=True)), progress.optimizer)
        self.progress.become(progress)

    def assign(self, arrays: Sequence[np.ndarray]) -> None:
        """Copy the first of another state's ``flat_arrays`` (host) into this one. In a shared replica also into the
        copy for the next one, where elements that no update writes must be the same; all ranks of the node do it."""
        self.own()
        for flat, received in zip(self.flat_arrays()[: len(arrays)], arrays, strict=True):
            flat[...] = self.device.array(received)
        if self._coming is not None:
            for flat, known in zip(self._coming.flat_arrays(), self.replica.flat_arrays(), strict=True):
                flat[...] = known

    # A replica that the ranks of a node share.

    def lodge(self, committed: Sequence[Array], coming: Sequence[Array]) -> None:
        """Move into the node's shared memory: two sets of arrays in the order of ``Replica.flat_arrays``, of which the
        first already holds this state."""
        self.replica, self._coming, self._is_guest = self._placed(committed), self._placed(coming), False

    def _placed(self, arrays: Sequence[Array]) -> Replica:
        params, *slots = arrays
        return Replica(FlatBuffer(self.layout, params), dict(zip(self.slots, slots, strict=True)))

    @property
    def coming(self) -> Replica:
        """The copy in which the ranks of the node prepare the next replica; no rank reads it until all are done."""
        assert self._coming is not None, "this state is not shared"
        return self._coming

    def advance(self) -> None:
        """Commit the prepared replica."""
        self.replica, self._coming = self.coming, self.replica

    def leave(self) -> None:
        """Stop sharing. The committed replica stays in the shared memory, which no rank writes again: if many ranks
        share a large replica, the node may not have room for one copy each."""
        self._is_guest, self._coming = self._is_guest or self._coming is not None, None

    def own(self) -> None:
        """Copy the replica into private memory if it is still in shared memory that was left; call before a write."""
        if self._is_guest:
            self.replica = self._placed([aligned.copy(flat) for flat in self.replica.flat_arrays()])
            self._is_guest = False

    def to_named(self) -> dict[str, np.ndarray]:
        """Host views or copies by name, as a checkpoint stores them: ``params/``, ``averages/``, ``<slot>/``."""
        named = {f"params/{name}": host(view) for name, view in self.params.views.items()}
        named.update({f"averages/{name}": host(view) for name, view in self.buffers.items()})
        for slot, flat in self.slots.items():
            named.update({f"{slot}/{name}": host(view) for name, view in self.layout.views(flat).items()})
        return {**named, **self._arrays_of_optimizer()}

    def load_named(self, named: Mapping[str, np.ndarray], of_optimizer: Any = None) -> None:
        """The inverse of ``to_named``; raises ValueError, changing nothing, when names or shapes differ.

        of_optimizer: ``Progress.optimizer``, of the same state."""
        self.own()
        targets = {f"params/{name}": view for name, view in self.params.views.items()}
        targets.update({f"averages/{name}": view for name, view in self.buffers.items()})
        for slot, flat in self.slots.items():
            targets.update({f"{slot}/{name}": view for name, view in self.layout.views(flat).items()})
        if (self._own is None) != (of_optimizer is None):
            raise ValueError("it was made with an optimizer of another kind")
        of_own = {name: value for name, value in named.items() if self._own is not None and name not in targets}
        named = {**self._absent, **{name: value for name, value in named.items() if name not in of_own}}
        if set(named) != set(targets):
            lacking, surplus = sorted(set(targets) - set(named)), sorted(set(named) - set(targets))
            raise ValueError(f"the saved state lacks {lacking[:3]} and has the unknown {surplus[:3]}")
        for name, view in targets.items():
            if named[name].shape != view.shape:
                raise ValueError(f"{name} was saved with shape {named[name].shape}, the model has {view.shape}")
        if self._own is not None:
            self._own.load(of_own, of_optimizer)
        for name, view in targets.items():
            view[...] = self.device.array(named[name])

    def digest(self, without: Collection[str] = ()) -> str:
        """SHA-256 over parameters, averages and slots: equal on ranks whose states are equal bit for bit.

        without: names of slots in which ranks differ."""
        sha, left_out = hashlib.sha256(), {id(self.slots[name]) for name in without}
        for flat in (flat for flat in self.flat_arrays() if id(flat) not in left_out):
            sha.update(np.ascontiguousarray(host(flat)).data)
        return sha.hexdigest()

    def parameters_digest(self) -> str:
        """SHA-256 of the parameters by name: what summary.json carries."""
        return digest_of(self.params.views)


def digest_of(named: Mapping[str, Array]) -> str:
    """SHA-256 of arrays by name, whatever their order."""
    sha = hashlib.sha256()
    for name, array in sorted(named.items()):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(host(array)).data)
    return sha.hexdigest()
