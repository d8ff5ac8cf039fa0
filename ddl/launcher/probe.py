"""What an MPI library and an mpirun can do, found by trying it in separate processes.

So a library that crashes, or that belongs to another mpirun, does not end the caller. checkup.py interprets the
findings."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRY_S = 30.0
RANKS = 4  # what examples start
_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_", "MPI_", "HYDRA_", "HYDI_", "I_MPI_HYDRA")
_USERS = ("OMPI_ALLOW_", "PRTE_MCA_", "OMPI_MCA_mca_base_component_path")

# The calls that recovery makes, on a communicator of this process alone: a library may have their names, and not them.
_LOOK_AT_MPI = """
import ctypes, json, os, sys
os.environ["OMPI_MCA_mpi_ft_enable"] = "1"
import mpi4py
mpi4py.rc.thread_level = "serialized"
mpi4py.rc.finalize = False
from mpi4py import MPI
lines = MPI.Get_library_version().split("\\0")[0].splitlines() or ["unknown"]
found = {"library": " ".join(lines[0].split(", package")[0].split()), "standard": MPI.Get_version(),
         "threads": MPI.Query_thread(), "serialized": MPI.THREAD_SERIALIZED}
MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN)
try:
    comm = MPI.COMM_SELF.Dup()
    comm.Revoke()
    found["ulfm"] = bool(comm.Is_revoked()) and comm.Shrink().Get_size() == 1
except (NotImplementedError, MPI.Exception):
    found["ulfm"] = False
try:
    found["cuda"] = bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
except AttributeError:
    found["cuda"] = False
with open("/proc/self/maps") as maps:
    files = {line.split()[-1] for line in maps}
found["paths"] = sorted(path for path in files if path.rpartition("/")[2].startswith(("libmpi.so", "libmpich.so")))
print("FOUND" + json.dumps(found), flush=True)
os._exit(0)
"""
_MEET = """
import json, os
from ddl.comm import fault_tolerance
tolerant, reason = fault_tolerance()
from mpi4py import MPI
print("FOUND" + json.dumps([MPI.COMM_WORLD.Get_size(), tolerant, reason]), flush=True)
"""
# The first process that gets to make the folder is killed. Launchers take up to a second to end the others.
_KILL_ONE = 'mkdir "$0" 2>/dev/null && kill -9 $$; sleep 2; echo FOUND'


@dataclass(frozen=True)
class Tried:
    """How a command ended. found: what it printed after FOUND, once for each process. last: its last line."""

    status: int
    found: list[str]
    last: str


def clean_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without the variables of this process's launcher: for starting a separate job."""
    return {k: v for k, v in environ.items() if not k.startswith(_LAUNCHERS) or k.startswith(_USERS)}


def attempt(words: Sequence[str], timeout_s: float = TRY_S) -> Tried:
    """Run a command and end it with all its processes after ``timeout_s``."""
    try:
        process = subprocess.Popen(
            words,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Tried(-1, [], str(error))
    with process:
        try:
            text, _ = process.communicate(timeout=timeout_s)
            late = ""
        except subprocess.TimeoutExpired:
            late = f"it did not end within {timeout_s:.0f} s"
            for number in (signal.SIGTERM, signal.SIGKILL):  # on the first, mpirun ends its ranks
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(3)
            text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip(" -=\t")]
    found = [part for line in lines for part in line.split("FOUND")[1:]]
    return Tried(process.returncode, found, late or (lines[-1] if lines else f"status {process.returncode}"))


def look_at_mpi(timeout_s: float = TRY_S) -> tuple[dict[str, Any], str]:
    """(what the library is and can do, ""), or ({}, why it cannot be loaded)."""
    tried = attempt([sys.executable, "-c", _LOOK_AT_MPI], timeout_s)
    if not tried.found:
        return {}, tried.last
    found: dict[str, Any] = json.loads(tried.found[-1])
    return found, ""


@dataclass(frozen=True)
class Launcher:
    """What an mpirun does. words: the command that starts ``ranks`` processes here; () if none does, and why.

    met: the ranks saw each other. tolerant, reason: what ddl would say about a death in a job started like this.
    survives: one of two killed processes leaves the other running. with_ft: the same with ``--with-ft ulfm``."""

    path: str
    words: tuple[str, ...] = ()
    ranks: int = 0
    why: str = ""
    met: bool = False
    tolerant: bool = False
    reason: str = ""
    survives: bool = False
    with_ft: bool = False


def try_launcher(path: str, cores: int | None = None) -> Launcher:
    """Start small jobs with the mpirun at ``path``: takes some seconds."""
    ranks, words, why = _start(path, cores or len(os.sched_getaffinity(0)))
    if not words:
        return Launcher(path, why=why)
    pair = (*words[:-1], str(min(ranks, 2)))
    met = attempt([*pair, sys.executable, "-c", _MEET])
    answers = [json.loads(answer) for answer in met.found]
    is_met = len(answers) == int(pair[-1]) and all(size == len(answers) for size, _, _ in answers)
    tolerant, reason = (answers[0][1], answers[0][2]) if answers else (False, met.last)
    with_ft = (path, "--with-ft", "ulfm", *pair[1:])
    survives = ranks > 1 and _survives(pair)
    return Launcher(
        path, words, ranks, "", is_met, tolerant, reason, survives, ranks > 1 and (survives or _survives(with_ft))
    )


def _start(path: str, cores: int) -> tuple[int, tuple[str, ...], str]:
    """(ranks, the words that start them, ""): the first way that works, with four ranks or one for each core."""
    root = [(), ("--allow-run-as-root",)] if os.geteuid() == 0 else [()]
    tried = Tried(-1, [], "")
    for ranks, options in ((RANKS, ()), (RANKS, ("--oversubscribe",)), (min(cores, RANKS), ())):
        for allowed in root:
            words = (path, *allowed, *options, "-n", str(ranks))
            tried = attempt([*words, "true"])
            if tried.status == 0:
                return ranks, words, ""
    return 0, (), tried.last


def _survives(words: Sequence[str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return bool(attempt([*words, "sh", "-c", _KILL_ONE, str(Path(folder, "first"))]).found)
