"""Registers the backend "ddl" with PyTorch when ``ddl.torch`` is imported.

The backend itself is in process_group.py, which is imported when a script asks for it."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ddl.environment import launched_size

DEFAULT_TIMEOUT = timedelta(minutes=30)


def register() -> None:
    """Make ``init_process_group("ddl")`` known. Under mpirun no MASTER_ADDR, MASTER_PORT, RANK or WORLD_SIZE is needed,
    for this backend or another; without a launcher and these variables the process is the only rank."""
    if not dist.is_available() or "ddl" in dist.Backend.backend_list:
        return
    dist.Backend.register_backend("ddl", create, devices=["cpu"])
    # PyTorch has no public way to replace the handler of "env://", which is the default.
    with contextlib.suppress(AttributeError, KeyError):
        # torch.distributed.rendezvous is the module, and a function of the same name that hides it.
        handlers = importlib.import_module("torch.distributed.rendezvous")._rendezvous_handlers
        by_environment = handlers["env"]

        def meet(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
            if "MASTER_ADDR" in os.environ or (launched_size() is None and _has_rank(url)):
                return by_environment(url, **options)
            return meet_over_mpi(**options)

        handlers["env"] = meet


def _has_rank(url: str) -> bool:
    """Whether the caller or the environment gives a rank or a number of ranks, in PyTorch's own way."""
    return "?" in url or not os.environ.keys().isdisjoint(("RANK", "WORLD_SIZE", "MASTER_PORT"))


def meet_over_mpi(timeout: timedelta = DEFAULT_TIMEOUT, **options: Any) -> Iterator[tuple[Any, int, int]]:
    """(store, rank, size) of the ranks that mpirun or srun has started, or of the survivors if one dies meanwhile;
    without a launcher this process is the only rank."""
    from ddl.fault import session
    from ddl.fault.recover import survive
    from ddl.torch.process_group import join

    store: Any = None

    def connect(group: Any) -> None:
        nonlocal store
        host = "127.0.0.1" if len(group.nodes) == 1 else group.members[0].host
        made = dist.TCPStore(host, 0, is_master=True, timeout=timeout) if group.rank == 0 else None
        port = group.gather_objects(None if made is None else made.port)[0]
        # Without the number of ranks: a client would wait for all of them to connect, also for one that has died.
        store = made or dist.TCPStore(host, port, is_master=False, timeout=timeout)
        group.barrier()

    group, _ = survive(join(timeout), connect)
    session.hold(group)
    yield store, group.rank, group.size


def create(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    from ddl.torch import process_group

    return process_group.create(rank, size, timeout)
