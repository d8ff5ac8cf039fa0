"""Comparing the replicas: a rank whose state differs from the others' is found, and healed where a majority agrees.

How often this happens, and what becomes of a job without a majority, is loop.py's."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

from ddl.arrays import Device
from ddl.comm import Group
from ddl.fault.recover import Recoverable


def compare(group: Group, work: Recoverable, kind: str, digest: str) -> list[int] | None:
    """Identities of the ranks that held another state than the majority, and now hold the majority's.

    kind, digest: this rank's hardware and a hash of its state. None, on all ranks, where no majority agrees. Ranks of
    different hardware round differently: there all take the state of the first rank's kind, and nobody is named.
    Called by all workers. Raises PeerLost."""
    told = group.gather_objects((kind, digest))
    digests = [digest for _, digest in told]
    if any(kind != told[0][0] for kind, _ in told):
        alike = [digest for kind, digest in told if kind == told[0][0]]
        root = digests.index(max(alike, key=alike.count))
        _receive(group, work, root, [rank for rank, digest in enumerate(digests) if digest != digests[root]])
        return []
    if len(set(digests)) == 1:
        return []
    majority = max(digests, key=digests.count)
    if 2 * digests.count(majority) <= len(digests):
        return None
    wrong = [rank for rank, digest in enumerate(digests) if digest != majority]
    _receive(group, work, digests.index(majority), wrong)
    return [group.members[rank].identity for rank in wrong]


def _receive(group: Group, work: Recoverable, root: int, wrong: list[int]) -> None:
    """Ranks ``wrong`` take over the state of rank ``root``; all ranks call this."""
    meta = group.gather_objects(work.meta() if group.rank == root else None)[root]
    arrays = [flat if group.rank == root else flat.copy() for flat in work.flat_arrays()]
    for flat in arrays:
        group.broadcast(flat, root)
    if group.rank in wrong:
        work.take_over(arrays, meta)


def hardware(device: Device) -> str:
    """What decides how numbers are rounded here: ranks with the same value can agree bit for bit."""
    if device.is_gpu:
        return f"gpu {device.xp.cuda.Device(device.index).compute_capability}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu {line.partition(':')[2].strip()}"
    return f"cpu {platform.machine()}"
