"""The one model protocol, and the model most people need: a network, a loss and metrics.

The trainer knows nothing else about models: a GAN, a language model or another framework's
network implement the same five members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ddl.arrays import Array, Layout, Views, generator
from ddl.nn.context import Context
from ddl.nn.layer import Average, Initialiser, Layer, Shape
from ddl.nn.metric import Metric

Batch = Mapping[str, Array]  # field name -> (rows, ...): "x" and, where there is one, "y"
Sums = Mapping[str, Any]  # metric name -> sum over the batch: a float or a small array


@runtime_checkable
class Model(Protocol):
    """What the trainer asks of a model. All members are pure: state comes in, state goes out."""

    @property
    def params(self) -> Mapping[str, tuple[Shape, Initialiser]]:
        """name -> (shape, initialiser), in the order in which forward uses them."""
        ...

    @property
    def averages(self) -> Mapping[str, Average]:
        """name -> running average (buffer); empty for most models."""
        ...

    @property
    def step_metrics(self) -> Sequence[str]:
        """Names of the sums that ``loss_and_gradients`` returns in training, each a float.

        A metric may need several (``accuracy``, ``accuracy/1``): ``metric_values`` wants them together."""
        ...

    def loss_and_gradients(
        self, params: Views, buffers: Views, batch: Batch, grads: Views | None, ctx: Context
    ) -> tuple[float, float, Sums]:
        """(sum of the loss, weight, metric sums) of a batch.

        Gradients are those of the SUM, written (not added) into ``grads``, whose names are those of ``params``
        and ``averages``; None asks for no gradients. ``weight`` is what the mean divides by: samples, or
        tokens that are not padding, or class weights. In evaluation all metrics are returned."""
        ...

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, Array]:
        """Outputs by name, rows as in the batch: what ``ddl.predict`` writes."""
        ...

    def metric_values(self, sums: Sums, weight: float) -> dict[str, Any]:
        """Sums over any number of batches and ranks -> values people read: accuracy, perplexity, ..."""
        ...


class Loss(Protocol):
    """A loss over a batch of outputs and targets; both have the batch axis first."""

    def forward(self, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        """(sum of the loss, weight, cache for backward)."""
        ...

    def backward(self, cache: Any) -> Array:
        """Gradient of the SUM with respect to ``outputs``."""
        ...


def initial_values(model: Model, seed: int) -> dict[str, np.ndarray]:
    """name -> initial parameter in float64, each from a generator keyed by its name."""
    return {
        name: initial(shape, generator(seed, f"parameter {name}")) for name, (shape, initial) in model.params.items()
    }


def gradient_layout(model: Model, dtype: np.dtype | str) -> Layout:
    """The layout of gradients: parameters first (as in the parameter layout), then the sums of averages."""
    shapes = {name: shape for name, (shape, _) in model.params.items()}
    return Layout.of({**shapes, **{name: a.shape for name, a in model.averages.items()}}, dtype)


@dataclass(frozen=True)
class Supervised:
    """A network trained on pairs: batch["x"] goes in, the loss compares the output with batch["y"].

    ``target`` names the field that the loss compares with; "x" makes an autoencoder.
    ``shape`` is that of one sample of "x"."""

    network: Layer
    loss: Loss
    shape: Shape
    metrics: Sequence[Metric] = ()
    target: str = "y"
    _states: list[tuple[Views, Views, Views]] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def spec(self):
        return self.network.spec(self.shape)

    @property
    def params(self) -> Mapping[str, tuple[Shape, Initialiser]]:
        return self.spec.params

    @property
    def averages(self) -> Mapping[str, Average]:
        return self.spec.averages

    @property
    def synchronised(self) -> bool:
        """Whether layers ask all ranks for sums while they compute."""
        return bool(self.spec.synchronised)

    @property
    def by_rows(self) -> Sequence[str]:
        """Parameters whose gradients are announced with the rows that were written."""
        return self.spec.by_rows

    @property
    def step_metrics(self) -> Sequence[str]:
        return [name for m in self.metrics for name in _step_names(m)]

    def _state(self, params: Views, buffers: Views) -> Views:
        """Parameters and averages in one set of views; kept, since it is the same at every step."""
        if not self.averages:
            return params
        for of_params, of_buffers, state in self._states:
            if of_params is params and of_buffers is buffers:
                return state
        self._states[:] = [(params, buffers, Views({**params, **buffers}))]
        return self._states[0][2]

    def loss_and_gradients(
        self, params: Views, buffers: Views, batch: Batch, grads: Views | None, ctx: Context
    ) -> tuple[float, float, Sums]:
        state = self._state(params, buffers)
        ctx.data = batch["x"]
        with ctx.span("forward"):
            outputs, cache = self.network.forward(state, batch["x"], ctx)
        targets = batch[self.target]
        loss, weight, kept = self.loss.forward(outputs, targets, ctx)
        sums: dict[str, Any] = {}
        for metric in self.metrics:
            if not ctx.training:
                sums[metric.name] = metric.sums(outputs, targets, loss)
            elif metric.every_step:
                values = np.atleast_1d(metric.sums(outputs, targets, loss)).tolist()
                sums.update(zip(_step_names(metric), values, strict=True))
        if grads is not None:
            with ctx.span("backward"):
                for names in self.network.backward(state, grads, cache, self.loss.backward(kept)):
                    ctx.announce(names)
        return loss, weight, sums

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, Array]:
        outputs, _ = self.network.forward(self._state(params, buffers), batch["x"], ctx)
        return {"output": outputs}

    def metric_values(self, sums: Sums, weight: float) -> dict[str, Any]:
        values = {}
        for metric in self.metrics:
            if metric.name in sums:
                parts = [sums[name] for name in _step_names(metric)[1:] if name in sums]
                whole = np.array([sums[metric.name], *parts]) if parts else sums[metric.name]
                values[metric.name] = metric.value(whole, weight)
        return values


def _step_names(metric: Metric) -> list[str]:
    """Names of the floats that a metric sums at each training step: ``accuracy``, ``accuracy/1``, ..."""
    return [metric.name if i == 0 else f"{metric.name}/{i}" for i in range(metric.every_step)]
