"""A JAX loss function as a model of ddl: its parameters are a pytree whose leaves are views of ddl's flat buffer.

Gradients are copied once, into ddl's. Each shape of a batch is compiled once; after a failure the survivors compute
more rows each, which is another shape. Needs the extra [jax]; the rest of ddl imports none of this."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from ddl.arrays import Views, generator
from ddl.errors import ConfigError, UserError
from ddl.models.model import Batch, Measured, Sums
from ddl.nn.context import Context
from ddl.nn.layer import Initialiser, Shape
from ddl.nn.metric import METRICS, Metric
from ddl.registry import resolve

if "jax" not in sys.modules:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if os.environ.get("OMP_NUM_THREADS") == "1":  # ddl has shared the cores; XLA would use them all in every rank
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten

__all__ = ["Model"]


class Model(Measured):
    """params: a pytree; its floating-point arrays, all of one dtype, are trained, other leaves stay as they are. Its
    names in checkpoints are the leaves' paths, such as "layers.0.weight".

    loss: function of (params, batch), or of (params, batch, key), that returns the mean over the samples, or (sum,
    weight). batch: the fields of the data, such as "x" and "y". key: of jax.random, one for each shard, so that draws
    do not depend on the ranks; None in evaluation, where nothing should be dropped. predict: function of (params, x)
    that returns the outputs, for ``metrics`` (names of ddl's, or Metric objects; computed in evaluation) and for
    ddl.predict. Raises ConfigError for a pytree that cannot be trained.

    values: the pytree with the committed values: after training, and in callbacks."""

    def __init__(
        self,
        loss: Callable[..., Any],
        params: Any,
        *,
        predict: Callable[[Any, Any], Any] | None = None,
        metrics: Sequence[str | Metric] = (),
    ):
        if jax.default_backend() != "cpu":
            raise ConfigError(f"ddl.jax trains on the CPU, and JAX uses {jax.default_backend()}: set JAX_PLATFORMS=cpu")
        if metrics and predict is None:
            raise ConfigError("metrics compare outputs with targets: give predict as well")
        self.metrics = [resolve(m, METRICS, "metrics")() if isinstance(m, str) else m for m in metrics]
        leaves, self._tree = tree_flatten_with_path(params)
        self._leaves = [leaf for _, leaf in leaves]
        self._places = {
            keystr(path, simple=True, separator="."): place
            for place, (path, leaf) in enumerate(leaves)
            if isinstance(leaf, (np.ndarray, jax.Array)) and np.issubdtype(leaf.dtype, np.floating)
        }
        self._initial = {name: np.array(self._leaves[place]) for name, place in self._places.items()}
        dtypes = {x.dtype.name for x in self._initial.values()}
        if dtypes not in ({"float32"}, {"float64"}):
            raise ConfigError(
                f"a pytree needs parameters of one type, float32 or float64; this one has {sorted(dtypes) or 'none'}"
            )
        (self._dtype,) = dtypes
        self.values, self._takes_key = params, _takes_key(loss)
        self._known: dict[int, tuple[Views, list[Any]]] = {}
        self._loss = jax.jit(partial(self._total, loss))
        self._gradients = jax.jit(jax.value_and_grad(partial(self._total, loss), has_aux=True))
        self._outputs = None if predict is None else jax.jit(lambda values, x: predict(self._whole(values), x))

    @cached_property
    def params(self) -> Mapping[str, tuple[Shape, Initialiser]]:
        return {name: (x.shape, partial(_value_of, x)) for name, x in self._initial.items()}

    @property
    def dtype(self) -> str:
        return str(self._dtype)

    @property
    def step_metrics(self) -> Sequence[str]:
        return ()  # the loss function does not return the outputs, and a second forward pass would cost too much

    def check(self, batch: Batch) -> None:
        try:
            values, seed = [self._initial[name] for name in self._places], self._seed(0)
            jax.eval_shape(self._loss, values, dict(batch), seed)
            if self._outputs is not None:
                jax.eval_shape(self._outputs, values, batch["x"])
            self._check_mean(values, batch)
        except UserError as error:
            raise ConfigError(str(error)) from error
        except Exception as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in batch.items())
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"the function cannot compute samples ({shapes}): {first}") from error

    def _check_mean(self, values: Sequence[Any], batch: Batch) -> None:
        """Raises UserError if the loss of two samples is not what their own losses make up."""
        if len(batch["x"]) < 2:
            return
        parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(2), slice(1), slice(1, 2))]
        (both, weight), (first, one), (second, other) = ([float(v) for v in self._loss(values, p, None)] for p in parts)
        if not np.allclose([both, weight], [first + second, one + other], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise UserError(
                f"the loss of 2 samples is {both:.6g}, but that of its parts adds up to {first + second:.6g}: a loss "
                "must be a mean over the samples, or return (sum, weight)"
            )

    def loss_and_gradients(
        self, params: Views, buffers: Views, batch: Batch, grads: Views | None, ctx: Context
    ) -> tuple[float, float, Sums]:
        values = self._views(params)
        if grads is None:
            loss, weight = self._loss(values, dict(batch), None)
            outputs = None if self._outputs is None else np.asarray(self._outputs(values, batch["x"]))
            return float(loss), float(weight), self.measured(outputs, batch.get("y"), float(loss), False)
        whole = [(slice(0, len(batch["x"])), None)]
        parts = [part for part in zip(ctx.segments, ctx.shards) if part[0].stop > part[0].start]
        loss, weight = 0.0, 0.0
        for number, (place, shard) in enumerate(parts if self._takes_key else whole):
            rows = {name: value[place] for name, value in batch.items()} if shard is not None else dict(batch)
            seed = None if shard is None else generator(ctx.seed, "jax", ctx.step, ctx.part, shard).integers(2**32)
            (total, of_rows), found = self._gradients(values, rows, None if seed is None else np.uint32(seed))
            # Reading the results waits until the step has been computed: until then the commit must not rewrite params.
            loss, weight = loss + float(total), weight + float(of_rows)
            for name, gradient in zip(self._places, found, strict=True):
                view = grads[name]
                np.add(view, gradient, out=view) if number else np.copyto(view, gradient)
        ctx.announce(list(self._places))
        return loss, weight, {}

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, np.ndarray]:
        if self._outputs is None:
            raise ConfigError("the model was made without predict=")
        return {"output": np.asarray(self._outputs(self._views(params), batch["x"]))}

    def show(self, params: Views, buffers: Views) -> None:
        self.values = self._whole([jax.numpy.array(params[name], copy=True) for name in self._places])

    def _seed(self, value: int) -> np.uint32 | None:
        return np.uint32(value) if self._takes_key else None

    def _views(self, params: Views) -> list[Any]:
        """Arrays of JAX on the memory of ``params``, without a copy."""
        known = self._known.get(id(params))
        if known is None:
            if len(self._known) == 2:  # a shared replica has two places
                self._known.clear()
            known = self._known[id(params)] = (params, [jax.dlpack.from_dlpack(params[name]) for name in self._places])
        return known[1]

    def _whole(self, values: Sequence[Any]) -> Any:
        """The pytree with these values of the trained leaves."""
        leaves = list(self._leaves)
        for place, value in zip(self._places.values(), values, strict=True):
            leaves[place] = value
        return tree_unflatten(self._tree, leaves)

    def _total(
        self, loss: Callable[..., Any], values: Sequence[Any], batch: Mapping[str, Any], seed: Any
    ) -> tuple[Any, Any]:
        """(sum, weight) of a batch; traced by JAX."""
        key = [] if not self._takes_key else [None if seed is None else jax.random.key(seed)]
        result = loss(self._whole(values), batch, *key)
        if isinstance(result, tuple) and len(result) == 2 and not any(np.ndim(part) for part in result):
            return result[0], jax.numpy.asarray(result[1], jax.numpy.float32)
        if not isinstance(result, tuple) and not np.issubdtype(jax.numpy.result_type(result), np.floating):
            raise UserError(f"the loss is of {jax.numpy.result_type(result)}, which has no gradient")
        if isinstance(result, tuple) or np.ndim(result):
            got = f"{len(result)} values" if isinstance(result, tuple) else f"an array of shape {np.shape(result)}"
            raise UserError(f"the loss returns the mean over the samples, or (sum, weight), not {got}")
        rows = len(batch["x"])
        return result * rows, jax.numpy.float32(rows)


def _takes_key(loss: Callable[..., Any]) -> bool:
    """Whether it has a third argument that must be given, or is called key."""
    parameters = list(inspect.signature(loss).parameters.values())
    return len(parameters) > 2 and (parameters[2].default is inspect.Parameter.empty or parameters[2].name == "key")


def _value_of(value: np.ndarray, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """The leaf's present value: an Initialiser that draws nothing."""
    return value
