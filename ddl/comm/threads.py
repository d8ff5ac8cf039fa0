"""A group whose ranks are threads of one process, with scripted deaths: for tests, and for a job of one rank.

Not optimised for speed; mpi_group.py connects real processes. Collectives consist of single messages, so that a rank
that dies inside one leaves some peers with a result and others without, as over MPI."""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ddl.arrays import Array
from ddl.comm.deaths import Death, ScriptedDeaths
from ddl.comm.group import Group, Member, NodeMemory, Probe, check_contiguous, kill_points, no_probe
from ddl.errors import CommError, PeerLost

WAIT_LIMIT_S = 20.0

T = TypeVar("T")


class _Job:
    """State that outlives generations: the only lock, and which ranks are gone."""

    def __init__(self, wait_limit_s: float, can_share: bool):
        self.changed = threading.Condition()
        self.gone: set[int] = set()  # identities that died or returned
        self.wait_limit_s, self.can_share = wait_limit_s, can_share

    def leave(self, identity: int) -> None:
        with self.changed:
            self.gone.add(identity)
            self.changed.notify_all()


@dataclass
class _Message:
    payload: Any
    taken: bool = False


@dataclass
class _World:
    """State shared by the members of one generation."""

    members: list[Member]
    size: int
    generation: int
    revoked: bool = False
    boxes: dict[tuple[str, int, int], deque[_Message]] = field(default_factory=dict)
    flags: dict[int, dict[int, int]] = field(default_factory=dict)
    agreed: dict[int, int] = field(default_factory=dict)
    memory: dict[tuple[int, str], ThreadMemory] = field(default_factory=dict)
    leaving: set[int] = field(default_factory=set)
    successor: _World | None = None


class ThreadMemory(NodeMemory):
    """Private memory of the process, which all threads share anyway."""

    def __init__(self, workers: int, slot_bytes: int, common_bytes: int):
        self.slots = _mapped(workers * slot_bytes).reshape(workers, slot_bytes)
        self.common = _mapped(common_bytes)

    def close(self) -> None:
        """Nothing to do: the memory is freed with its last view."""


class ThreadGroup(Group):
    tolerant = True

    def __init__(self, job: _Job, world: _World, rank: int, probe: Probe):
        self._job, self._world = job, world
        self.rank, self.size, self.generation, self.members = rank, world.size, world.generation, world.members
        self.probe = probe
        self._agreements = self._shares = 0

    # Messages, from which all other calls are built.
    def _lost(self) -> PeerLost:
        dead = [rank for rank, member in enumerate(self.members) if member.identity in self._job.gone]
        return PeerLost(dead, self.generation, self.doing)

    def _wait(self, ready: Callable[[], bool], lost: Callable[[], bool], doing: str) -> None:
        """Sleep until ``ready``; raise PeerLost once ``lost``. The lock is held on entry and on return."""
        deadline = time.monotonic() + self._job.wait_limit_s
        while not ready():
            if lost():
                raise self._lost()
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._job.changed.wait(remaining):
                raise CommError(f"rank {self.rank} waited {self._job.wait_limit_s:g} s in {self.doing}.{doing}")

    def _is_gone(self, rank: int) -> bool:
        return self.members[rank].identity in self._job.gone

    def _post(self, channel: str, to: int, payload: Any) -> _Message:
        message = _Message(payload)
        with self._job.changed:
            if self._world.revoked:
                raise self._lost()
            self._world.boxes.setdefault((channel, self.rank, to), deque()).append(message)
            self._job.changed.notify_all()
        return message

    def _take(self, channel: str, source: int) -> Any:
        with self._job.changed:
            if self._world.revoked:
                raise self._lost()
            box = self._world.boxes.setdefault((channel, source, self.rank), deque())
            self._wait(lambda: bool(box), lambda: self._world.revoked or self._is_gone(source), channel)
            message = box.popleft()
            message.taken = True
            self._job.changed.notify_all()
            return message.payload

    def _await_taken(self, message: _Message, to: int) -> None:
        """A send returns once it is received: a program that relies on buffering hangs in tests, not on a cluster."""
        with self._job.changed:
            self._wait(lambda: message.taken, lambda: self._world.revoked or self._is_gone(to), "send")

    def _to_each(self, channel: str, ranks: Sequence[int], payload: Any) -> None:
        for to in ranks:
            if to != self.rank:
                self._post(channel, to, payload)
                self.probe(f"{self.doing}.{channel}.message")

    # Point to point; nothing travels for an empty array.
    @kill_points("send")
    def send(self, x: Array, to: int) -> None:
        if x.size:
            self._await_taken(self._post("send", to, _frozen(x)), to)

    @kill_points("receive")
    def receive(self, x: Array, source: int) -> None:
        if x.size:
            _fill(x, self._take("send", source))

    @kill_points("exchange")
    def exchange(self, outgoing: Array, to: int, incoming: Array, source: int) -> None:
        message = self._post("send", to, _frozen(outgoing)) if outgoing.size else None
        if incoming.size:
            _fill(incoming, self._take("send", source))
        if message is not None:
            self._await_taken(message, to)

    @kill_points("stream")
    def stream(
        self,
        outgoing: Sequence[Array],
        to: int,
        incoming: Sequence[Array],
        source: int,
        arrived: Callable[[int], None],
        ahead: int,
    ) -> None:
        sent: deque[_Message | None] = deque()

        def post(x: Array) -> None:
            self.probe(f"{self.doing}.stream.message")
            sent.append(self._post("send", to, _frozen(x)) if x.size else None)

        for x in outgoing[:ahead]:
            post(x)
        for number, x in enumerate(incoming):
            if x.size:
                _fill(x, self._take("send", source))
            arrived(number)
            message = sent.popleft()
            if message is not None:
                self._await_taken(message, to)
            if number + ahead < len(outgoing):
                post(outgoing[number + ahead])

    # Collectives.
    def _barrier(self, ranks: Sequence[int]) -> None:
        """A dissemination barrier: in round k every rank sends a message to the rank 2^k further on."""
        place, count, step = ranks.index(self.rank), len(ranks), 1
        while step < count:
            self._post("barrier", ranks[(place + step) % count], None)
            self.probe(f"{self.doing}.barrier.message")
            self._take("barrier", ranks[(place - step) % count])
            step *= 2

    @kill_points("barrier")
    def barrier(self) -> None:
        self._barrier(range(self.size))

    @kill_points("barrier")
    def node_barrier(self) -> None:
        self._barrier(self.local_ranks)

    def _gather(self, channel: str, value: Any) -> list[Any]:
        self._to_each(channel, range(self.size), value)
        return [value if rank == self.rank else self._take(channel, rank) for rank in range(self.size)]

    @kill_points("native")
    def native_allreduce(self, x: Array) -> None:
        check_contiguous(x)
        parts = self._gather("native", x.copy())
        x[...] = _sum(parts)

    @kill_points("broadcast")
    def broadcast(self, x: Array, root: int) -> None:
        if self.rank == root:
            self._to_each("broadcast", range(self.size), _frozen(x))
        else:
            _fill(x, self._take("broadcast", root))

    @kill_points("gather")
    def gather_objects(self, value: Any) -> list[Any]:
        return [pickle.loads(packed) for packed in self._gather("gather", pickle.dumps(value))]

    @kill_points("share")
    def share(self, slot_bytes: int, common_bytes: int) -> NodeMemory | None:
        self._shares += 1
        key = (self._shares, self.me.node)
        with self._job.changed:
            if key not in self._world.memory:
                self._world.memory[key] = ThreadMemory(len(self.local_ranks), slot_bytes, common_bytes)
        self._barrier(range(self.size))
        if not self._job.can_share:
            self.why_not_shared = "these threads may not"
            return None
        return self._world.memory[key]

    # All members.
    @kill_points("spare")
    def wait_as_spare(self) -> int:
        with self._job.changed:
            box: deque[_Message] = self._world.boxes.setdefault(("release", 0, self.rank), deque())
            self._wait(
                lambda: bool(box),
                lambda: self._world.revoked or any(self._is_gone(rank) for rank in range(len(self.members))),
                "spare",
            )
            status: int = box[0].payload
            return status

    def release_spares(self, status: int = 0) -> None:
        self._to_each("release", range(self.size, len(self.members)), status)

    def _vote(self, flags: int) -> int:
        number, self._agreements = self._agreements, self._agreements + 1
        ranks = range(len(self.members))
        with self._job.changed:
            given = self._world.flags.setdefault(number, {})
            given[self.rank] = flags
            self._job.changed.notify_all()
            self._wait(
                lambda: number in self._world.agreed or all(r in given or self._is_gone(r) for r in ranks),
                lambda: False,
                "agree",
            )
            if number not in self._world.agreed:  # the first rank to see all votes fixes the result for all
                whole = len(given) == len(self.members)
                self._world.agreed[number] = int(np.bitwise_and.reduce(list(given.values()))) if whole else 0
            return self._world.agreed[number]

    @kill_points("revoke")
    def revoke(self) -> None:
        with self._job.changed:
            self._world.revoked = True
            self._job.changed.notify_all()

    def _next(self, workers: int) -> Group:
        world, ranks = self._world, range(len(self.members))
        with self._job.changed:
            world.leaving.add(self.rank)
            self._job.changed.notify_all()
            self._wait(
                lambda: world.successor is not None or all(r in world.leaving or self._is_gone(r) for r in ranks),
                lambda: False,
                "shrink",
            )
            if world.successor is None:
                alive = [self.members[rank] for rank in ranks if not self._is_gone(rank)]
                world.successor = _World(alive, min(workers, len(alive)), world.generation + 1)
            successor = world.successor
        return ThreadGroup(self._job, successor, successor.members.index(self.me), self.probe)

    def close(self) -> None:
        """Nothing to do."""


def _mapped(nbytes: int) -> np.ndarray:
    """(nbytes,) uint8, all zero. Mapped rather than taken from the heap, so that untouched pages cost nothing."""
    return np.frombuffer(mmap.mmap(-1, max(1, nbytes)), np.uint8, nbytes)


def _sum(parts: Sequence[Array]) -> Array:
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def _frozen(x: Array) -> Array:
    check_contiguous(x)
    return x.copy()


def _fill(x: Array, payload: Array) -> None:
    check_contiguous(x)
    if x.size != payload.size or x.dtype != payload.dtype:
        raise CommError(f"a message of {payload.size} x {payload.dtype} where {x.size} x {x.dtype} were expected")
    x.reshape(-1)[...] = payload.reshape(-1)


def run_ranks(
    size: int,
    function: Callable[[Any], T],
    *,
    spares: int = 0,
    death: Death | Sequence[Death] | None = None,
    nodes: Sequence[int] | None = None,
    can_share: bool = True,
    wait_limit_s: float = WAIT_LIMIT_S,
    probe: Callable[[int], Probe] | None = None,
) -> list[Any]:
    """Call ``function(group)`` in ``size`` workers and ``spares`` spares; their results by rank.

    An exception becomes the result of the rank that raised it, and Killed that of a rank that died. nodes: each rank's
    node (default: all on one). probe: makes a listener for each rank's kill points."""
    deaths = [death] if isinstance(death, Death) else list(death or [])
    job = _Job(wait_limit_s, can_share)
    world = _World([_member(r, 0 if nodes is None else nodes[r]) for r in range(size + spares)], size, 0)
    results: list[Any] = [None] * (size + spares)

    def live(rank: int) -> None:
        script = ScriptedDeaths([d for d in deaths if d.rank == rank], no_probe if probe is None else probe(rank))
        group = ThreadGroup(job, world, rank, script)
        try:
            results[rank] = function(group)
        except BaseException as error:
            results[rank] = error
        finally:
            job.leave(rank)

    threads = [threading.Thread(target=live, args=(rank,), daemon=True) for rank in range(size + spares)]
    # Sweeps of deaths are thousands of short runs, in which threads mostly wake each other: on one core that takes two
    # thirds of the time. Without a death all cores are used, so that sums really run at the same time.
    with _on_one_core() if deaths else nullcontext():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Pin this thread, and the threads that it starts, to its current core, if the system supports that."""
    try:
        with open("/proc/thread-self/stat") as file:
            core = int(file.read().rpartition(")")[2].split()[36])
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
    except (OSError, IndexError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def alone(probe: Probe = no_probe) -> Group:
    """The group of a job of one rank that was started without MPI."""
    world = _World([_member(0, 0)], 1, 0)
    group = ThreadGroup(_Job(WAIT_LIMIT_S, can_share=True), world, 0, probe)
    group.tolerant = False
    return group


def _member(rank: int, node: int) -> Member:
    return Member(identity=rank, host=socket.gethostname(), pid=os.getpid(), node=str(node))
