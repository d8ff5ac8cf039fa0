"""Allreduce by size: every algorithm, the MPI library's own, Gloo, a plain copy, and between hosts a bare socket.

"auto" is what a user gets: collectives.PersistentAllreduce, in memory shared by the ranks of a node. A row named after
an algorithm uses the same class with that algorithm, so a table made of these rows also fits gradients, which lie in
such memory. The MPI library's row is the faster of in-place and out-of-place. Between hosts the MPI settings of our
start-up also affect the library's allreduce, so there are two rows: "mpi_allreduce" runs in a program that sets
nothing (bench/stock_mpi.py, under a second mpirun that alternates with ours), and "mpi_allreduce_tuned" in our own
process, which is what "native" means. On one node the two are the same."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ddl.bench.measure import (
    Call,
    Elsewhere,
    Row,
    algorithm_bandwidth,
    bus_bandwidth,
    in_turns,
    medians,
    spread,
    time_block,
)
from ddl.bench.stock_mpi import FORMS
from ddl.bench.wire import Bell, both_ways, connect
from ddl.collectives import TABLE, PersistentAllreduce, Topology, Tuning
from ddl.collectives.choose import TuningRule
from ddl.collectives.shared import workspace
from ddl.comm import Group

SIZES = [1 << n for n in range(10, 29)]
ROUNDS = 9
OURS, PLAIN = "mpi_allreduce_tuned", "mpi_allreduce"  # the library's own, between hosts: in our process, in another


def algorithms_of(group: Group) -> list[str]:
    topology = Topology.of(group.nodes, workspace(group) is not None)
    # On one node "hierarchical" equals "shared"; "native" has its own row in any case.
    others = ("native", "hierarchical") if len(group.nodes) == 1 else ("native",)
    return [name for name in TABLE if topology.allows(name) and name not in others]


def native_of(nodes: int) -> str:
    """The peer that "native" is."""
    return OURS if nodes > 1 else PLAIN


def candidates_of(group: Group, nbytes: int, peers: Sequence[str]) -> tuple[dict[str, Call | Elsewhere], str]:
    """The calls to measure, by name, and the algorithm that "auto" chooses here.

    Every array is zero, so that repeated sums stay finite. It is also written once, since the kernel maps all
    unwritten pages to one page of zeros, which a copy would read from the cache."""
    length = nbytes // 4
    x, y, z = (np.full(length, 0, np.float32) for _ in range(3))
    found: dict[str, Call | Elsewhere] = {}
    chosen = ""
    for name in ("auto", *algorithms_of(group)):
        ours = PersistentAllreduce(group, length, algorithm=name)
        ours.local[:] = 0
        found[name] = ours.run
        chosen = chosen or ours.algorithm
    native = native_of(len(group.nodes))
    found[f"{native} in_place"] = group.prepared_allreduce(x)
    found[f"{native} two_buffers"] = group.prepared_allreduce(y, z)
    found["copy"] = lambda: np.copyto(y, z)
    if "gloo" in peers:
        from ddl.bench.peers import gloo_allreduce

        found["gloo"] = gloo_allreduce(nbytes)
    return found, chosen


def check(group: Group, length: int) -> None:
    """Raise AssertionError if the sum is wrong."""
    ours = PersistentAllreduce(group, length)
    ours.local[:] = np.arange(length) % 7 + group.rank
    ours.run()
    expected = (np.arange(length) % 7) * group.size + group.size * (group.size - 1) // 2
    if not np.array_equal(ours.result, expected.astype(np.float32)):
        raise AssertionError(f"the sum of {length} elements is wrong")


def between_hosts(
    group: Group, nbytes: int, bell: Bell, wire: socket.socket | None, ask: Callable[[Any], float]
) -> dict[str, Elsewhere]:
    """The library's allreduce in another program, and the bare socket. Ranks that take no part sleep meanwhile, so
    that they do not disturb the measurement."""

    def plain(form: str) -> Elsewhere:
        return Elsewhere(lambda calls: bell.ring(ask((form, nbytes, calls)) if group.is_leader else 0.0))

    # Each host must send and receive at least 2(n-1)/n times the bytes of one array.
    call = both_ways(wire, nbytes * 2 * (len(group.nodes) - 1) // len(group.nodes))
    found = {f"{PLAIN} {form}": plain(form) for form in FORMS}
    return {**found, "socket": Elsewhere(lambda calls: bell.ring(time_block(call, calls)))}


def rows(
    group: Group,
    sizes: Sequence[int],
    peers: Sequence[str],
    seconds: float,
    store: str,
    more: dict[str, Any],
    ask: Callable[[Any], float],
) -> Iterator[Row]:
    """For each size: auto against the library's better form, each algorithm, the copy and every peer.

    ask: on the leader, the seconds of the library's own in another program: (form, bytes, calls)."""
    if "gloo" in peers:
        from ddl.bench import peers as torch_peers

        torch_peers.join(group.rank, group.size, store)

    def slowest(value: float) -> float:
        return float(max(group.gather_objects(value)))

    several = len(group.nodes) > 1
    wire, bell = (connect(group), Bell(group)) if several else (None, None)
    base = (PLAIN, OURS, "copy", "socket") if several else (PLAIN, "copy")
    for nbytes in sizes:
        check(group, nbytes // 4)
        candidates, chosen = candidates_of(group, nbytes, peers)
        if bell is not None:
            candidates |= between_hosts(group, nbytes, bell, wire, ask)
        rounds = ROUNDS if nbytes > 32 << 20 else 3 * ROUNDS
        block_s = seconds / rounds / len(candidates)
        times = in_turns(
            candidates, rounds, group.barrier, block_s=block_s, agree=slowest, limit_s=seconds * len(candidates)
        )
        times |= {name: better_form(times, name) for name in {PLAIN, native_of(len(group.nodes))}}
        middle = medians(times)
        for name in ["auto", *algorithms_of(group)]:
            for peer in (*base, *peers) if name == "auto" else (native_of(len(group.nodes)),):
                figures = {
                    "algorithm_gb_s": round(algorithm_bandwidth(nbytes, middle[name]), 4),
                    "bus_gb_s": round(bus_bandwidth(nbytes, middle[name], group.size), 4),
                    "spread": round(spread(times[name]), 3),
                    "peer_spread": round(spread(times[peer]), 3),
                    "nodes": len(group.nodes),
                    **({"chosen": chosen} if name == "auto" else {}),
                    **more,
                }
                yield Row("allreduce", group.size, {"bytes": nbytes}, name, middle[name], peer, middle[peer], figures)
    if bell is not None:
        bell.close()
    if wire is not None:
        wire.close()
    if "gloo" in peers:
        torch_peers.leave()


def better_form(times: dict[str, list[float]], name: str) -> list[float]:
    """Of a library's own allreduce: in place, or from one buffer into another."""
    return min((times[f"{name} {form}"] for form in FORMS), key=statistics.median)


def tuning_of(found: Sequence[dict[str, Any]]) -> Tuning:
    """The rules that the measured rows imply: the fastest algorithm from each size at which it changes."""
    rules: list[TuningRule] = []
    for nodes, ranks in sorted({(row["nodes"], row["ranks"]) for row in found}):
        rows = (row for row in found if (row["nodes"], row["ranks"]) == (nodes, ranks))
        here = [row for row in rows if row["peer"] == native_of(nodes)]
        last = ""
        for nbytes in sorted({row["bytes"] for row in here}):
            at = [row for row in here if row["bytes"] == nbytes and row["algorithm"] != "auto"]
            if not at:
                continue
            seconds = {row["algorithm"]: row["ours_s"] for row in at} | {"native": at[0]["peer_s"]}
            best = min(seconds, key=lambda name: seconds[name])
            if best != last:
                rules.append(TuningRule(nodes, ranks, 0 if not last else nbytes, best))
                last = best
    return Tuning(tuple(rules))
