"""The flow of micro-batches through one stage: receives activations, computes, sends, in the order of schedule.py.

What a micro-batch is, and where its gradients go, is the caller's (``Micros``)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from ddl.arrays import Array, Device, FlatBuffer, Views, host
from ddl.comm import Group
from ddl.nn.context import Context
from ddl.pipeline.network import Joint, Stage
from ddl.pipeline.schedule import Act, in_flight, one_forward_one_backward

STATE_WORDS = 13  # of a generator


class Micros(Protocol):
    """The micro-batches of one step on a stage. All stages of a replica have the same rows and segments."""

    def rows(self, number: int) -> int:
        """How many rows micro-batch ``number`` has."""
        ...

    def segments(self, number: int) -> int:
        """How many shards they belong to."""
        ...

    def begin(self, number: int, ctx: Context) -> Mapping[str, Array]:
        """Begin the micro-batch's context and return its batch: its fields on the first and the last stage."""
        ...

    def measured(self, number: int, loss: float, weight: float, sums: Mapping[str, Any]) -> None:
        """Enter what the last stage found."""
        ...

    def gradients(self, number: int) -> Views:
        """Where backward writes the micro-batch's gradients."""
        ...

    def computed(self, number: int) -> None:
        """Backward has written them."""
        ...


@dataclass
class _Passed:
    """What a stage keeps of a micro-batch between forward and backward."""

    ctx: Context
    caches: list[Any]
    output: Array | None
    slope: Array | None = None  # of the output; on the last stage from the loss


class Flow:
    """chain: the ranks of this replica by stage. contexts: made by ``make_context``, one for each micro-batch whose
    activations are kept at once. busy_s, waited_s: seconds of computing, and of messages, since the last ``reset``."""

    def __init__(self, group: Group, chain: Sequence[int], stage: Stage, micros: int, device: Device, make_context):
        self.group, self.chain, self.stage, self.device = group, list(chain), stage, device
        self.before = chain[stage.number - 1] if not stage.is_first else -1
        self.after = chain[stage.number + 1] if not stage.is_last else -1
        self.kept = in_flight(stage.number, len(chain), micros)
        self.contexts: list[Context] = [make_context() for _ in range(self.kept)]
        self._inbox = [np.empty(0, np.uint8) for _ in range(self.kept + 2)]  # the last one is for gradients
        self.borrowed = FlatBuffer(stage.of_borrowed, xp=device.xp)
        self.busy_s = self.waited_s = 0.0

    def borrow(self, params: Views) -> Views:
        """``params`` and the parameters that belong to another stage. All stages call it before a pass, so that a
        borrowed parameter never differs from its owner's."""
        stage = self.stage
        for name, place in stage.lent.items():
            self._timed(self.group.send, _as_bytes(params[name]), self.chain[place])
        if not stage.borrowed:
            return params
        for name, place in stage.borrowed.items():
            space = np.ascontiguousarray(host(self.borrowed[name])).reshape(-1).view(np.uint8)
            self._timed(self.group.receive, space, self.chain[place])
            self.borrowed[name][...] = self.device.array(
                space.view(self.borrowed.layout.dtype).reshape(self.borrowed[name].shape)
            )
        return stage.views(params, self.borrowed.views)

    def give_back(self, borrowed: Views, own: Views) -> None:
        """Add the gradients of lent parameters to their owner's. All stages call it after ``train``."""
        stage = self.stage
        for name, place in stage.borrowed.items():
            self._timed(self.group.send, _as_bytes(borrowed[name]), self.chain[place])
        for name, place in stage.lent.items():
            space = np.empty_like(host(own[name]))
            self._timed(self.group.receive, space.reshape(-1).view(np.uint8), self.chain[place])
            own[name][...] += self.device.array(space)

    def train(self, params: Views, micros: Micros, count: int) -> None:
        """Forward and backward of all micro-batches. Raises PeerLost."""
        passed: dict[int, _Passed] = {}
        arrived: dict[int, Array] = {}
        slopes: dict[int, Array] = {}
        for act, number, other in one_forward_one_backward(self.stage.number, len(self.chain), count):
            if act is Act.FORWARD:
                passed[number] = self._forward(params, micros, number, arrived.pop(number, None))
            elif act is Act.BACKWARD:
                back = passed.pop(number)
                dx = self._backward(params, micros, number, back, slopes.pop(number, back.slope))
                if dx is not None:
                    slopes[number] = dx  # until it is sent
            elif act is Act.RECEIVE_ACTIVATION:
                arrived[other] = self._activation_space(micros, other)
                self._timed(self.group.receive, arrived[other], self.before)
            elif act is Act.SEND_ACTIVATION:
                self._timed(self.group.send, self._packed(passed[number]), self.after)
            elif act is Act.RECEIVE_GRADIENT:
                slopes[other] = self._slope_space(micros, other)
                self._timed(self.group.receive, slopes[other], self.after)
            elif act is Act.SEND_GRADIENT:
                self._timed(self.group.send, self._sent(slopes.pop(number, None), micros, number), self.before)
            elif act is Act.SWAP_WITH_NEXT:
                slopes[other] = self._slope_space(micros, other)
                outgoing = self._packed(passed[number])
                self._timed(self.group.exchange, outgoing, self.after, slopes[other], self.after)
            else:
                arrived[other] = self._activation_space(micros, other)
                outgoing = self._sent(slopes.pop(number, None), micros, number)
                self._timed(self.group.exchange, outgoing, self.before, arrived[other], self.before)

    def evaluate(self, params: Views, micros: Micros, number: int) -> None:
        """Forward of one micro-batch."""
        incoming = None
        if not self.stage.is_first:
            incoming = self._activation_space(micros, number)
            self._timed(self.group.receive, incoming, self.before)
        passed = self._forward(params, micros, number, incoming)
        if not self.stage.is_last:
            self._timed(self.group.send, self._packed(passed), self.after)

    def skip(self, micros: Micros, number: int, is_received: bool = False) -> None:
        """In place of ``evaluate`` after an error: keep the other stages going, with zeros."""
        if not self.stage.is_first and not is_received:
            self.group.receive(self._activation_space(micros, number), self.before)
        if self.stage.outgoing is not None:
            self.group.send(np.zeros(_bytes_of(self.stage.outgoing, micros.rows(number)), np.uint8), self.after)

    def _timed(self, call, *arguments: Any) -> None:
        began = time.perf_counter()
        call(*arguments)
        self.waited_s += time.perf_counter() - began

    def _forward(self, params: Views, micros: Micros, number: int, incoming: Array | None) -> _Passed:
        stage, ctx = self.stage, self.contexts[number % self.kept]
        batch = micros.begin(number, ctx)
        rows = micros.rows(number)
        passed = _Passed(ctx, [], None)
        if rows == 0 and not stage.whole.synchronised:
            return passed
        began = time.perf_counter()
        if incoming is None:
            x = batch["x"]
            ctx.data, ctx.categories = x, batch.get("categories")
        else:
            assert stage.incoming is not None
            x = self._unpacked(incoming, stage.incoming, rows, ctx)
        with ctx.span("forward"):
            passed.output, passed.caches = stage.forward(params, x, ctx)
        if stage.is_last:
            loss, weight, sums, passed.slope = stage.loss(passed.output, batch, ctx)
            micros.measured(number, loss, weight, sums)
        self.busy_s += time.perf_counter() - began
        return passed

    def _backward(self, params: Views, micros: Micros, number: int, passed: _Passed, dy: Array | None) -> Array | None:
        began = time.perf_counter()
        grads = micros.gradients(number)
        dx = None
        if passed.output is None:
            for view in grads.values():
                view[...] = 0
        else:
            if not self.stage.is_last:
                assert dy is not None and self.stage.outgoing is not None
                dy = self.device.array(dy.view(self.stage.outgoing.dtype).reshape(passed.output.shape))
            with passed.ctx.span("backward"):
                dx = self.stage.backward(params, grads, passed.caches, dy, passed.ctx)
        micros.computed(number)
        self.busy_s += time.perf_counter() - began
        return dx

    # Messages: bytes, in memory that is reused.

    def _space(self, place: int, nbytes: int) -> Array:
        if self._inbox[place].nbytes < nbytes:
            self._inbox[place] = np.empty(nbytes, np.uint8)
        return self._inbox[place][:nbytes]

    def _activation_space(self, micros: Micros, number: int) -> Array:
        joint, rows = self.stage.incoming, micros.rows(number)
        assert joint is not None
        ctx = self.contexts[number % self.kept]
        nbytes = _bytes_of(joint, rows)
        if joint.is_drawn and ctx.training and rows:
            nbytes += 8 * STATE_WORDS * micros.segments(number)
        return self._space(number % (self.kept + 1), nbytes)

    def _slope_space(self, micros: Micros, number: int) -> Array:
        joint = self.stage.outgoing
        assert joint is not None
        return self._space(self.kept + 1, micros.rows(number) * prod(joint.shape) * joint.dtype.itemsize)

    def _packed(self, passed: _Passed) -> Array:
        joint, ctx = self.stage.outgoing, passed.ctx
        assert joint is not None
        if passed.output is None or not len(passed.output):
            return np.empty(0, np.uint8)
        parts = [_as_bytes(passed.output, joint.dtype)]
        if joint.mask is not None:
            parts.append(_as_bytes(ctx.mask, np.dtype(bool)))
        if joint.is_drawn and ctx.training:
            parts.append(_as_bytes(np.array([_words(one) for one in ctx.generators], np.uint64)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _unpacked(self, incoming: Array, joint: Joint, rows: int, ctx: Context) -> Array:
        end = rows * prod(joint.shape) * joint.dtype.itemsize
        x = incoming[:end].view(joint.dtype).reshape(rows, *joint.shape)
        if joint.mask is not None:
            start, end = end, end + rows * prod(joint.mask)
            ctx.mask = self.device.array(incoming[start:end].view(bool).reshape(rows, *joint.mask))
        if joint.is_drawn and ctx.training and rows:
            states = np.frombuffer(incoming[end:].tobytes(), np.uint64).reshape(-1, STATE_WORDS)
            for one, words in zip(ctx.generators, states, strict=True):
                _set_words(one, words)
        return self.device.array(x)

    def _sent(self, dx: Array | None, micros: Micros, number: int) -> Array:
        """The gradient of what a stage received. A stage whose layers need none still owes it: it is zero."""
        joint = self.stage.incoming
        assert joint is not None
        if dx is None:
            return np.zeros(micros.rows(number) * prod(joint.shape) * joint.dtype.itemsize, np.uint8)
        return _as_bytes(dx, joint.dtype)


def _bytes_of(joint: Joint, rows: int) -> int:
    return rows * (prod(joint.shape) * joint.dtype.itemsize + (0 if joint.mask is None else prod(joint.mask)))


def _as_bytes(x: Array, dtype: np.dtype | None = None) -> Array:
    """The bytes of ``x``, without a copy if it is contiguous, of that dtype and on the host."""
    return np.ascontiguousarray(host(x), dtype).reshape(-1).view(np.uint8)


def _words(random: np.random.Generator) -> list[int]:
    """The state of a generator (Philox), as whole numbers."""
    state: Any = random.bit_generator.state
    inner = state["state"]
    found = [*inner["counter"], *inner["key"], *state["buffer"]]
    return [*map(int, found), int(state["buffer_pos"]), int(state["has_uint32"]), int(state["uinteger"])]


def _set_words(random: np.random.Generator, words: Array) -> None:
    random.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": words[:4].copy(), "key": words[4:6].copy()},
        "buffer": words[6:10].copy(),
        "buffer_pos": int(words[10]),
        "has_uint32": int(words[11]),
        "uinteger": int(words[12]),
    }
