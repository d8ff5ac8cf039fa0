"""The contract of a model, and the usual model: a network, a loss and metrics.

The trainer uses only these members, so a GAN or another framework's network implements the same ones. Layers are in
ddl/nn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ddl.arrays import Array, Layout, Views, generator
from ddl.errors import ConfigError
from ddl.models.target_scale import TargetScale, head_of
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
    def is_least_squares(self) -> bool:
        """Whether the loss is the mean squared error of "y", so that always predicting the mean of the targets gives
        their variance; default: no."""
        return False

    @property
    def target_scale(self) -> TargetScale | None:
        """How the model learns standardised targets; default: it learns them as they are."""
        return None

    def with_target_scale(self, mean: np.ndarray, deviation: np.ndarray) -> Model:
        """The same model, whose ``target_scale`` begins with these numbers; default: the model as it is."""
        return self

    @property
    def networks(self) -> Mapping[str, tuple[Layer, Shape]]:
        """scope of its parameters -> (network of ``ddl.nn``, shape of one sample of its input), first the one whose
        output ``predict`` returns, so that weights can be exported; default: none, as in another framework's model."""
        return {}

    def also_measuring(self, metric: Metric) -> Model:
        """The same model with one more metric, if it is not there yet; default: the model as it is."""
        return self

    def losses(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> np.ndarray:
        """The loss of each sample of a batch: (rows,) float64."""

        def of_sample(row: slice) -> tuple[float, float]:
            ctx.segments = [slice(0, 1)]
            one = {name: values[row] for name, values in batch.items()}
            return self.loss_and_gradients(params, buffers, one, None, ctx)[:2]

        return _each_loss(len(batch["x"]), of_sample, ctx)

    @property
    def scales_loss(self) -> bool:
        """Whether gradients are those of the loss times ``ctx.loss_scale``, as mixed precision needs; default: no."""
        return False

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


def _each_loss(rows: int, of_sample: Callable[[slice], tuple[float, float]], ctx: Context) -> np.ndarray:
    """of_sample: (loss, weight) of one row."""
    found = np.empty(rows)
    for row in range(rows):
        with ctx.frame():
            loss, weight = of_sample(slice(row, row + 1))
        found[row] = loss / weight if weight else 0.0
    return found


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
    ``shape`` is that of one sample of "x". scale: mean and deviation of the targets, where they are known.
    precision: type of the targets."""

    network: Layer
    loss: Loss
    shape: Shape
    metrics: Sequence[Metric] = ()
    target: str = "y"
    scale: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
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
    def target_scale(self) -> TargetScale | None:  # type: ignore[override]
        """A head that is not linear, and a loss that the user wrote, may rely on the targets as they are."""
        head = head_of(self.network) if self.target == "y" and type(self.loss) in (MSE, MAE, Huber) else None
        return None if head is None else TargetScale(head, self.spec.output, self.precision, *self.scale)

    def with_target_scale(self, mean: np.ndarray, deviation: np.ndarray) -> Model:
        return replace(self, scale=(mean, deviation))

    @property
    def kept(self) -> Mapping[str, Kept]:
        return {} if self.target_scale is None else self.target_scale.kept

    @property
    def scales_loss(self) -> bool:
        return True

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

    @property
    def is_least_squares(self) -> bool:
        return type(self.loss) is MSE and self.target == "y"

    @property
    def networks(self) -> Mapping[str, tuple[Layer, Shape]]:
        return {"": (self.network, tuple(self.shape))}

    def also_measuring(self, metric: Metric) -> Model:
        is_there = any(one.name == metric.name for one in self.metrics)
        return self if is_there else replace(self, metrics=[*self.metrics, metric])

    def losses(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> np.ndarray:
        outputs, targets = self._outputs(params, buffers, batch, ctx), batch[self.target]
        return _each_loss(len(outputs), lambda row: self._compare(buffers, outputs[row], targets[row], ctx)[:2], ctx)

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
        ctx.data, ctx.categories, ctx.teacher = batch["x"], batch.get("categories"), batch.get("teacher")
        with ctx.span("forward"):
            outputs, cache = self.network.forward(state, batch["x"], ctx)
        targets = batch[self.target]
        loss, weight, kept = self._compare(buffers, outputs, targets, ctx)
        if self.metrics and (not ctx.training or self.step_metrics):
            outputs = self._in_units(buffers, outputs)
        sums = self.measured(outputs, targets, loss, ctx.training)
        if grads is not None:
            with ctx.span("backward"):
                slope = self.loss.backward(kept)
                if ctx.loss_scale != 1:
                    slope = (slope * np.float32(ctx.loss_scale)).astype(slope.dtype)
                for names in self.network.backward(state, grads, cache, slope):
                    ctx.announce(names)
        return loss, weight, sums

    def _compare(self, buffers: Views, outputs: Array, targets: Array, ctx: Context) -> tuple[float, float, Any]:
        """``loss.forward`` of what the network computes, and targets in the units of the data."""
        scale = self.target_scale
        return self.loss.forward(outputs, targets if scale is None else scale.standardised(buffers, targets), ctx)

    def _in_units(self, buffers: Views, outputs: Array) -> Array:
        return outputs if self.target_scale is None else self.target_scale.in_units(buffers, outputs)

    def _outputs(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Array:
        """What the network computes, which the loss compares."""
        ctx.categories = batch.get("categories")
        return self.network.forward(self._state(params, buffers), batch["x"], ctx)[0]

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, Array]:
        return {"output": self._in_units(buffers, self._outputs(params, buffers, batch, ctx))}


def _step_names(metric: Metric) -> list[str]:
    """Names of the floats that a metric sums at each training step: ``accuracy``, ``accuracy/1``, ..."""
    return [metric.name if i == 0 else f"{metric.name}/{i}" for i in range(metric.every_step)]
