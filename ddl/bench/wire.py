"""Plain TCP between ranks: measures the network between two hosts, and lets ranks wait without using a core.

The reference for sums over several hosts is one socket between the first ranks of the first two nodes, which carries
the same bytes in both directions at once."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
from collections.abc import Callable, Sequence

from ddl.comm import Group
from ddl.errors import CommError

_GET_ADDRESS = 0x8915  # SIOCGIFADDR
_NUMBER = struct.Struct("d")
CHUNK_BYTES = 256 << 10
ACCEPT_S = 30.0


def addresses() -> list[str]:
    """The IPv4 addresses of this host, without the loopback's."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, _GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has none
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                found.append(address)
    return found


def connect(group: Group) -> socket.socket | None:
    """A socket between the first ranks of two nodes; None on all others. Called by all workers."""
    ends = [ranks[0] for ranks in group.nodes[:2]]
    listening = socket.create_server(("", 0)) if group.rank == ends[0] else None
    here = (addresses(), listening.getsockname()[1]) if listening is not None else None
    names, port = group.gather_objects(here)[ends[0]]
    made = None
    if listening is not None:
        listening.settimeout(ACCEPT_S)
        made, _ = listening.accept()
        listening.close()
    elif group.rank == ends[1]:
        made = _dial(names, port)
    if made is not None:
        made.setblocking(False)
    return made


def _dial(names: Sequence[str], port: int) -> socket.socket | None:
    for name in names:
        try:
            return socket.create_connection((name, port), timeout=3)
        except OSError:
            continue  # an address of a network that does not reach here
    return None


class Bell:
    """All other ranks sleep until the leader sends a number; in MPI they would spin. Made by all workers."""

    def __init__(self, group: Group):
        listening = socket.create_server(("", 0), backlog=group.size) if group.is_leader else None
        here = (addresses() or ["127.0.0.1"], listening.getsockname()[1]) if listening is not None else None
        names, port = next(filter(None, group.gather_objects(here)))
        self._ends: list[socket.socket] = []
        if listening is not None:
            with listening:
                listening.settimeout(ACCEPT_S)
                self._ends = [listening.accept()[0] for _ in range(group.size - 1)]
        elif (end := _dial(names, port)) is not None:
            end.settimeout(None)
            self._ends = [end]
        else:
            raise CommError(f"rank {group.rank} does not reach the leader at any of {', '.join(names)}")
        self._is_leader = group.is_leader

    def ring(self, value: float) -> float:
        """Wait for the leader and return its value; the argument is ignored on the other ranks."""
        if self._is_leader:
            for end in self._ends:
                end.sendall(_NUMBER.pack(value))
            return value
        text = b""
        while len(text) < _NUMBER.size:
            more = self._ends[0].recv(_NUMBER.size - len(text))
            if not more:
                raise CommError("the leader is gone")
            text += more
        return float(_NUMBER.unpack(text)[0])

    def close(self) -> None:
        for end in self._ends:
            end.close()


def both_ways(wire: socket.socket | None, nbytes: int) -> Callable[[], None]:
    """A call that sends and receives ``nbytes`` at once; nothing to do for a rank without a socket."""
    if wire is None:
        return lambda: None
    outgoing, incoming = memoryview(bytearray(nbytes)), memoryview(bytearray(nbytes))

    def call() -> None:
        sent = received = 0
        while sent < nbytes or received < nbytes:
            readable, writable, _ = select.select(
                [wire] if received < nbytes else [], [wire] if sent < nbytes else [], []
            )
            if readable:
                received += wire.recv_into(incoming[received:])
            if writable:
                sent += wire.send(outgoing[sent : sent + CHUNK_BYTES])

    return call
