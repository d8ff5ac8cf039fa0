"""An optimizer of optax as one of ddl's: its update is compiled, and its state lies in slots.

What mirrors a parameter, such as Adam's moments, lies in a slot, in that parameter's place; all the rest,
such as counters, lies one after another in further slots. So it travels and is saved like any optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten

from ddl.arrays import Layout
from ddl.errors import ConfigError, UserError
from ddl.jax.model import Model
from ddl.optim import Optimizer, Rule, slot_dtype


@dataclass(frozen=True)
class Leaf:
    """A leaf of the optimizer's state. slot, name: where it lies, if it mirrors the parameter of that name. is_exact:
    whether the slots' dtype holds its values; otherwise its bytes are kept, one in each element."""

    shape: tuple[int, ...]
    dtype: np.dtype
    slot: str
    name: str
    is_exact: bool

    def packed(self, value: Any) -> np.ndarray:
        """As a flat array of floats."""
        array = np.asarray(value).reshape(-1)
        return array if self.is_exact else array.view(np.uint8)

    def unpacked(self, values: np.ndarray) -> np.ndarray:
        """The inverse."""
        array = values.astype(self.dtype) if self.is_exact else values.astype(np.uint8).view(self.dtype)
        return array.reshape(self.shape)

    @property
    def length(self) -> int:
        return prod(self.shape) * (1 if self.is_exact else self.dtype.itemsize)


class Optax(Optimizer):
    """transformation: what optax's functions return. model: whose parameters it updates, all of them.

    lr: 1, a factor of its updates; its own rates are in the transformation. Raises ConfigError for one that cannot
    update the model's parameters from their gradients alone."""

    lr = 1.0
    has_own_rate = True

    def __init__(self, transformation: Any, model: Model):
        self._transformation, self._model = transformation, model
        self._layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, model.dtype)
        self._stop = next(reversed(self._layout.slices.values())).stop
        parameters = [jax.ShapeDtypeStruct(shape, self._layout.dtype) for shape in self._layout.shapes.values()]
        try:
            state = jax.eval_shape(lambda values: transformation.init(model.tree(values)), parameters)
            leaves, self._structure = tree_flatten_with_path(state)
            self._keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for _, leaf in leaves]
            bare = jax.eval_shape(self._begun, parameters)
            jax.eval_shape(self._updated, parameters, parameters, bare, 1.0, 1.0)
        except Exception as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"the optimizer of optax cannot update the model's parameters: {first}") from error
        self._leaves = [self._leaf(path, leaf) for (path, _), leaf in zip(leaves, bare, strict=True)]
        rest = sum(leaf.length for leaf in self._leaves if not leaf.slot)
        more = [f"rest{number}" for number in range(-(-rest // self._layout.size))]
        self.slots = tuple(dict.fromkeys([*(leaf.slot for leaf in self._leaves if leaf.slot), *more]))  # type: ignore[misc]
        self._more, self._places = more, list(self._layout.slices.values())
        self._first = jax.jit(self._begun)
        self._step = jax.jit(self._updated)

    def _leaf(self, path: Any, leaf: Any) -> Leaf:
        kept_in, dtype = slot_dtype(self._layout.dtype), np.dtype(leaf.dtype)
        is_exact = bool(jax.numpy.issubdtype(dtype, jax.numpy.floating)) and dtype.itemsize <= kept_in.itemsize
        for name, place in self._model.paths.items():
            start = len(path) - len(place)
            if is_exact and start >= 0 and path[start:] == place and leaf.shape == self._layout.shapes[name]:
                return Leaf(leaf.shape, dtype, keystr(path[:start], simple=True, separator=".") or "state", name, True)
        return Leaf(leaf.shape, dtype, "", "", is_exact)

    def update(self, params: Any, grads: Any, slots: Mapping[str, Any], lr: float, step: int, scale: float) -> None:
        if len(params) != self._stop:
            raise UserError("an optimizer of optax updates all parameters: freeze some by optax.multi_transform")
        values, gradients = self._views(params), self._views(grads)
        state = self._read(slots) if step else self._first(values)
        # The arrays are read while this computes; once its results are there, they can be overwritten.
        updated, state = jax.block_until_ready(self._step(values, gradients, state, lr, scale))
        for view, value in zip(values, updated, strict=True):
            np.copyto(view, value)
        self._write(slots, state)

    def _begun(self, values: Any) -> list[Any]:
        """The leaves of the state before the first step; traced by JAX."""
        return self._bare(self._transformation.init(self._model.tree(values)))

    def _bare(self, state: Any) -> list[Any]:
        """The leaves of a state, keys of jax.random as plain arrays."""
        leaves = jax.tree.leaves(state)
        return [jax.random.key_data(x) if is_key else x for x, is_key in zip(leaves, self._keys, strict=True)]

    def _updated(self, values: Any, gradients: Any, state: Any, lr: Any, scale: Any) -> tuple[Any, Any]:
        """(parameters, leaves of the state) after a step; traced by JAX."""
        tree, means = self._model.tree(values), self._model.tree([(g * scale).astype(g.dtype) for g in gradients])
        leaves = [jax.random.wrap_key_data(x) if is_key else x for x, is_key in zip(state, self._keys, strict=True)]
        updates, changed = self._transformation.update(means, tree_unflatten(self._structure, leaves), tree)
        pairs = zip(values, jax.tree.leaves(updates), strict=True)
        return [(value + lr * update).astype(value.dtype) for value, update in pairs], self._bare(changed)

    def _views(self, flat: np.ndarray) -> list[np.ndarray]:
        shapes = self._layout.shapes.values()
        return [flat[place].reshape(shape) for place, shape in zip(self._places, shapes, strict=True)]

    def _read(self, slots: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        rest = np.concatenate([[], *(slots[name][place] for name in self._more for place in self._places)])
        leaves, start = [], 0
        for leaf in self._leaves:
            if leaf.slot:
                leaves.append(leaf.unpacked(slots[leaf.slot][self._layout.slices[leaf.name]]))
            else:
                leaves.append(leaf.unpacked(rest[start : start + leaf.length]))
                start += leaf.length
        return leaves

    def _write(self, slots: Mapping[str, np.ndarray], state: Sequence[Any]) -> None:
        rest: list[np.ndarray] = [np.zeros(0)]
        for leaf, value in zip(self._leaves, state, strict=True):
            if leaf.slot:
                slots[leaf.slot][self._layout.slices[leaf.name]] = leaf.packed(value)
            else:
                rest.append(leaf.packed(value))
        packed, start = np.concatenate(rest), 0
        for name in self._more:
            for place in self._places:
                part = packed[start : start + place.stop - place.start]
                slots[name][place.start : place.start + len(part)] = part
                start += len(part)


def translated(optimizer: Any, model: Any, schedule: Any = None) -> tuple[Optimizer, list[Rule], Any]:
    """For ``Trainer(model, optimizer=optax.adamw(1e-3))``: (an Optax, no rules, the schedule).

    Raises ConfigError for a model of another framework."""
    if not isinstance(model, Model):
        raise ConfigError("an optimizer of optax goes with a ddl.jax.Model: give the model as one")
    return Optax(optimizer, model), [], schedule
