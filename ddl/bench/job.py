"""Starts mpirun for a bench and reads its rows, line by line as they come.

What a rank does is worker.py's; mpirun's command line is that of ddl.launch."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from ddl.errors import DdlError
from ddl.mpirun import command_line, find_mpirun, is_open_mpi

# One thread a rank unless the user says otherwise: peers get the same.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


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
    with tempfile.TemporaryDirectory(prefix="ddl-bench-") as folder:
        words = json.dumps({**options, "tolerance": tolerance, "store": f"{folder}/store"})
        program = [sys.executable, "-m", "ddl.bench.worker", words]
        command = command_line(find_mpirun(), program, ranks, tolerant=tolerance != "off", environ=environ)
        command[:1] = shlex.split(options["mpirun"]) or command[:1]
        if tolerance == "off" and is_open_mpi(command[0]):
            # Parameter files of this environment may make every mpirun tolerant.
            command[1:1] = ["--prtemca", "state_base_recoverable", "0", "--prtemca", "state_base_notify_errors", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True) as process:
            assert process.stdout is not None
            ended = False
            try:
                for line in process.stdout:
                    if line.startswith("{"):
                        row = json.loads(line)
                        if "end" in row:
                            ended = True
                        else:
                            yield row
                    else:
                        sys.stderr.write(line)
            except GeneratorExit:
                process.terminate()
                raise
        if not ended:  # mpirun's own status proves nothing
            raise DdlError(f"the bench on {ranks} ranks did not get to its end")
