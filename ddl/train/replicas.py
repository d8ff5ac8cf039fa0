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


def compare(group: Group, work: Recoverable, kind: str, digest: str, replica: str) -> list[int] | None:
    """Identities of the ranks that held another state than the majority, and now hold the majority's.

    kind, digest: this rank's hardware and a hash of its state. replica: equal on ranks that share one, which have one
    vote together: that of more than half of them. None, on all ranks, where no majority agrees. Ranks of
    different hardware round differently: there all take the state of the first rank's kind, and those are named whose
    own is further from it than rounding explains. Called by all workers. Raises PeerLost."""
    told = group.gather_objects((kind, digest, replica))
    digests = [digest for _, digest, _ in told]
    if len(set(digests)) == 1:
        return []
    first = told[0][0]
    voters: dict[str, list[int]] = {}
    for rank, (_, _, shared) in enumerate(told):
        voters.setdefault(shared, []).append(rank)
    votes = [_vote([digests[rank] for rank in ranks]) for ranks in voters.values() if told[ranks[0]][0] == first]
    cast = [vote for vote in votes if vote is not None]
    if not cast:
        return None
    majority = max(cast, key=cast.count)
    root = next(rank for rank, (kind, digest, _) in enumerate(told) if (kind, digest) == (first, majority))
    meta, arrays = _received(group, work, root)
    if all(kind == first for kind, _, _ in told):
        agrees = [digest == majority for digest in digests]
    else:
        agrees = group.gather_objects(_is_near(work.flat_arrays(), arrays))
    agreeing = sum(bool(_vote([agrees[rank] for rank in ranks])) for ranks in voters.values())
    if 2 * agreeing <= len(voters):
        return None
    if digests[group.rank] != majority:
        work.take_over(arrays, meta)
    return [group.members[rank].identity for rank, does in enumerate(agrees) if not does]


def _vote(values: Sequence[Any]) -> Any:
    """What more than half of them are; None where nothing is."""
    common = max(values, key=values.count)
    return common if 2 * values.count(common) > len(values) else None


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
