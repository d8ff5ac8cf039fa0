"""Identify this process: its host, node and pid."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ddl.comm.group import Member


def node_identity() -> str:
    """Equal for two processes exactly when one can see the other in /proc: same boot of the same kernel, same
    namespace of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return f"{socket.gethostname()}:{os.getpid()}"  # no /proc: nothing can be shared
    return f"{boot}:{namespace}"


def start_time(pid: int) -> int:
    """When process ``pid`` of this host started, in clock ticks since boot; 0 if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may hold anything
    return 0 if fields[0] in "ZX" else int(fields[19])


def this_process(identity: int, node: str | None = None) -> Member:
    """This process as a member. ``node`` overrides where it lives, to try several nodes on one machine."""
    pid = os.getpid()
    host = socket.gethostname()
    return Member(identity, host, pid, node or f"{host}:{node_identity()}", start_time(pid))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
