"""A JAX loss function as a model of ddl: its parameters are a pytree whose leaves are views of ddl's flat buffer.

Gradients are copied once, into ddl's. Each shape of a batch is compiled once; after a failure the survivors compute
more rows each, which is another shape. Needs the extra [jax]; the rest of ddl imports none of this."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from ddl.arrays import Views, generator
from ddl.errors import ConfigError, UserError
from ddl.models.model import Batch, Measured, Sums
from ddl.nn.context import Context
from ddl.nn.layer import Average, Initialiser, Shape
from ddl.nn.metric import METRICS, Metric
from ddl.nn.norm import LEAST_SAMPLES
from ddl.registry import resolve


class Model(Measured):
    """params: a pytree; its floating-point arrays, all of one dtype, are trained, other leaves stay as they are. Its
    names in checkpoints are the leaves' paths, such as "layers.0.weight".

    loss: function of (params, batch), or of (params, batch, key), that returns the mean over the samples, or (sum,
    weight). batch: the fields of the data, such as "x" and "y". key: of jax.random, one for each shard, so that draws
    do not depend on the ranks; None in evaluation, where nothing should be dropped. predict: function of (params, x)
    that returns the outputs, for ``metrics`` (names of ddl's, or Metric objects; computed in evaluation) and for
    ddl.predict. Raises ConfigError for a pytree that cannot be trained.

    state: a pytree of floating-point arrays that the network changes by itself, such as the batch_stats of Flax. The
    functions are then loss(params, state, batch, key), which returns the loss and the new state, and
    predict(params, state, x). The state's new values are averaged over the samples of all shards; in evaluation, where
    key is None, they are ignored.

    values: the pytree with the committed values, and state: after training, and in callbacks."""

    def __init__(
        self,
        loss: Callable[..., Any],
        params: Any,
        *,
        state: Any = None,
        predict: Callable[..., Any] | None = None,
        metrics: Sequence[str | Metric] = (),
    ):
        if jax.default_backend() != "cpu":
            raise ConfigError(f"ddl.jax trains on the CPU, and JAX uses {jax.default_backend()}: set JAX_PLATFORMS=cpu")
        if isinstance(metrics, Mapping):
            given = ", ".join(map(str, metrics))
            raise ConfigError(f"metrics are names of ddl's or Metric objects in a list, not functions by name: {given}")
        if metrics and predict is None:
            raise ConfigError("metrics compare outputs with targets: give predict as well")
        self.metrics = [resolve(m, METRICS, "metrics")() if isinstance(m, str) else m for m in metrics]
        leaves, self._tree = tree_flatten_with_path(params)
        self._leaves = [leaf for _, leaf in leaves]
        trained = [place for place, leaf in enumerate(self._leaves) if _is_floating(leaf)]
        self.paths = {_name(leaves[place][0]): leaves[place][0] for place in trained}
        self._places = dict(zip(self.paths, trained, strict=True))
        self._initial = {name: np.array(self._leaves[place]) for name, place in self._places.items()}
        of_state, self._state_tree = tree_flatten_with_path(state)
        if others := [_name(path) for path, leaf in of_state if not _is_floating(leaf)]:
            raise ConfigError(f"state holds floating-point arrays, which {others[0]!r} is not")
        self._state_initial = {f"state.{_name(path)}": np.array(leaf) for path, leaf in of_state}
        dtypes = {x.dtype.name for x in [*self._initial.values(), *self._state_initial.values()]}
        if dtypes not in ({"float32"}, {"float64"}):
            raise ConfigError(
                f"a pytree needs parameters of one type, float32 or float64; this one has {sorted(dtypes) or 'none'}"
            )
        (self._dtype,) = dtypes
        if both := set(self._initial) & set(self._state_initial):
            raise ConfigError(f"a parameter is called {min(both)!r}, as a part of the state is")
        self.values, self.state = params, state
        self._has_state = bool(self._state_initial)
        self._takes_key = self._has_state or _takes_key(loss)
        self._known: dict[int, tuple[Views, list[Any]]] = {}
        self._loss = jax.jit(partial(self._total, loss))
        self._gradients = jax.jit(jax.value_and_grad(partial(self._total, loss), has_aux=True))
        self._outputs = None if predict is None else jax.jit(partial(self._predicted, predict))

    @cached_property
    def params(self) -> Mapping[str, tuple[Shape, Initialiser]]:
        return {name: (x.shape, partial(_value_of, x)) for name, x in self._initial.items()}

    @property
    def dtype(self) -> str:
        return str(self._dtype)

    @property
    def on_host(self) -> bool:
        return True

    @cached_property
    def averages(self) -> Mapping[str, Average]:
        # Each step's values are those after the network's own moving average, so they replace the old ones.
        return {name: Average(x.shape, x, 1.0) for name, x in self._state_initial.items()}

    @property
    def samples_per_shard(self) -> int:
        return LEAST_SAMPLES if self._has_state else 0

    @property
    def step_metrics(self) -> Sequence[str]:
        return ()  # the loss function does not return the outputs, and a second forward pass would cost too much

    def check(self, batch: Batch) -> None:
        try:
            values, state = list(self._initial.values()), list(self._state_initial.values())
            jax.eval_shape(self._loss, values, state, dict(batch), self._seed(0))
            if self._outputs is not None:
                jax.eval_shape(self._outputs, values, state, batch["x"])
            self._check_mean(values, state, batch)
        except UserError as error:
            raise ConfigError(str(error)) from error
        except Exception as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in batch.items())
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"the function cannot compute samples ({shapes}): {first}") from error

    def _check_mean(self, values: Sequence[Any], state: Sequence[Any], batch: Batch) -> None:
        """Raises UserError if the loss of two samples is not what their own losses make up."""
        if len(batch["x"]) < 2:
            return
        parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(2), slice(1), slice(1, 2))]
        results = [self._loss(values, state, part, None) for part in parts]
        (both, weight), (first, one), (second, other) = [(float(loss), float(more[0])) for loss, more in results]
        if not np.allclose([both, weight], [first + second, one + other], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise UserError(
                f"the loss of 2 samples is {both:.6g}, but that of its parts adds up to {first + second:.6g}: a loss "
                "must be a mean over the samples, or return (sum, weight)"
            )

    def loss_and_gradients(
        self, params: Views, buffers: Views, batch: Batch, grads: Views | None, ctx: Context
    ) -> tuple[float, float, Sums]:
        values, state = self._views(params), self._views_of_state(buffers)
        if grads is None:
            loss, (weight, _) = self._loss(values, state, dict(batch), None)
            outputs = None if self._outputs is None else np.asarray(self._outputs(values, state, batch["x"]))
            return float(loss), float(weight), self.measured(outputs, batch.get("y"), float(loss), False)
        whole = [(slice(0, len(batch["x"])), None)]
        parts = [part for part in zip(ctx.segments, ctx.shards) if part[0].stop > part[0].start]
        loss, weight = 0.0, 0.0
        for name in self._state_initial:
            grads[name][...] = 0
        for number, (place, shard) in enumerate(parts if self._takes_key else whole):
            rows = {name: value[place] for name, value in batch.items()} if shard is not None else dict(batch)
            seed = None if shard is None else generator(ctx.seed, "jax", ctx.step, ctx.part, shard).integers(2**32)
            result = self._gradients(values, state, rows, None if seed is None else np.uint32(seed))
            (total, (of_rows, changed)), found = result
            # Reading the results waits until the step has been computed: until then the commit must not rewrite params.
            loss, weight = loss + float(total), weight + float(of_rows)
            for name, gradient in zip(self._places, found, strict=True):
                view = grads[name]
                np.add(view, gradient, out=view) if number else np.copyto(view, gradient)
            for name, value in zip(self._state_initial, changed, strict=True):
                grads[name][...] += (place.stop - place.start) * np.asarray(value)
        ctx.announce([*self._places, *self._state_initial])
        return loss, weight, {}

    def predict(self, params: Views, buffers: Views, batch: Batch, ctx: Context) -> Mapping[str, np.ndarray]:
        if self._outputs is None:
            raise ConfigError("the model was made without predict=")
        return {"output": np.asarray(self._outputs(self._views(params), self._views_of_state(buffers), batch["x"]))}

    def show(self, params: Views, buffers: Views) -> None:
        self.values = self._whole([jax.numpy.array(params[name], copy=True) for name in self._places])
        if self._has_state:
            copies = [jax.numpy.array(buffers[name], copy=True) for name in self._state_initial]
            self.state = tree_unflatten(self._state_tree, copies)

    def tree(self, values: Sequence[Any]) -> Any:
        """The pytree with these values of the trained leaves, and None for the others, as optimizers take it."""
        return self._whole(values, [None] * len(self._leaves))

    def _seed(self, value: int) -> np.uint32 | None:
        return np.uint32(value) if self._takes_key else None

    def _views(self, params: Views) -> list[Any]:
        """Arrays of JAX on the memory of ``params``, without a copy."""
        return self._lent(params, self._places)

    def _views_of_state(self, buffers: Views) -> list[Any]:
        return self._lent(buffers, self._state_initial) if self._has_state else []

    def _lent(self, views: Views, names: Iterable[str]) -> list[Any]:
        known = self._known.get(id(views))
        if known is None:
            if len(self._known) == 4:  # of parameters and of the state; a shared replica has two places
                self._known.clear()
            known = self._known[id(views)] = (views, [jax.dlpack.from_dlpack(views[name]) for name in names])
        return known[1]

    def _whole(self, values: Sequence[Any], others: Sequence[Any] | None = None) -> Any:
        """The pytree with these values of the trained leaves. others: instead of all leaves as they were given."""
        leaves = list(self._leaves if others is None else others)
        for place, value in zip(self._places.values(), values, strict=True):
            leaves[place] = value
        return tree_unflatten(self._tree, leaves)

    def _predicted(self, predict: Callable[..., Any], values: Sequence[Any], state: Sequence[Any], x: Any) -> Any:
        """The outputs for inputs; traced by JAX."""
        more = [tree_unflatten(self._state_tree, state)] if self._has_state else []
        return predict(self._whole(values), *more, x)

    def _total(
        self, loss: Callable[..., Any], values: Sequence[Any], state: Sequence[Any], batch: Mapping[str, Any], seed: Any
    ) -> tuple[Any, tuple[Any, Sequence[Any]]]:
        """(sum, (weight, leaves of the new state)) of a batch; traced by JAX."""
        key = [] if not self._takes_key else [None if seed is None else jax.random.key(seed)]
        changed: Sequence[Any] = []
        if self._has_state:
            both = loss(self._whole(values), tree_unflatten(self._state_tree, state), batch, *key)
            result, changed = self._parted(both, state)
        else:
            result = loss(self._whole(values), batch, *key)
        if isinstance(result, tuple) and len(result) == 2 and not any(np.ndim(part) for part in result):
            return result[0], (jax.numpy.asarray(result[1], jax.numpy.float32), changed)
        if not isinstance(result, tuple) and not np.issubdtype(jax.numpy.result_type(result), np.floating):
            raise UserError(f"the loss is of {jax.numpy.result_type(result)}, which has no gradient")
        if isinstance(result, tuple) or np.ndim(result):
            got = f"{len(result)} values" if isinstance(result, tuple) else f"an array of shape {np.shape(result)}"
            raise UserError(f"the loss returns the mean over the samples, or (sum, weight), not {got}")
        rows = len(batch["x"])
        return result * rows, (jax.numpy.float32(rows), changed)

    def _parted(self, both: Any, state: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
        """(what the loss is, leaves of the new state), from what a loss with a state returned."""
        if not isinstance(both, tuple) or len(both) != 2:
            raise UserError(f"with state=, the loss returns (loss, new state), not a {type(both).__name__}")
        leaves, tree = tree_flatten(both[1])
        shapes = [(np.shape(x), jax.numpy.result_type(x)) for x in state]
        if tree != self._state_tree or [(np.shape(x), jax.numpy.result_type(x)) for x in leaves] != shapes:
            raise UserError("the new state that the loss returns has other leaves, shapes or types than state=")
        return both[0], leaves


def _name(path: Any) -> str:
    """A leaf's name in checkpoints."""
    return keystr(path, simple=True, separator=".")


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, (np.ndarray, jax.Array)) and bool(np.issubdtype(leaf.dtype, np.floating))


def _takes_key(loss: Callable[..., Any]) -> bool:
    """Whether it has a third argument that must be given, or is called key."""
    parameters = list(inspect.signature(loss).parameters.values())
    return len(parameters) > 2 and (parameters[2].default is inspect.Parameter.empty or parameters[2].name == "key")


def _value_of(value: np.ndarray, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """The leaf's present value: an Initialiser that draws nothing."""
    return value
