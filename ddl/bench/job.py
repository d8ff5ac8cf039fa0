"""Starts mpirun for a bench and reads its rows, line by line as they come.

The ranks run worker.py; mpirun's command line is built as in ddl.launch. When a bench measures MPI in a program that
is not ours, a second mpirun starts that program (bench/stock_mpi.py), which waits for its turns beside the first."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddl.errors import DdlError
from ddl.launcher.mpirun import command_line, find_mpirun, is_open_mpi

# One thread a rank unless the user says otherwise: peers get the same.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

END_S = 10.0


def environment(ranks: int, threads: int, tolerance: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For mpirun and its ranks. Where deaths need not be survived MPI runs as it does by default."""
    found = {**environ, **dict.fromkeys(THREADS, str(threads))}
    if tolerance == "off":
        found.setdefault("OMPI_MCA_coll", "^none")  # leaves out nothing: the library's own choice, han included
        if ranks <= len(os.sched_getaffinity(0)):
            found.setdefault("OMPI_MCA_mpi_yield_when_idle", "0")
    return found


def rows(
    options: Mapping[str, Any], ranks: int, tolerance: str, threads: int, environ: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of one bench on ``ranks`` ranks. Raises DdlError when the ranks did not get to the end.

    environ: for mpirun and its ranks (default: what ``tolerance`` asks for)."""
    environ = environ or environment(ranks, threads, tolerance)
    with tempfile.TemporaryDirectory(prefix="ddl-bench-") as folder, Plain(options, ranks, environ) as plain:
        words = json.dumps({**options, "tolerance": tolerance, "store": f"{folder}/store"})
        command = command_of("ddl.bench.worker", [words], options, ranks, tolerance, environ)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            ended = False
            try:
                for line in process.stdout:
                    if not line.startswith("{"):
                        sys.stderr.write(line)
                        continue
                    row = json.loads(line)
                    if "end" in row:
                        ended = True
                    elif "ask" in row:
                        process.stdin.write(plain.answer(row["ask"]))
                        process.stdin.flush()
                    else:
                        yield row
            except (GeneratorExit, DdlError):
                process.terminate()
                raise
        if not ended:  # mpirun's own status proves nothing
            raise DdlError(f"the bench on {ranks} ranks did not get to its end")


def command_of(
    module: str,
    words: Sequence[str],
    options: Mapping[str, Any],
    ranks: int,
    tolerance: str,
    environ: Mapping[str, str],
) -> list[str]:
    """mpirun's command line that runs one of ddl's modules."""
    program, mpirun = [sys.executable, "-m", module, *words], find_mpirun()
    own = shlex.split(options["mpirun"]) or [mpirun]
    named = next((word for word in own if Path(word).name in ("mpirun", "mpiexec", "prterun")), mpirun)
    if tolerance == "off" and is_open_mpi(shutil.which(named) or mpirun):
        # Parameter files of this environment may make every mpirun tolerant.
        own += ["--prtemca", "state_base_recoverable", "0", "--prtemca", "state_base_notify_errors", "0"]
    return own + command_line(mpirun, program, ranks, tolerant=tolerance != "off", environ=environ)[1:]


class Plain:
    """The second mpirun, started when it is first asked."""

    def __init__(self, options: Mapping[str, Any], ranks: int, environ: Mapping[str, str]):
        self._command = lambda: command_of("ddl.bench.stock_mpi", [], options, ranks, "off", environ)
        self._environ = environ
        self._process: subprocess.Popen[str] | None = None

    def answer(self, question: Any) -> str:
        """A line for a line. Raises DdlError when there is none."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environ, text=True
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            if line.startswith("{"):
                return line
            sys.stderr.write(line)
        raise DdlError("the program that MPI alone is measured in has ended early")

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        with self._process as process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.terminate()
