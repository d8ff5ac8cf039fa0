"""Compare the replicas: a rank whose state differs from the majority's is found and gets the majority's state.

How often this happens, and what happens without a majority, is decided in loop.py."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Device
from ddl.comm import Group
from ddl.fault.work import Recoverable, received


def compare(group: Group, work: Recoverable, kind: str, digest: str, replica: str) -> list[int] | None:
    """Identities of the ranks whose state differed from the majority's, which they hold now.

    kind, digest: this rank's hardware and a hash of its state. replica: equal on ranks that share a replica; they have
    one vote together, that of more than half of them. None, on all ranks, if no majority agrees. Different hardware
    rounds differently: then all ranks take the state of the first rank's kind, and those are named whose own state was
    further from it than rounding explains. Called by all workers. Raises PeerLost."""
    states = group.gather_objects((kind, digest, replica))
    digests = [digest for _, digest, _ in states]
    if len(set(digests)) == 1:
        return []
    first = states[0][0]
    voters: dict[str, list[int]] = {}
    for rank, (_, _, shared) in enumerate(states):
        voters.setdefault(shared, []).append(rank)
    votes = [_vote([digests[rank] for rank in ranks]) for ranks in voters.values() if states[ranks[0]][0] == first]
    cast = [vote for vote in votes if vote is not None]
    if not cast:
        return None
    majority = max(cast, key=cast.count)
    root = next(rank for rank, (kind, digest, _) in enumerate(states) if (kind, digest) == (first, majority))
    meta, arrays = received(group, work, root)
    if all(kind == first for kind, _, _ in states):
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
    """The value of more than half of them; None if there is none."""
    common = max(values, key=values.count)
    return common if 2 * values.count(common) > len(values) else None


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
    """The hardware that decides how numbers are rounded: ranks with the same value can agree bit for bit."""
    if device.is_gpu:
        return f"gpu {device.xp.cuda.Device(device.index).compute_capability}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu {line.partition(':')[2].strip()}"
    return f"cpu {platform.machine()}"
