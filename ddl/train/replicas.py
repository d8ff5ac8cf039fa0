"""Comparing the replicas: a rank whose state differs from the others' is found, and healed where a majority agrees.

How often this happens, and what becomes of a job without a majority, is loop.py's."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Device
from ddl.comm import Group
from ddl.fault.recover import Recoverable


def compare(group: Group, work: Recoverable, kind: str, digest: str) -> list[int] | None:
    """Identities of the ranks that held another state than the majority, and now hold the majority's.

    kind, digest: this rank's hardware and a hash of its state. None, on all ranks, where no majority agrees. Ranks of
    different hardware round differently: there all take the state of the first rank's kind, and those are named whose
    own is further from it than rounding explains. Called by all workers. Raises PeerLost."""
    told = group.gather_objects((kind, digest))
    digests = [digest for _, digest in told]
    if len(set(digests)) == 1:
        return []
    first = told[0][0]
    alike = [digest for kind, digest in told if kind == first]
    majority = max(alike, key=alike.count)
    root = next(rank for rank, pair in enumerate(told) if pair == (first, majority))
    meta, arrays = _received(group, work, root)
    if len(alike) == len(told):
        agrees = [digest == majority for digest in digests]
    else:
        agrees = group.gather_objects(_is_near(work.flat_arrays(), arrays))
    if 2 * sum(agrees) <= len(agrees):
        return None
    if digests[group.rank] != majority:
        work.take_over(arrays, meta)
    return [group.members[rank].identity for rank, does in enumerate(agrees) if not does]


def _received(group: Group, work: Recoverable, root: int) -> tuple[Any, list[np.ndarray]]:
    """The state of rank ``root``, on all ranks."""
    meta = group.gather_objects(work.meta() if group.rank == root else None)[root]
    arrays = [flat if group.rank == root else flat.copy() for flat in work.flat_arrays()]
    for flat in arrays:
        group.broadcast(flat, root)
    return meta, arrays


def _is_near(own: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    """Whether two states differ by no more than rounding explains.

    Both had the same gradients, bit for bit: only the updates since the last comparison were rounded differently."""
    for mine, other in zip(own, others, strict=True):
        if mine.dtype.kind != "f":
            continue
        finite = np.isfinite(other)
        if not np.array_equal(finite, np.isfinite(mine)):
            return False
        limit = np.sqrt(np.finfo(mine.dtype).eps) * np.abs(other[finite]).max(initial=0.0)
        if not (np.abs(mine[finite] - other[finite]) <= limit).all():
            return False
    return True


def hardware(device: Device) -> str:
    """What decides how numbers are rounded here: ranks with the same value can agree bit for bit."""
    if device.is_gpu:
        return f"gpu {device.xp.cuda.Device(device.index).compute_capability}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu {line.partition(':')[2].strip()}"
    return f"cpu {platform.machine()}"
