"""Processes that read samples of a dataset beside the rank, which trains meanwhile.

They are started as new interpreters (spawn), because a process that has started MPI must not fork, and end when their
rank does: each waits at a pipe whose other end only the rank holds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ddl.arrays import partition
from ddl.errors import DataError
from ddl.torch.streams import seed_all
from ddl.wording import listed

_OF_MPI = ("OMPI_", "PMIX_", "PMI_", "PRTE_")
CLOSE_S = 1.0


def unreadable(number: int, error: Exception) -> str:
    """What to report of a sample that the dataset raised ``error`` for."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"sample {number} of the dataset could not be read: {what} at {Path(frame.filename).name}:{frame.lineno}"


class Readers:
    """So many processes with a copy of ``dataset`` each, which must be picklable."""

    def __init__(self, dataset: Any, count: int):
        self._lock = threading.Lock()
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [context.Process(target=serve, args=(theirs, dataset), daemon=True) for _, theirs in pipes]
        with _without_mpi():
            for process in self._processes:
                process.start()
        for _, theirs in pipes:
            theirs.close()
        self.close = weakref.finalize(self, _end, self._connections, self._processes)

    def read(self, numbers: list[int], seed: int, epoch: int) -> list[Any]:
        """The samples with these numbers. Raises DataError if the dataset raised, or a reader ended."""
        parts = [numbers[part] for part in partition(len(numbers), len(self._connections))]
        with self._lock:
            try:
                for connection, part in zip(self._connections, parts, strict=True):
                    connection.send((part, seed, epoch))
                answers = [pickle.loads(connection.recv_bytes()) for connection in self._connections]
            except (EOFError, OSError) as error:
                statuses = listed((process.exitcode for process in self._processes), "and")
                raise DataError(
                    f"a process that reads the dataset ended (exit status {statuses}). A script that uses such "
                    'processes does its work below `if __name__ == "__main__":`'
                ) from error
        for _, problem, trace in answers:
            if problem:
                raise DataError(problem) from RuntimeError(trace)  # of the other process
        return [sample for samples, _, _ in answers for sample in samples]


def serve(connection: Connection, dataset: Any) -> None:
    """Answer requests until the rank closes its end, or is gone."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):  # they are for the rank
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            numbers, seed, epoch = connection.recv()
            connection.send_bytes(pickle.dumps(_answer(dataset, numbers, seed, epoch)))


def _answer(dataset: Any, numbers: list[int], seed: int, epoch: int) -> tuple[list[Any], str, str]:
    """(samples, "", ""), or ([], what was raised, its traceback)."""
    samples = []
    for number in numbers:
        seed_all(seed, epoch, number)
        try:
            samples.append(dataset[number])
        except Exception as error:
            return [], unreadable(number, error), traceback.format_exc()
    return samples, "", ""


@contextlib.contextmanager
def _without_mpi() -> Iterator[None]:
    """A process started inside does not take itself for a rank, even if it imports MPI."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_OF_MPI)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _end(connections: list[Connection], processes: list[Any]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.join(CLOSE_S)
        if process.is_alive():
            process.terminate()
