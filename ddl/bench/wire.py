"""What the network between two hosts carries: the same bytes both ways at once through one TCP socket.

The yardstick for sums over several hosts; who takes part is the first rank of each of the first two nodes."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
from collections.abc import Callable

from ddl.comm import Group

_GET_ADDRESS = 0x8915  # SIOCGIFADDR
CHUNK_BYTES = 256 << 10


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
        listening.settimeout(30)
        made, _ = listening.accept()
        listening.close()
    elif group.rank == ends[1]:
        for name in names:
            try:
                made = socket.create_connection((name, port), timeout=3)
                break
            except OSError:
                continue  # an address of a network that does not reach here
    if made is not None:
        made.setblocking(False)
    return made


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
