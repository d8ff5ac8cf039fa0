"""The collectives that users call: arguments are compared across ranks, and every dtype has one documented result.

Training knows that its buffers agree and calls ``collectives.allreduce`` directly."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np

from ddl.arrays import host
from ddl.collectives.allreduce import allreduce
from ddl.comm import Group


def check_same_call(group: Group, call: str) -> None:
    """Raises the same ValueError on every rank unless all of them describe the same ``call``.

    All workers call it, before any data is sent. It costs one allreduce of 8 bytes a rank; the descriptions
    themselves are exchanged only when they differ. Raises PeerLost."""
    if group.size == 1:
        return
    # Each rank fills one slot and leaves the others 0, so the sum shows all digests to every rank.
    # The top bit stays clear to keep the number positive.
    digests = np.zeros(group.size, np.int64)
    digests[group.rank] = int.from_bytes(blake2b(call.encode(), digest_size=8).digest(), "big") >> 1
    group.native_allreduce(digests)
    if (digests == digests[0]).all():
        return
    calls = group.gather_objects(call)
    other = next(rank for rank, theirs in enumerate(calls) if theirs != calls[0])
    raise ValueError(f"the ranks made different calls: rank 0 {calls[0]}, rank {other} {calls[other]}")


def reduce_across_ranks(x: Any, group: Group, average: bool) -> np.ndarray:
    """The sum, or mean, of ``x`` over all workers as a new host array of the same shape, equal bits on every rank.

    A mean of integers or booleans is float64, a sum of booleans is int64, and any other result has the dtype of ``x``
    in native byte order. Sums of integers wrap around on overflow, as in NumPy; float16 is summed in float32.
    Raises the same error on every rank: ValueError if shape, dtype or operation differ between ranks, TypeError for a
    dtype other than bool, integers, float16, float32 and float64. Raises PeerLost."""
    values = np.asarray(host(x))
    dtype = values.dtype.newbyteorder("=")
    check_same_call(group, f"allreduce({'mean' if average else 'sum'}, shape {values.shape}, {dtype})")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise TypeError(f"cannot sum {dtype} over ranks: use bool, integers, float16, float32 or float64")
    summed: np.dtype[Any]
    returned: np.dtype[Any]
    if dtype.kind in "biu" and average:
        summed = returned = np.dtype(np.float64)  # converted before the sum: the sum of two int8 may not fit into int8
    elif dtype.kind == "b":
        summed = returned = np.dtype(np.int64)
    else:
        # The mean of large halves is finite although their sum is not.
        summed, returned = np.dtype(np.float32) if dtype == np.float16 else dtype, dtype
    total = np.array(values, dtype=summed, order="C")
    allreduce(total.reshape(-1), group)
    if average:
        total /= group.size
    return total.astype(returned, copy=False)
