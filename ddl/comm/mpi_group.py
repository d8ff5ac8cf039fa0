"""A group of processes over MPI: the contract of group.py, implemented by calls of MPI.

Uses only calls that were seen to return after a death under ULFM: blocking collectives, Sendrecv, and requests that
are waited for one at a time; never Waitall, Finalize or Abort. mpi.py starts and ends MPI; topology.py identifies
hosts and nodes."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from ddl.arrays import Array
from ddl.comm import checked, device_memory, ending, preflight, shared_memory
from ddl.comm.group import Group, Member, NodeMemory, Probe, check_contiguous, kill_points, no_probe
from ddl.comm.library import reports_deaths
from ddl.comm.topology import start_time
from ddl.errors import EX_TEMPFAIL, CommError, PeerLost

SPARE_POLL_S = 0.02
CRASH_S = 2.0  # ranks that are notified of the same death crash within milliseconds, on a busy machine within a second
NONE_IS_LEFT = (
    "ddl: MPI crashed on every rank that was left, since one died while they formed a new group; the newest checkpoint "
    "is intact: start the job again"
)
RELEASE_TAG = 7
_abandoned: list[tuple[Any, ...]] = []  # unfinished requests of earlier generations, with their arrays

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _translated(method: _Method) -> _Method:
    """Translate MPI's exceptions to ours: in a tolerant group any of them may be caused by a death."""

    @functools.wraps(method)
    def translating(self: MpiGroup, *args: Any) -> Any:
        try:
            return method(self, *args)
        except self._mpi.Exception as error:
            raise self._error(error, method.__name__) from error

    return cast(_Method, translating)


class MpiGroup(Group):
    """Three communicators: ``everyone`` (workers, then spares), the ``workers``, and the workers of this ``node``.

    They are made in this order, and ``sealed`` ends with an agreement of everyone, because a communicator must not be
    revoked while a peer is still in the call that makes it."""

    def __init__(self, mpi: Any, everyone: Any, me: Member, size: int, generation: int, tolerant: bool, probe: Probe):
        self._mpi, self._everyone, self._me = mpi, everyone, me
        self.rank, self.size, self.generation = everyone.Get_rank(), size, generation
        self.tolerant, self.probe = tolerant, probe
        self._node: Any = None
        self._memory: list[NodeMemory] = []
        self._on_their_way: tuple[Any, ...] = ()  # requests, and the arrays that they read and write
        everyone.Set_errhandler(mpi.ERRORS_RETURN)
        self.members = checked.gather(mpi, everyone, me, self.element_limit)
        self._workers: Any = self._part(everyone, self.rank < size, size == everyone.Get_size())
        if not self.is_spare:
            first = self.local_ranks[0]
            self._node = self._part(self._workers, True, len(self.nodes) == 1, color=first)

    def _part(self, comm: Any, belongs: bool, is_whole: bool, color: int = 0) -> Any:
        if is_whole:
            return comm
        part = comm.Split(color if belongs else self._mpi.UNDEFINED, 0)
        if not belongs:
            return None
        part.Set_errhandler(self._mpi.ERRORS_RETURN)
        return part

    def _communicators(self) -> list[Any]:
        """Each communicator once, in the order in which they were made."""
        found: list[Any] = []
        for comm in (self._everyone, self._workers, self._node):
            if comm is not None and not any(comm is other for other in found):
                found.append(comm)
        return found

    def _error(self, error: Exception, call: str) -> Exception:
        if not self.tolerant:
            return CommError(f"{error} in {self.doing}.{call} on rank {self.rank}")
        return PeerLost(self._failed(), self.generation, f"{self.doing}.{call}")

    def _failed(self) -> list[int]:
        """The ranks that MPI knows to be dead; it may not know of all of them yet."""
        try:
            failed, group = self._everyone.Get_failed(), self._everyone.Get_group()
            ranks = self._mpi.Group.Translate_ranks(failed, list(range(failed.Get_size())), group)
        except self._mpi.Exception:
            return []
        return [rank for rank in ranks if rank >= 0]

    # Point to point.
    def _chunks(self, x: Array) -> list[Array]:
        check_contiguous(x)
        if x.size <= self.element_limit:
            return [x] if x.size else []
        flat = x.reshape(-1)
        return [flat[i : i + self.element_limit] for i in range(0, flat.size, self.element_limit)]

    @kill_points("send")
    @_translated
    def send(self, x: Array, to: int) -> None:
        for chunk in self._chunks(x):
            self._workers.Send(chunk, to)

    @kill_points("receive")
    @_translated
    def receive(self, x: Array, source: int) -> None:
        for chunk in self._chunks(x):
            self._workers.Recv(chunk, source)

    @kill_points("exchange")
    @_translated
    def exchange(self, outgoing: Array, to: int, incoming: Array, source: int) -> None:
        sends, receives = self._chunks(outgoing), self._chunks(incoming)
        both = min(len(sends), len(receives))
        for send, receive in zip(sends, receives, strict=False):
            self._workers.Sendrecv(send, to, 0, receive, source, 0)
        # In each round above every send is matched by a receive, so the remaining chunks cannot form a cyclic wait.
        for send in sends[both:]:
            self._workers.Send(send, to)
        for receive in receives[both:]:
            self._workers.Recv(receive, source)

    @kill_points("stream")
    @_translated
    def stream(
        self,
        outgoing: Sequence[Array],
        to: int,
        incoming: Sequence[Array],
        source: int,
        arrived: Callable[[int], None],
        ahead: int,
    ) -> None:
        sends: deque[Any] = deque()
        receives: deque[Any] = deque()
        self._on_their_way = (sends, receives, outgoing, incoming)
        silent = self.probe is no_probe

        def post(number: int) -> None:
            if not silent:
                self.probe(f"{self.doing}.stream.message")
            receives.append(self._workers.Irecv(incoming[number], source) if incoming[number].size else None)
            sends.append(self._workers.Isend(outgoing[number], to) if outgoing[number].size else None)

        for number in range(min(ahead, len(outgoing))):
            post(number)
        for number in range(len(incoming)):
            # One request at a time: Waitall aborts the process if a peer dies meanwhile.
            if receives[0] is not None:
                receives[0].Wait()
            receives.popleft()
            arrived(number)
            if sends[0] is not None:
                sends[0].Wait()
            sends.popleft()
            if number + ahead < len(outgoing):
                post(number + ahead)
        self._on_their_way = ()

    # Collectives of all workers.
    @kill_points("barrier")
    @_translated
    def barrier(self) -> None:
        self._workers.Barrier()

    def node_barrier(self) -> None:
        # Called twice in every step, so it does the work of ``kill_points`` and ``_translated`` without their wrappers.
        if self.probe is not no_probe:
            self.probe(f"{self.doing}.barrier")
        self.waits(True)
        try:
            self._node.Barrier()
        except self._mpi.Exception as error:
            raise self._error(error, "node_barrier") from error
        finally:
            self.waits(False)
        if self.probe is not no_probe:
            self.probe(f"{self.doing}.barrier.done")

    @kill_points("native")
    @_translated
    def native_allreduce(self, x: Array) -> None:
        for chunk in self._chunks(x):
            self._workers.Allreduce(self._mpi.IN_PLACE, chunk)

    def prepared_allreduce(self, x: Array, source: Array | None = None) -> Callable[[], None]:
        # A short sum takes two microseconds; the checks of the general method would double that.
        if len(self._chunks(x)) != 1:
            return super().prepared_allreduce(x, source)
        allreduce, of, failed = (
            self._workers.Allreduce,
            self._mpi.IN_PLACE if source is None else source,
            self._mpi.Exception,
        )

        def call() -> None:
            if self.probe is not no_probe:
                if source is not None:
                    x[...] = source
                return self.native_allreduce(x)
            self.waits(True)
            try:
                allreduce(of, x)
            except failed as error:
                raise self._error(error, "native_allreduce") from error
            finally:
                self.waits(False)

        return call

    def refuses_device_memory(self, index: int) -> str:
        return device_memory.refusal(self._mpi, index)

    @kill_points("broadcast")
    @_translated
    def broadcast(self, x: Array, root: int) -> None:
        checked.broadcast(self._mpi, self._workers, self._chunks(x), root)

    @kill_points("gather")
    @_translated
    def gather_objects(self, value: Any) -> list[Any]:
        return self._gather(value)

    def _gather(self, value: Any) -> list[Any]:
        return checked.gather(self._mpi, self._workers, value, self.element_limit)

    @kill_points("share")
    @_translated
    def share(self, slot_bytes: int, common_bytes: int) -> NodeMemory | None:
        local = self.local_ranks
        first, descriptor, memory, problem = self.rank == local[0], -1, None, ""
        try:
            if first:
                try:
                    descriptor = shared_memory.create(len(local), slot_bytes, common_bytes)
                except OSError as error:  # the gather below sends -1 to all ranks
                    problem = f"{error} on {self.me.host}"
            offered = self._gather(descriptor)[local[0]]
            try:
                if not first and offered >= 0:
                    descriptor = shared_memory.open_of(self.members[local[0]].pid, offered)
                if descriptor >= 0:
                    memory = shared_memory.MappedMemory(descriptor, len(local), slot_bytes, common_bytes)
            except (OSError, ValueError) as error:
                problem = f"{error} on {self.me.host}"
            # This gather also keeps the first rank's descriptor open until all ranks have mapped it.
            answers = self._gather((memory is not None, problem))
            if not all(is_mapped for is_mapped, _ in answers):
                memory = None
                self.why_not_shared = next((problem for _, problem in answers if problem), "")
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if memory is not None:
            self.why_not_shared = ""
            self._memory.append(memory)
        return memory

    def give_back(self, memory: NodeMemory) -> None:
        memory.close()
        self._memory = [other for other in self._memory if other is not memory]

    # All members.
    @kill_points("spare")
    @_translated
    def wait_as_spare(self) -> int:
        word = np.zeros(1, np.uint8)
        request = self._everyone.Irecv(word, self._mpi.ANY_SOURCE, RELEASE_TAG)
        self._on_their_way = ([request], [word])
        while not request.Test():
            time.sleep(SPARE_POLL_S)
        self._on_their_way = ()
        return int(word[0])

    @_translated
    def release_spares(self, status: int = 0) -> None:
        for rank in range(self.size, len(self.members)):
            self._everyone.Send(np.array([status], np.uint8), rank, RELEASE_TAG)

    def _vote(self, flags: int) -> int:
        return agree_over(self._mpi, self._everyone, flags, self.tolerant)

    @kill_points("revoke")
    def revoke(self) -> None:
        if not self._revocable:
            return
        for comm in self._communicators():
            quietly(self._mpi, comm.Revoke)

    @property
    def _revocable(self) -> bool:
        return reports_deaths(self._mpi) and preflight.library_is_tolerant()

    def _next(self, workers: int) -> Group:
        # Open MPI 5.0.11 crashes in a member that is notified of another one's death while it makes a communicator
        # (ompi_comm_revoke_local uses collectives that are not there yet): a death in Shrink may end all of them.
        with ending.crash_as_last(self._is_last, NONE_IS_LEFT, EX_TEMPFAIL):
            smaller = self._everyone.Shrink()
            return sealed(self._mpi, smaller, self._me, workers, self.generation + 1, self.tolerant, self.probe)

    def _is_last(self) -> bool:
        """Whether all other members end within a moment, those of a lower rank first. False if that cannot be seen."""
        deadline = time.monotonic() + CRASH_S
        others = [member for member in self.members if member.identity != self.me.identity]
        if any(member.node != self.me.node for member in others):
            return False
        while left := [member for member in others if start_time(member.pid) == member.started]:
            if left[0].identity < self.me.identity or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        for memory in self._memory:
            memory.close()
        self._memory.clear()
        for comm in reversed(self._communicators()):
            quietly(self._mpi, comm.Free)
        self._everyone = self._workers = self._node = None
        # An error interrupted ``stream``. Testing its requests can abort the process after a death, so it is unknown
        # whether they are done. MPI may still write to their arrays: keep them allocated until this process ends.
        if self._on_their_way:
            _abandoned.append(self._on_their_way)
            self._on_their_way = ()


def agree_over(mpi: Any, comm: Any, flags: int, tolerant: bool) -> int:
    """Bitwise AND over all of ``comm``; 0 on every survivor if a rank is found dead."""
    if not tolerant:
        word = np.array([flags], np.int64)
        comm.Allreduce(mpi.IN_PLACE, word, mpi.BAND)
        return int(word[0])
    try:
        return int(comm.Agree(flags))
    except mpi.Exception:
        return 0


def sealed(mpi: Any, comm: Any, me: Member, wanted: int, generation: int, tolerant: bool, probe: Probe) -> MpiGroup:
    """A group on ``comm``, returned once all members have agreed that it is complete; shrinks it while members die."""
    while True:
        comm.Set_errhandler(mpi.ERRORS_RETURN)
        # All members must have left the call that made ``comm`` before any of them may revoke it.
        agree_over(mpi, comm, 1, tolerant)
        group = None
        try:
            group = MpiGroup(mpi, comm, me, min(wanted, comm.Get_size()), generation, tolerant, probe)
        except mpi.Exception as error:
            if not tolerant:
                raise CommError(f"{error} while the group was made") from error
            quietly(mpi, comm.Revoke)  # before the agreement, since peers may still wait for this rank in the gather
        # Its parts are never revoked here: a peer may still be in the call that makes them.
        if agree_over(mpi, comm, int(group is not None), tolerant):
            assert group is not None
            return group
        if not tolerant:
            raise CommError("a member could not make its group")
        quietly(mpi, comm.Revoke)
        smaller = comm.Shrink()
        if group is not None:
            group.close()
        else:
            quietly(mpi, comm.Free)
        comm = smaller


def quietly(mpi: Any, call: Callable[[], Any]) -> None:
    """Run ``call`` and ignore MPI errors, which are expected on a communicator that has lost a rank."""
    with contextlib.suppress(mpi.Exception):
        call()
