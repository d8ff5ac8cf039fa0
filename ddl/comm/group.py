"""The contract of a group: the ranks of one generation and the communication among them.

Two implementations: processes over MPI (mpi_group.py) and threads of one process (threads.py, for tests).
ddl/collectives chooses the algorithm of a sum; ddl/fault decides what to do about a death.

Kill points. Every call passes ``<doing>.<call>`` before it starts and ``<doing>.<call>.done`` after it has returned;
``doing`` is the current use of the group (``group.doing``: "job", "allreduce", ...), ``call`` one of

    send receive exchange stream barrier native broadcast gather share agree revoke shrink

``stream.message`` comes before each message of a stream, and an algorithm adds ``block`` before each block that it
sums in shared memory."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from ddl.arrays import Array
from ddl.errors import JobEnded

Probe = Callable[[str], None]
"""Called with the name of a kill point each time execution passes it; fault injection uses it."""


def no_probe(point: str) -> None:
    """The default probe: no faults are injected."""


_Method = TypeVar("_Method", bound=Callable[..., Any])


def check_contiguous(x: Array) -> None:
    """Raises ValueError for an array that is not contiguous: MPI would write its result to a copy."""
    if not x.flags.c_contiguous:
        raise ValueError(f"an array that travels or is summed must be contiguous; this one has strides {x.strides}")


def no_watchdog(waiting: bool) -> None:
    """The default of ``Group.waits``: no watchdog is running."""


def kill_points(call: str) -> Callable[[_Method], _Method]:
    """Make a method of a Group pass the kill points of ``call`` and report to ``waits`` while it is running."""

    def wrap(method: _Method) -> _Method:
        @functools.wraps(method)
        def passing(self: Group, *args: Any, **named: Any) -> Any:
            if self.probe is not no_probe:
                self.probe(f"{self.doing}.{call}")
            self.waits(True)
            try:
                result = method(self, *args, **named)
            finally:
                self.waits(False)
            if self.probe is not no_probe:
                self.probe(f"{self.doing}.{call}.done")
            return result

        return cast(_Method, passing)

    return wrap


@dataclass(frozen=True)
class Member:
    """A process of the job. ``identity`` is its rank at launch and never changes."""

    identity: int
    host: str
    pid: int
    node: str  # equal for members that can map each other's memory
    started: int = 0  # start time of the process in clock ticks: detects that a pid was reused


# A vote is the bitwise AND of all members' words, so one member suffices to clear a bit. From low to high: 20 bits of
# the caller's flags, 8 bits of an exit status (inverted: two different statuses then never combine to 0), and:
_STAYS = 1 << 30  # cleared by a member that is going to shrink
_CONTINUES = 1 << 29  # cleared by a member that ends the job
_VALID = 1 << 28  # set by every member: without it, the vote failed because of a death
_STATUS_BITS, _STATUS = 20, 0xFF << 20


class NodeMemory(ABC):
    """Memory that all workers of a node have mapped: one slot per worker, and one common part.

    Mapped again in every generation, and not used after the next one has started."""

    slots: np.ndarray  # (workers on this node, at least slot_bytes) uint8, rows by index within the node
    common: np.ndarray  # (at least common_bytes,) uint8

    @abstractmethod
    def close(self) -> None: ...


class Group(ABC):
    """The members of one generation. Workers have ranks 0 .. size-1 and take part in sums; spares follow them.

    With fault tolerance, every blocking call raises PeerLost when a member has died, directly or because another
    member revoked the group; the contents of receive buffers are then undefined. Only ``revoke``, ``agree``,
    ``shrink`` and ``close`` may be called on a group that has lost a member. Only one thread may call a group at a
    time."""

    rank: int  # of this process; >= size for a spare
    size: int  # number of workers
    generation: int  # 0 at launch, one more after each recovery
    members: Sequence[Member]  # by rank: workers, then spares
    tolerant: bool  # deaths raise PeerLost here; otherwise a death ends the job
    probe: Probe
    doing: str = "job"  # the current use of the group, for kill points and PeerLost
    waits: Callable[[bool], None] = staticmethod(no_watchdog)  # called before (True) and after (False) a blocking call
    element_limit: int = 1 << 30  # elements of one message; MPI counts in 32 bits

    why_not_shared: str = ""  # why the last ``share`` returned None, if known
    newest_identity: int = -1  # the highest identity of any earlier member
    is_over: bool = False  # a member has ended the job
    _is_ended: bool = False  # members may only shrink now
    _scratch: np.ndarray | None = None

    @functools.cached_property
    def kept(self) -> dict[str, Any]:
        """Objects that collectives cache for this generation, such as mapped work space; empty at first."""
        return {}

    def scratch(self, nbytes: int) -> np.ndarray:
        """(nbytes,) uint8, the same memory in every call: undefined content, for one user at a time."""
        if self._scratch is None or self._scratch.nbytes < nbytes:
            self._scratch = np.empty(nbytes, np.uint8)
        return self._scratch[:nbytes]

    @property
    def is_leader(self) -> bool:
        """The lowest rank prints, writes and serves."""
        return self.rank == 0

    @property
    def is_spare(self) -> bool:
        return self.rank >= self.size

    @property
    def me(self) -> Member:
        return self.members[self.rank]

    @functools.cached_property
    def nodes(self) -> list[list[int]]:
        """Worker ranks by node, each list ascending, nodes in the order of their lowest rank."""
        found: dict[str, list[int]] = {}
        for rank in range(self.size):
            found.setdefault(self.members[rank].node, []).append(rank)
        return list(found.values())

    @functools.cached_property
    def local_ranks(self) -> list[int]:
        """The workers on this worker's node, itself included."""
        return next(ranks for ranks in self.nodes if self.rank in ranks)

    # Point to point, between workers. Arrays are contiguous NumPy arrays (host memory).
    @abstractmethod
    def send(self, x: Array, to: int) -> None: ...

    @abstractmethod
    def receive(self, x: Array, source: int) -> None: ...

    @abstractmethod
    def exchange(self, outgoing: Array, to: int, incoming: Array, source: int) -> None:
        """Send and receive at once, without deadlock; messages above the element limit go in chunks."""

    @abstractmethod
    def stream(
        self,
        outgoing: Sequence[Array],
        to: int,
        incoming: Sequence[Array],
        source: int,
        arrived: Callable[[int], None],
        ahead: int,
    ) -> None:
        """A sequence of exchanges, up to ``ahead`` of them in flight; ``arrived(i)`` is called in order as
        ``incoming[i]`` is complete. Then ``outgoing[i + ahead]`` must be ready and ``incoming[i + ahead]`` be free."""

    # Collectives of all workers.
    @abstractmethod
    def barrier(self) -> None: ...

    @abstractmethod
    def node_barrier(self) -> None:
        """A barrier of the workers of this node; the same as ``barrier`` if there is one node."""

    @abstractmethod
    def native_allreduce(self, x: Array) -> None:
        """Sum over the workers, in place, by the library's own algorithm."""

    def prepared_allreduce(self, x: Array, source: Array | None = None) -> Callable[[], None]:
        """A function that runs ``native_allreduce`` into ``x``, of ``x`` itself or of ``source`` if given."""

        def call() -> None:
            if source is not None:
                x[...] = source
            self.native_allreduce(x)

        return call

    def refuses_device_memory(self, index: int) -> str:
        """Why ``native_allreduce`` cannot use arrays on the GPU ``index``; "" if it can. The first call takes a second
        or two; the answer may differ between ranks."""
        return ""

    @abstractmethod
    def broadcast(self, x: Array, root: int) -> None:
        """Overwrite ``x`` on all workers with that of the worker ``root``."""

    @abstractmethod
    def gather_objects(self, value: Any) -> list[Any]:
        """Every worker's small picklable value, by rank, on every worker."""

    @abstractmethod
    def share(self, slot_bytes: int, common_bytes: int) -> NodeMemory | None:
        """Map memory among the workers of each node; None on ALL workers if any of them cannot."""

    def give_back(self, memory: NodeMemory) -> None:
        """Release ``memory``, which came from ``share``; arrays that view it stay valid."""
        memory.close()

    # Members, spares included.
    @abstractmethod
    def wait_as_spare(self) -> int:
        """Sleep, polling now and then, until ``release_spares`` (its status) or a revocation (PeerLost)."""

    @abstractmethod
    def release_spares(self, status: int = 0) -> None:
        """Called by the leader: let ``wait_as_spare`` return on all spares, with the job's exit status (0 .. 255)."""

    @kill_points("agree")
    def agree(self, flags: int) -> int:
        """Bitwise AND of all members' ``flags`` (below 2^20), the same value on every survivor; always returns,
        even on a revoked group. 0 on all members if one is found dead or is in ``shrink``.
        Raises JobEnded if a member has ended the job."""
        # A member that waits in ``agree`` while a peer is already in ``shrink`` would wait indefinitely. Therefore
        # ``shrink`` also starts with a vote: it matches the one of ``agree``, and no member votes again in this group.
        vote = self._counted(flags | _STAYS | _CONTINUES | _STATUS)
        return 0 if self._is_ended else vote & ~(_STAYS | _CONTINUES | _VALID | _STATUS)

    def _counted(self, flags: int) -> int:
        if self._is_ended:
            return 0
        vote = self._vote(flags | _VALID)
        if vote & _VALID and not vote & _CONTINUES:
            self.is_over = True
            if flags & _CONTINUES:
                raise JobEnded(~vote >> _STATUS_BITS & 0xFF)
        self._is_ended = not vote & _STAYS
        return vote

    @kill_points("shrink")
    def shrink(self, workers: int | None = None) -> Group:
        """The survivors as the next generation, in their old order: the first ``workers`` of them (default: as
        many as before, at most all) are workers, the rest spares. All members have agreed on it when it is returned.
        Raises JobEnded if a member has ended the job."""
        self._counted(_CONTINUES | _STATUS)
        group = self._next(self.size if workers is None else workers)
        group.doing, group.element_limit, group.waits = self.doing, self.element_limit, self.waits
        known = [member.identity for member in (*self.members, *group.members)]
        group.newest_identity = max(self.newest_identity, *known)
        return group

    def end_job(self, status: int) -> None:
        """Make every member's next ``agree`` or ``shrink`` raise JobEnded with ``status``, other calls PeerLost.

        Returns when all survivors know. They must not use this group afterwards."""
        group: Group = self
        while not (self.is_over or group.is_over):
            group.revoke()  # peers may be blocked in any call, and must reach the vote
            group._counted((~status & 0xFF) << _STATUS_BITS)
            if not group.is_over:
                group = group._next(self.size)
        self.is_over = True

    @abstractmethod
    def _vote(self, flags: int) -> int:
        """Bitwise AND over all members; 0 on every survivor if a member is found dead."""

    @abstractmethod
    def _next(self, workers: int) -> Group:
        """The survivors as a new group, agreed on by all, with at most ``workers`` workers. All survivors call it."""

    @abstractmethod
    def revoke(self) -> None:
        """Make every pending and every later call on this group raise PeerLost, on all members."""

    @abstractmethod
    def close(self) -> None:
        """Free the communicators and mappings of this generation; it must not be used afterwards."""
