"""The collectives that users call: arguments are compared across ranks, and every dtype has one documented result.

Training knows that its buffers agree and calls ``collectives.allreduce`` directly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeGuard

import numpy as np

from ddl.arrays import host
from ddl.collectives.allreduce import allreduce
from ddl.comm import Group
from ddl.errors import CommError, DifferentCalls
from ddl.registry import tensor_as_array


@dataclass(frozen=True)
class Call:
    """What a rank asks of the others; two calls are the same if their texts are.

    root: a rank without which the call is impossible."""

    text: str
    root: int | None = None

    def why_not_shadowed(self) -> str:
        """Why the call needs every rank, if it does; "" if ranks that have left a ``join`` block can shadow it."""
        return ""

    def shadow(self, group: Group, contributors: int) -> None:
        """Take part on behalf of a rank that has left a ``join`` block: send zeros, and keep up with the others."""


LEFT = Call("left its ddl.join block")
NAMED = 3  # so many names are listed of values that differ


def check_same_call(group: Group, call: Call) -> int:
    """How many ranks make this call: all, except the ranks that have left a ``join`` block.

    All workers call it, before any data is sent. It costs one allreduce of 8 bytes per rank; the calls themselves are
    exchanged only when they differ. Raises the same ValueError on every rank if the calls differ. Raises PeerLost."""
    return _meet(group, call)[1]


def shadow_the_rest(group: Group) -> None:
    """Shadow the calls of the other ranks until all of them have left their ``join`` blocks. Raises ValueError."""
    while True:
        call, contributors = _meet(group, LEFT)
        if not contributors:
            return
        call.shadow(group, contributors)


def end_script(group: Group) -> None:
    """Called by each rank at its interpreter's end, while others may still make calls: those fail with the reason.

    Returns when all ranks have ended. Raises PeerLost, and CommError where another rank has failed."""
    group.kept.pop("watch_call", None)  # the others may take their time: nothing of theirs needs this rank
    while True:
        try:
            check_same_call(group, Call("ended its script"))
            return
        except ValueError:
            continue  # the other rank has the same error: it ends by it, or catches it and calls again


def _meet(group: Group, call: Call) -> tuple[Call, int]:
    """The call that all contributing ranks make, and their number: 0, and LEFT, if all have left."""
    return _agreed(_exchange(group, call), group)


def _exchange(group: Group, call: Call) -> list[Call]:
    """The calls of all ranks, by rank. Raises DifferentCalls if a rank has ended before the call."""
    if group.size == 1:
        return [call]
    group.kept["calls"] = group.kept.get("calls", 0) + 1
    # Each rank fills one slot and leaves the others 0, so the sum shows all digests to every rank.
    # The top bit stays clear to keep the number positive.
    digests = np.zeros(group.size, np.int64)
    digests[group.rank] = int.from_bytes(blake2b(call.text.encode(), digest_size=8).digest(), "big") >> 1
    with group.kept["watch_call"](call.text) if "watch_call" in group.kept else nullcontext():
        group.native_allreduce(digests)
    if (digests == digests[0]).all():
        return [call] * group.size
    try:
        return group.gather_objects(call)
    except CommError:  # a rank that has the answer already may have ended by it
        raise _difference(group, f"this rank {call.text}") from None


def _agreed(calls: list[Call], group: Group) -> tuple[Call, int]:
    """What ``_meet`` returns, from the calls of all ranks."""
    active = [rank for rank, theirs in enumerate(calls) if theirs != LEFT]
    if not active:
        return LEFT, 0
    agreed = calls[active[0]]
    other = next((rank for rank in active if calls[rank].text != agreed.text), None)
    if other is not None:
        raise _difference(group, f"rank {active[0]} {agreed.text}, rank {other} {calls[other].text}")
    left = next((rank for rank in range(len(calls)) if rank not in active), None)
    reason = agreed.why_not_shadowed()
    if agreed.root is not None and agreed.root not in active:
        left, reason = agreed.root, "the rank that all others receive from"
    if left is not None and reason:
        raise ValueError(f"rank {left} has left its ddl.join block: no {agreed.text} without it, {reason}")
    return agreed, len(active)


def _difference(group: Group, calls: str) -> DifferentCalls:
    return DifferentCalls(f"the ranks made different calls (call {group.kept['calls']} of each): {calls}")


@dataclass(frozen=True)
class _SameValues(Call):
    digests: tuple[tuple[str, str], ...] = ()


def check_same_values(group: Group, values: Mapping[str, Any], what: str, advice: str) -> None:
    """Raises ValueError, on every rank and with the names, if ``values`` differ between ranks.

    Arrays are compared by their bytes, plain values as JSON; objects of other types are not compared.

    what: what they are. advice: how to make them equal. Costs as much as ``check_same_call``."""
    if group.size == 1:
        return
    digests = tuple((name, digest) for name, value in sorted(values.items()) if (digest := _digest(value)))
    whole = blake2b(repr(digests).encode(), digest_size=8).hexdigest()
    calls = _exchange(group, _SameValues(f"compares {what} ({whole})", digests=digests))
    held = [dict(call.digests) for call in calls if isinstance(call, _SameValues)]
    if len(held) == group.size and any(mine != held[0] for mine in held):
        raise ValueError(f"ranks hold different {what}: {_minorities(held)}; {advice}")
    _agreed(calls, group)


def is_plain_array(value: Any) -> TypeGuard[np.ndarray]:
    """Whether its memory is its whole value: not so for arrays of texts, dates or objects, and for masked ones."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and not isinstance(value, np.ma.MaskedArray)


def _digest(value: Any) -> str:
    """Equal for equal values; "" for one that is not compared."""
    if is_plain_array(value):
        return blake2b(np.ascontiguousarray(value).data, digest_size=16).hexdigest()
    try:
        text = json.dumps(value.item() if isinstance(value, np.generic) else value, sort_keys=True)
    except (TypeError, ValueError):
        return ""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _minorities(held: list[dict[str, str]]) -> str:
    """Which ranks hold another value of a name than most do, or than rank 0 where there is no majority."""
    differing = []
    for name in sorted(set().union(*held)):
        values = [mine.get(name) for mine in held]
        usual = max(values, key=lambda value: (values.count(value), value == values[0]))
        if others := [str(rank) for rank, value in enumerate(values) if value != usual]:
            differing.append(f"{name} on rank{'s' * (len(others) > 1)} {', '.join(others)}")
    return "; ".join(differing[:NAMED]) + (f" and {len(differing) - NAMED} more" if len(differing) > NAMED else "")


def reduce_across_ranks(x: Any, group: Group, average: bool) -> np.ndarray:
    """The sum, or mean, of ``x`` over all workers as a new host array of the same shape, equal bits on every rank.

    A rank that has left a ``join`` block adds zeros and does not count in the mean.
    A mean of integers or booleans is float64, a sum of booleans is int64, and any other result has the dtype of ``x``
    in native byte order. Sums of integers wrap around on overflow, as in NumPy; float16 is summed in float32.
    Raises the same error on every rank: ValueError if shape, dtype or operation differ between ranks, TypeError for a
    dtype other than bool, integers, float16, float32 and float64. Raises PeerLost."""
    values = np.asarray(_unmasked(host(tensor_as_array(x))))
    dtype = values.dtype.newbyteorder("=")
    text = f"allreduce({'mean' if average else 'sum'}, shape {values.shape}, {dtype})"
    summed = _summed(dtype, average)
    contributors = check_same_call(group, Reduction(text, None, values.size, summed))
    if summed is None:
        raise TypeError(f"cannot sum {dtype} over ranks: use bool, integers, float16, float32 or float64")
    returned = np.dtype(np.int64) if dtype.kind == "b" else dtype
    if dtype.kind in "biu" and average:
        returned = np.dtype(np.float64)
    total = np.array(values, dtype=summed, order="C")
    allreduce(total.reshape(-1), group)
    if average:
        total /= contributors
    return total.astype(returned, copy=False)


def _unmasked(x: Any) -> Any:
    if np.ma.is_masked(x):
        raise TypeError("cannot sum a masked array over ranks: fill its masked values, or sum values and counts")
    return x


@dataclass(frozen=True)
class Reduction(Call):
    """A sum of ``length`` elements of type ``dtype``, or of a type that is refused."""

    length: int = 0
    dtype: np.dtype[Any] | None = None

    def shadow(self, group: Group, contributors: int) -> None:
        if self.dtype is not None:
            allreduce(np.zeros(self.length, self.dtype), group)


def _summed(dtype: np.dtype[Any], average: bool) -> np.dtype[Any] | None:
    """The type in which values of ``dtype`` are summed; None for one that is refused."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return None
    if dtype.kind in "biu" and average:
        return np.dtype(np.float64)  # converted before the sum: the sum of two int8 may not fit into int8
    if dtype.kind == "b":
        return np.dtype(np.int64)
    # The mean of large halves is finite although their sum is not.
    return np.dtype(np.float32) if dtype == np.float16 else dtype
