"""The state that a step commits: parameters, optimizer slots, running averages and counters.

Equal on all ranks between two steps. Who computes the next one is step.py's."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddl.arrays import Array, Device, FlatBuffer, Layout, host
from ddl.metrics.jsonl import plain
from ddl.models.model import Model, initial_values


@dataclass
class Progress:
    """How far training has come: small values that travel as JSON.

    step: committed steps, skipped ones included. stage: evaluations since the start; together they order states.
    epoch_sums: header sums of the running epoch. results: metrics by split, as last evaluated.
    best, stale: early stopping; ended: it has come. stopping: the ranks agreed to end early.
    normalise: statistics of the training data, once they are known."""

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


class State:
    """Flat buffers on a device, and the progress. All arrays keep their place for the life of the job."""

    def __init__(self, model: Model, slots: tuple[str, ...], dtype: np.dtype | str, seed: int, device: Device):
        self.device = device
        self.layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, dtype)
        average_layout = Layout.of({name: a.shape for name, a in model.averages.items()}, dtype)
        self.progress = Progress()
        with device.activate():
            self.params = FlatBuffer(self.layout, xp=device.xp)
            self.averages = FlatBuffer(average_layout, xp=device.xp)
            self.slots: dict[str, Array] = {name: device.xp.zeros_like(self.params.flat) for name in slots}
            for name, value in initial_values(model, seed).items():
                self.params[name][...] = device.array(value)
            for name, average in model.averages.items():
                self.averages[name][...] = average.initial

    def flat_arrays(self) -> list[Array]:
        """Every array of the state, in a fixed order: what a rank that is behind receives."""
        return [self.params.flat, self.averages.flat, *self.slots.values()]

    def to_named(self) -> dict[str, np.ndarray]:
        """Host views or copies by name, as a checkpoint stores them: ``params/``, ``averages/``, ``<slot>/``."""
        named = {f"params/{name}": host(view) for name, view in self.params.views.items()}
        named.update({f"averages/{name}": host(view) for name, view in self.averages.views.items()})
        for slot, flat in self.slots.items():
            named.update({f"{slot}/{name}": host(view) for name, view in self.layout.views(flat).items()})
        return named

    def load_named(self, named: Mapping[str, np.ndarray]) -> None:
        """The inverse of ``to_named``; raises ValueError, changing nothing, when names or shapes differ."""
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
