"""Recurrent layers: RNN, LSTM, GRU over sequences (batch, time, features).

A time step of the gated cells is in kernels/cells.py. Internally time is the first axis: one matrix product before
the loop multiplies all inputs with their weights, and one after it gives the gradients of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ddl.arrays import Array, Views, namespace_of
from ddl.errors import ConfigError
from ddl.kernels.cells import gru_cell, gru_cell_backward, lstm_cell, lstm_cell_backward
from ddl.kernels.rowwise import sum_rows
from ddl.nn.context import Context
from ddl.nn.initial import glorot, orthogonal, zeros
from ddl.nn.layer import Backward, Shape, Spec, check_units


def _gated(gates: int, initial: Any) -> Any:
    """An initialiser that draws the matrix of each gate separately."""
    return lambda shape, random: np.concatenate(
        [initial((shape[0], shape[1] // gates), random) for _ in range(gates)], axis=1
    )


@dataclass(frozen=True)
class _Recurrent:
    """(time, features) -> (units,), the last state; or (time, units), all of them, with sequences.

    At a step that the context's mask calls padding the state stays as it is, so the last state is that of the last
    token. weight: (features, gates * units), recurrent: (units, gates * units), bias: (gates * units,)."""

    units: int
    sequences: bool = False

    gates: ClassVar[int] = 1
    extra: ClassVar[tuple[str, ...]] = ()  # a bias of the last gate's recurrent part
    adds: ClassVar[bool] = False  # a step back leaves in dh what does not come through the recurrent part

    def __post_init__(self) -> None:
        check_units(type(self).__name__, units=self.units)

    def spec(self, shape: Shape) -> Spec:
        if len(shape) != 2:
            raise ConfigError(f"{type(self).__name__} needs samples of (time, features), got {shape}")
        width = self.gates * self.units
        params: dict[str, Any] = {
            "weight": ((shape[1], width), _gated(self.gates, glorot)),
            "recurrent": ((self.units, width), _gated(self.gates, orthogonal)),
            "bias": ((width,), self._bias),
        }
        params.update(dict.fromkeys(self.extra, ((self.units,), zeros)))
        return Spec((shape[0], self.units) if self.sequences else (self.units,), params)

    def _bias(self, shape: Shape, random: np.random.Generator) -> np.ndarray:
        return np.zeros(shape)

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, Any]:
        xp, dtype = namespace_of(x), params["weight"].dtype
        batch, time, features = x.shape
        masks = xp.zeros((time, 0), bool)
        if ctx.mask is not None:
            masks = ctx.empty((time, batch), bool)
            masks[...] = ctx.mask.T
        inputs = ctx.empty((time, batch, features), dtype)
        inputs[...] = x.transpose(1, 0, 2)
        gates = ctx.empty((time, batch, self.gates * self.units), dtype)
        xp.matmul(inputs.reshape(-1, features), params["weight"], out=gates.reshape(-1, gates.shape[2]))
        states = ctx.empty((time + 1, batch, self.units), dtype)
        states[0] = 0
        kept = self._run(params, gates, states, masks, ctx)
        if self.sequences:
            y = ctx.empty((batch, time, self.units), dtype)
            y[...] = states[1:].transpose(1, 0, 2)
        else:
            y = states[time]
            ctx.mask = None
        return y, (ctx, inputs, gates, states, masks, kept, ctx.wants_gradient_of(x))

    def backward(self, params: Views, grads: Views, cache: Any, dy: Array) -> Backward:
        ctx, inputs, gates, states, masks, kept, wanted = cache
        xp = namespace_of(dy)
        time, batch, features = inputs.shape
        dh, back = ctx.empty((batch, self.units), dy.dtype), ctx.empty((batch, self.units), dy.dtype)
        dh[...] = 0 if self.sequences else dy
        turned = ctx.empty(params["recurrent"].shape[::-1], dy.dtype)
        turned[...] = params["recurrent"].T  # once: each product with a transposed view takes half as long again
        through, step = self._backward_of(gates, states, masks, kept, dh, ctx)
        for t in range(time - 1, -1, -1):
            if self.sequences:
                dh += dy[:, t]
            step(t)
            if self.adds or len(masks[t]):
                xp.matmul(through[t], turned, out=back)
                if not self.adds:
                    dh *= ~masks[t][:, None]
                dh += back
            else:
                xp.matmul(through[t], turned, out=dh)
        flat, through = gates.reshape(-1, gates.shape[2]), through.reshape(-1, gates.shape[2])
        if self.extra:
            sum_rows(through[:, -self.units :], grads[self.extra[0]])
        xp.matmul(inputs.reshape(-1, features).T, flat, out=grads["weight"])
        xp.matmul(states[:-1].reshape(-1, self.units).T, through, out=grads["recurrent"])
        sum_rows(flat, grads["bias"])
        yield ("weight", "recurrent", "bias", *self.extra)
        if not wanted:
            return None
        by_time = ctx.empty(inputs.shape, dy.dtype)
        xp.matmul(flat, params["weight"].T, out=by_time.reshape(-1, features))
        dx = ctx.empty((batch, time, features), dy.dtype)
        dx[...] = by_time.transpose(1, 0, 2)
        return dx

    def _run(self, params: Views, gates: Array, states: Array, masks: Array, ctx: Context) -> Any:
        """Fill states[1:] and turn ``gates`` into what backward needs; returns what else it needs."""
        raise NotImplementedError

    def _backward_of(
        self, gates: Array, states: Array, masks: Array, kept: Any, dh: Array, ctx: Context
    ) -> tuple[Array, Callable[[int], None]]:
        """(gradient of the recurrent part, a step back), both by time.

        A step turns its ``gates`` into the gradient of the input's part, given that of its state in ``dh``."""
        raise NotImplementedError


@dataclass(frozen=True)
class RNN(_Recurrent):
    """state = tanh(x @ weight + state @ recurrent + bias)."""

    def _run(self, params: Views, gates: Array, states: Array, masks: Array, ctx: Context) -> Any:
        xp = namespace_of(gates)
        gates += params["bias"]
        for t in range(len(gates)):
            h = states[t + 1]
            xp.matmul(states[t], params["recurrent"], out=h)
            h += gates[t]
            xp.tanh(h, out=h)
            if masks.shape[1]:
                xp.copyto(h, states[t], where=~masks[t][:, None])
        return None

    def _backward_of(
        self, gates: Array, states: Array, masks: Array, kept: Any, dh: Array, ctx: Context
    ) -> tuple[Array, Callable[[int], None]]:
        xp = namespace_of(gates)

        def step(t: int) -> None:
            slope = gates[t]
            xp.multiply(states[t + 1], states[t + 1], out=slope)
            xp.subtract(1, slope, out=slope)
            slope *= dh
            if masks.shape[1]:
                slope *= masks[t][:, None]

        return gates, step


@dataclass(frozen=True)
class LSTM(_Recurrent):
    """Long short-term memory with input, forget, candidate and output gates; the forget gate starts open (bias 1)."""

    gates: ClassVar[int] = 4

    def _bias(self, shape: Shape, random: np.random.Generator) -> np.ndarray:
        bias = np.zeros(shape)
        bias[self.units : 2 * self.units] = 1
        return bias

    def _run(self, params: Views, gates: Array, states: Array, masks: Array, ctx: Context) -> Any:
        xp = namespace_of(gates)
        cells, squashed = ctx.empty(states.shape, states.dtype), ctx.empty(states[1:].shape, states.dtype)
        cells[0] = 0
        recurrent = ctx.empty(gates.shape[1:], gates.dtype)
        for t in range(len(gates)):
            xp.matmul(states[t], params["recurrent"], out=recurrent)
            old, new = (cells[t], states[t]), (cells[t + 1], states[t + 1])
            lstm_cell(gates[t], recurrent, params["bias"], masks[t], old, new, squashed[t])
        return cells, squashed

    def _backward_of(
        self, gates: Array, states: Array, masks: Array, kept: Any, dh: Array, ctx: Context
    ) -> tuple[Array, Callable[[int], None]]:
        cells, squashed = kept
        dc = ctx.empty(dh.shape, dh.dtype)
        dc[...] = 0
        return gates, lambda t: lstm_cell_backward(gates[t], squashed[t], cells[t], masks[t], dh, dc)


@dataclass(frozen=True)
class GRU(_Recurrent):
    """Gated recurrent unit: reset gate, update gate, candidate.

    candidate = tanh(x W + b + reset * (state U + recurrent_bias))."""

    gates: ClassVar[int] = 3
    extra: ClassVar[tuple[str, ...]] = ("recurrent_bias",)
    adds: ClassVar[bool] = True

    def _run(self, params: Views, gates: Array, states: Array, masks: Array, ctx: Context) -> Any:
        xp = namespace_of(gates)
        recurrent = ctx.empty(gates.shape, gates.dtype)
        gates += params["bias"]
        for t in range(len(gates)):
            xp.matmul(states[t], params["recurrent"], out=recurrent[t])
            recurrent[t][:, 2 * self.units :] += params["recurrent_bias"]
            gru_cell(gates[t], recurrent[t], masks[t], states[t], states[t + 1])
        return recurrent

    def _backward_of(
        self, gates: Array, states: Array, masks: Array, kept: Any, dh: Array, ctx: Context
    ) -> tuple[Array, Callable[[int], None]]:
        return kept, lambda t: gru_cell_backward(gates[t], kept[t], masks[t], states[t], dh)
