"""The contract of a model, and the usual model: a network, a loss and metrics.

The trainer uses only these members, so a GAN or another framework's network implements the same ones. Layers are in
ddl/nn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ddl.arrays import Array, Layout, Views, generator
from ddl.errors import ConfigError
from ddl.models.target_scale import Scale, buffers_of, head_of, in_units, standardised
from ddl.nn.context import Context
from ddl.nn.layer import Average, Initialiser, Kept, Layer, Shape
from ddl.nn.losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy, Distillation, Huber, Loss
from ddl.nn.metric import Metric

Batch = Mapping[str, Array]  # field name -> (rows, ...): "x" and, if there is one, "y"
Sums = Mapping[str, Any]  # metric name -> sum over the batch: a float or a small array
OutputKind = Literal["logits", "binary_logits", "values"]


class Model:
    """The members that training uses; ``params``, ``loss_and_gradients`` and ``predict`` have no default.

    A class need not inherit from Model: ``build`` adds the defaults to an object that has those three. All members
    are pure: parameters and averages are arguments, and the model keeps no state between calls."""

    # Required.

    @property
    def params(self) -> Mapping[str, tuple[Shape, Initialiser]]:
        """name -> (shape, initialiser), in the order in which forward uses them."""
        raise NotImplementedError

    def loss_and_gradients(
        self, params: Views, buffers: Views, batch: Batch, grads: Views | None, ctx: Context
    ) -> tuple[float, float, Sums]:
        """(sum of the loss, weight, metric sums) of a batch.

        Gradients are those of the SUM, written (not added) into ``grads``, whose names are those of ``averages`` and
        of all ``params`` that are not ``frozen``; None: compute no gradients. ``weight`` is the divisor of the mean:
        the number of samples, of tokens that are not padding, or the sum of class weights. In evaluation all metrics
        are returned."""
        raise NotImplementedError

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, Array]:
        """Outputs by name, rows as in the batch. ``ddl.predict`` writes them."""
        raise NotImplementedError

    # Optional.

    def check(self, batch: Batch) -> None:
        """Raises ConfigError if the model cannot train on samples such as these few; default: it can."""

    def show(self, params: Views, buffers: Views) -> None:
        """Called with the committed state before callbacks and after training: for a model whose parameters the user
        reads elsewhere, as in a module of another framework. The arrays hold it until the next step ends."""

    @property
    def frozen(self) -> Sequence[str]:
        """Names of parameters that no optimizer changes, the last ones of ``params``; default: none. They have no
        gradient."""
        return ()

    @property
    def dtype(self) -> str | None:
        """The type that parameters must have; default: that of the job, ``train.dtype``."""
        return None

    @property
    def on_host(self) -> bool:
        """Whether it takes arrays of NumPy only, so that the job computes on the CPU; default: no."""
        return False

    @property
    def averages(self) -> Mapping[str, Average]:
        """name -> running average (buffer); default: none."""
        return {}

    @property
    def kept(self) -> Mapping[str, Kept]:
        """name -> buffer other than an average: a table or a counter; default: none."""
        return {}

    @property
    def step_metrics(self) -> Sequence[str]:
        """Names of the sums that ``loss_and_gradients`` returns in training, each a float; default: none.

        A metric may need several (``accuracy``, ``accuracy/1``): ``metric_values`` receives them together."""
        return ()

    def metric_values(self, sums: Sums, weight: float) -> dict[str, Any]:
        """Metrics (accuracy, perplexity, ...) from sums over any number of batches and ranks; default: means."""
        return {name: float(value) / weight for name, value in sums.items()}

    @property
    def synchronised(self) -> bool:
        """Whether layers exchange sums with all ranks while they compute; default: no."""
        return False

    @property
    def by_rows(self) -> Sequence[str]:
        """Parameters whose gradients are announced with the rows that were written; default: none."""
        return ()

    @property
    def reconstructs(self) -> bool:
        """Whether the output "output" is in the units of the input "x" (an autoencoder); default: no."""
        return False

    @property
    def targets_are_values(self) -> bool:
        """Whether the loss takes class targets as 0.0 and 1.0 rather than as one-hot rows; default: no."""
        return False

    @property
    def output_kind(self) -> OutputKind:
        """What "output" holds: "logits" of classes along the last axis, "binary_logits", one per yes-or-no target, or
        "values"; default: values."""
        return "values"

    @property
    def samples_per_shard(self) -> int:
        """The fewest samples that a shard needs in a micro-batch of training; default: none."""
        return 0

    @property
    def synchronised_by(self) -> str:
        """What to write for batch norm over the whole batch, for an advice to the user."""
        return "BatchNorm(sync=True)"

    @property
    def generates(self) -> bool:
        """Whether ``sample`` draws new samples (a GAN); default: no."""
        return False

    def sample(self, params: Views, buffers: Views, count: int, seed: int = 0) -> Array:
        """``count`` new samples (count, *shape); the same seed draws the same ones. Raises ConfigError by default."""
        raise ConfigError("this model draws no samples")


def initial_values(model: Model, seed: int) -> dict[str, np.ndarray]:
    """name -> the parameter (float64) that training with ``seed`` starts from.

    Each is drawn from its own generator, keyed by seed and name, so it depends on no other parameter. To start from
    other values, pass ``Trainer(..., initial={name: array})``, or ``model.from`` in a job."""
    return {
        name: initial(shape, generator(seed, f"parameter {name}")) for name, (shape, initial) in model.params.items()
    }


def gradient_layout(model: Model, dtype: np.dtype | str) -> Layout:
    """The layout of gradients: trained parameters first (as in the parameter layout), then the sums of averages."""
    shapes = {name: shape for name, (shape, _) in model.params.items()}
    for name in reversed(model.frozen):
        assert list(shapes)[-1] == name, f"{name} is frozen and must be behind the parameters that are trained"
        del shapes[name]
    return Layout.of({**shapes, **{name: a.shape for name, a in model.averages.items()}}, dtype)


class Measured(Model):
    """A model with metrics of its outputs and targets. A subclass calls ``measured`` in each pass."""

    metrics: Sequence[Metric] = ()

    @property
    def step_metrics(self) -> Sequence[str]:
        return [name for m in self.metrics for name in _step_names(m)]

    def measured(self, outputs: Any, targets: Any, loss: float, training: bool) -> dict[str, Any]:
        """The sums of a batch: of all metrics, or in training only of the metrics computed at every step."""
        sums: dict[str, Any] = {}
        for metric in self.metrics:
            if not training:
                sums[metric.name] = metric.sums(outputs, targets, loss)
            elif metric.every_step:
                values = np.atleast_1d(metric.sums(outputs, targets, loss)).tolist()
                sums.update(zip(_step_names(metric), values, strict=True))
        return sums

    def metric_values(self, sums: Sums, weight: float) -> dict[str, Any]:
        values = {}
        for metric in self.metrics:
            if metric.name in sums:
                parts = [sums[name] for name in _step_names(metric)[1:] if name in sums]
                whole = np.array([sums[metric.name], *parts]) if parts else sums[metric.name]
                values[metric.name] = metric.value(whole, weight)
        return values


@dataclass(frozen=True)
class Supervised(Measured):
    """A network trained on pairs: batch["x"] goes in, the loss compares the output with batch["y"].

    ``target`` names the field that the loss compares with; "x" makes an autoencoder.
    ``shape`` is that of one sample of "x". target_scale: mean and deviation of the targets, with which a model that
    ``scales_targets`` starts; None: 0 and 1. precision: type of the targets, which predictions have at least."""

    network: Layer
    loss: Loss
    shape: Shape
    metrics: Sequence[Metric] = ()
    target: str = "y"
    target_scale: Scale | None = None
    precision: str = "float32"
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

    @cached_property
    def head(self) -> str | None:
        """The name of the dense layer that ends the network; None if another layer does."""
        return head_of(self.network)

    @cached_property
    def scales_targets(self) -> bool:
        """Whether the loss sees standardised targets (target_scale.py). A head that is not linear, and a loss of the
        user's own, may rely on the targets as they are."""
        return self.target == "y" and type(self.loss) in (MSE, MAE, Huber) and self.head is not None

    @property
    def kept(self) -> Mapping[str, Kept]:
        return buffers_of(self.spec.output, self.target_scale) if self.scales_targets else {}

    @property
    def synchronised(self) -> bool:
        return bool(self.spec.synchronised)

    @property
    def samples_per_shard(self) -> int:
        return int(self.spec.samples_per_shard)

    @property
    def by_rows(self) -> Sequence[str]:
        return self.spec.by_rows

    @property
    def reconstructs(self) -> bool:
        return self.target == "x"

    @property
    def targets_are_values(self) -> bool:
        return isinstance(self.loss, BinaryCrossEntropy)

    @property
    def output_kind(self) -> OutputKind:
        is_of_classes = isinstance(self.loss, CrossEntropy | Distillation)
        return "logits" if is_of_classes else "binary_logits" if self.targets_are_values else "values"

    def _state(self, params: Views, buffers: Views) -> Views:
        """Parameters and averages in one set of views, cached because training passes the same ones at every step."""
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
        ctx.data, ctx.categories = batch["x"], batch.get("categories")
        with ctx.span("forward"):
            outputs, cache = self.network.forward(state, batch["x"], ctx)
        targets = batch[self.target]
        loss, weight, kept = self.compare(buffers, outputs, targets, ctx)
        if self.scales_targets and self.metrics and (not ctx.training or self.step_metrics):
            outputs = in_units(buffers, outputs, np.dtype(self.precision))
        sums = self.measured(outputs, targets, loss, ctx.training)
        if grads is not None:
            with ctx.span("backward"):
                for names in self.network.backward(state, grads, cache, self.loss.backward(kept)):
                    ctx.announce(names)
        return loss, weight, sums

    def compare(self, buffers: Views, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        """``loss.forward`` of what the network computes, and targets in the units of the data."""
        return self.loss.forward(outputs, standardised(buffers, targets) if self.scales_targets else targets, ctx)

    def outputs(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Array:
        """What the network computes, which the loss compares."""
        ctx.categories = batch.get("categories")
        return self.network.forward(self._state(params, buffers), batch["x"], ctx)[0]

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, Array]:
        outputs = self.outputs(params, buffers, batch, ctx)
        return {"output": in_units(buffers, outputs, np.dtype(self.precision)) if self.scales_targets else outputs}


def _step_names(metric: Metric) -> list[str]:
    """Names of the floats that a metric sums at each training step: ``accuracy``, ``accuracy/1``, ..."""
    return [metric.name if i == 0 else f"{metric.name}/{i}" for i in range(metric.every_step)]
