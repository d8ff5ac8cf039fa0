"""Allreduce by size: every algorithm, the MPI library's own, Gloo, a plain copy, and between hosts a bare socket.

"auto" is what a user gets: collectives.PersistentAllreduce, its memory shared by the ranks of a node; an algorithm's
name is the same with that algorithm. So a table made of these rows serves gradients, which lie in such memory too."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ddl.bench.measure import Row, algorithm_bandwidth, bus_bandwidth, in_turns, medians, spread
from ddl.bench.wire import both_ways, connect
from ddl.collectives import TABLE, PersistentAllreduce, Topology, Tuning
from ddl.collectives.choose import Rule
from ddl.collectives.shared import workspace
from ddl.comm import Group

SIZES = [1 << n for n in range(10, 29)]
ROUNDS = 9
MPI_FORMS = ("mpi_in_place", "mpi_two_buffers")


def algorithms_of(group: Group) -> list[str]:
    topology = Topology.of(group.nodes, workspace(group) is not None)
    # What differs from shared only between nodes is left out within one; native is MPI's own.
    others = ("native", "hierarchical") if len(group.nodes) == 1 else ("native",)
    return [name for name in TABLE if topology.allows(name) and name not in others]


def candidates_of(
    group: Group, nbytes: int, peers: Sequence[str], wire: socket.socket | None
) -> tuple[dict[str, Callable[[], object]], str]:
    """What is called, by name, and the algorithm that "auto" is here.

    Every array is zero, so that sums of sums stay finite, and written once: pages that nobody has written are one page
    of zeros to the system, which a copy reads from the cache."""
    length = nbytes // 4
    x, y, z = (np.full(length, 0, np.float32) for _ in range(3))
    found: dict[str, Callable[[], object]] = {}
    chosen = ""
    for name in ("auto", *algorithms_of(group)):
        ours = PersistentAllreduce(group, length, algorithm=name)
        ours.local[:] = 0
        found[name] = ours.run
        chosen = chosen or ours.algorithm
    found["mpi_in_place"] = group.prepared_allreduce(x)
    found["mpi_two_buffers"] = group.prepared_allreduce(y, z)
    found["copy"] = lambda: np.copyto(y, z)
    if len(group.nodes) > 1:
        # The least that each host must send, and receive: what the ranks of one have, 2(n-1)/n times.
        found["socket"] = both_ways(wire, nbytes * 2 * (len(group.nodes) - 1) // len(group.nodes))
    if "gloo" in peers:
        from ddl.bench.peers import gloo_allreduce

        found["gloo"] = gloo_allreduce(nbytes)
    return found, chosen


def check(group: Group, length: int) -> None:
    """A sum that is fast has to be right first."""
    ours = PersistentAllreduce(group, length)
    ours.local[:] = np.arange(length) % 7 + group.rank
    ours.run()
    expected = (np.arange(length) % 7) * group.size + group.size * (group.size - 1) // 2
    if not np.array_equal(ours.result, expected.astype(np.float32)):
        raise AssertionError(f"the sum of {length} elements is wrong")


def rows(
    group: Group, sizes: Sequence[int], peers: Sequence[str], seconds: float, store: str, more: dict[str, Any]
) -> Iterator[Row]:
    """For each size: auto against the library's better form, each algorithm, the copy and every peer."""
    if "gloo" in peers:
        from ddl.bench import peers as torch_peers

        torch_peers.join(group.rank, group.size, store)

    def slowest(value: float) -> float:
        return float(max(group.gather_objects(value)))

    wire = connect(group) if len(group.nodes) > 1 else None
    base = ("mpi_allreduce", "copy", "socket") if len(group.nodes) > 1 else ("mpi_allreduce", "copy")
    for nbytes in sizes:
        check(group, nbytes // 4)
        candidates, chosen = candidates_of(group, nbytes, peers, wire)
        rounds = ROUNDS if nbytes > 32 << 20 else 3 * ROUNDS
        block_s = seconds / rounds / len(candidates)
        times = in_turns(
            candidates, rounds, group.barrier, block_s=block_s, agree=slowest, limit_s=seconds * len(candidates)
        )
        middle = medians(times)
        better = min(MPI_FORMS, key=lambda name: middle[name])
        middle["mpi_allreduce"] = middle[better]
        for name in ["auto", *algorithms_of(group)]:
            against = (*base, *peers) if name == "auto" else ("mpi_allreduce",)
            for peer in against:
                figures = {
                    "algorithm_gb_s": round(algorithm_bandwidth(nbytes, middle[name]), 4),
                    "bus_gb_s": round(bus_bandwidth(nbytes, middle[name], group.size), 4),
                    "spread": round(spread(times[name]), 3),
                    "nodes": len(group.nodes),
                    **({"chosen": chosen} if name == "auto" else {}),
                    **more,
                }
                yield Row("allreduce", group.size, {"bytes": nbytes}, name, middle[name], peer, middle[peer], figures)
    if wire is not None:
        wire.close()
    if "gloo" in peers:
        torch_peers.leave()


def tuning_of(found: Sequence[dict[str, Any]]) -> Tuning:
    """The rules that measured rows speak for: at each size the fastest algorithm, where it changes."""
    rules: list[Rule] = []
    for nodes, ranks in sorted({(row["nodes"], row["ranks"]) for row in found}):
        rows = (row for row in found if (row["nodes"], row["ranks"]) == (nodes, ranks))
        here = [row for row in rows if row["peer"] == "mpi_allreduce"]
        last = ""
        for nbytes in sorted({row["bytes"] for row in here}):
            at = [row for row in here if row["bytes"] == nbytes and row["algorithm"] != "auto"]
            if not at:
                continue
            seconds = {row["algorithm"]: row["ours_s"] for row in at} | {"native": at[0]["peer_s"]}
            best = min(seconds, key=lambda name: seconds[name])
            if best != last:
                rules.append(Rule(nodes, ranks, 0 if not last else nbytes, best))
                last = best
    return Tuning(tuple(rules))
