"""``python -m ddl.doctor``: examines this machine, explains the findings, and runs a self-test under mpirun.

Works without mpi4py, and if MPI crashes: separate processes examine the library and mpirun (launcher/probe.py).
launcher/mca_files.py writes MPI's parameter files (``--enable-fault-tolerance``)."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

from ddl.environment import launched_rank, launched_size, refuse
from ddl.errors import DdlError, UserError
from ddl.launcher.checkup import ENABLE, RESTART, Finding, launcher, library, version_of
from ddl.launcher.mca_files import enable_fault_tolerance
from ddl.output import protect_output
from ddl.wording import counted, instead

OPTIONS = ("--help", "--enable-fault-tolerance")
USAGE = """usage: python -m ddl.doctor [--enable-fault-tolerance]

Says what was found: MPI, whether the death of a rank is survived, GPU, memory, threads. By itself it starts small
jobs with the mpirun on the PATH, and kills a process of one. Under mpirun it tries a ring and a sum over all ranks.

  --enable-fault-tolerance  write the lines that let `mpirun -n 4 python -m ddl.train` survive the death of a rank
                            into this environment's MPI parameter files
"""


EXTRAS = {  # packages that some jobs need
    "numba": "extra fast: compiled kernels",
    "cupy-cuda12x": "extra gpu: ranks compute on GPUs",
    "pillow": "extra images: PNG, JPEG and WebP files",
    "pyarrow": "extra arrow: Parquet and Arrow files",
    "onnx": "extra onnx: ddl export RUN FILE.onnx",
    "onnxruntime": "runs what ddl export writes",
    "matplotlib": "extra plot: pictures of a run",
    "tensorboardX": "extra tensorboard: files for TensorBoard",
    "torch": "extra torch: modules of PyTorch",
    "jax": "extra jax: modules of JAX",
}


def software() -> list[Finding]:
    found = [Finding("Software", True, f"python {platform.python_version()} ({sys.executable})")]
    for package in ("numpy", "mpi4py", "safetensors", *EXTRAS):
        version = version_of(package)
        if package in EXTRAS and version is None:
            found.append(Finding("Software", False, f"{package} ({EXTRAS[package]})"))
        else:
            found.append(Finding("Software", version is not None, f"{package} {version or 'is missing'}", not version))
    return found


def mpi(launched: bool) -> list[Finding]:
    """Findings about the MPI library and the launcher: that of this process, or the mpirun on the PATH."""
    lines, can_report = library()
    if any(line.wrong for line in lines):
        return lines
    if launched:
        return lines + this_launch(can_report)
    from ddl.comm import unconnected

    alone = unconnected()
    return lines + launcher(can_report) + ([Finding("Launcher", False, alone)] if alone else [])


def this_launch(can_report: bool, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Findings about this process's launcher. can_report: whether the library reports deaths."""
    from ddl.comm import fault_tolerance

    tolerant, reason = fault_tolerance(environment)
    lines = [Finding("Launcher", True, f"{counted(launched_size(environment) or 1, 'rank')} started")]
    if tolerant and can_report:
        return [*lines, Finding("Launcher", True, f"the death of a rank is survived: {reason}")]
    why = reason if can_report else "the library cannot report it"
    advice = ENABLE if can_report and "OMPI_COMM_WORLD_SIZE" in environment else RESTART
    return [*lines, Finding("Launcher", False, f"the death of a rank ends the job: {why}; {advice}", ends=True)]


def gpu() -> list[Finding]:
    if version_of("cupy-cuda12x") is None and version_of("cupy-cuda13x") is None and version_of("cupy") is None:
        return [Finding("GPU", False, "cupy is missing, so ranks compute on the CPU: pip install 'ddl-mpi[gpu]'")]
    from ddl.arrays.namespace import gpu_count

    count = gpu_count()
    return [Finding("GPU", count > 0, f"{counted(count, 'CUDA device')}; ranks of a node take them in turn")]


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
    ends = [finding for finding in findings if finding.ends]
    if wrong:
        verdict = f"{counted(len(wrong), 'problem')} would prevent a job:"
    else:
        verdict = "Jobs can run, but:" if ends else "No problems found."
    lines += ["", verdict, *(f"    {finding.text}" for finding in wrong or ends)]
    return "\n".join(lines).lstrip("\n")


def examine() -> list[Finding]:
    """All findings; under a launcher every rank takes part in the self-test."""
    leads, launched = launched_rank() == 0, (launched_size() or 1) > 1
    findings: list[Finding] = []
    if version_of("numpy") is None:  # which nearly everything else needs
        return software() + library()[0] + memory() if leads else []
    if leads:  # the others would only repeat it
        findings = software() + mpi(launched) + gpu() + memory() + threads()
    if launched and version_of("mpi4py") is not None:
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
            raise UserError(f"there is no option {argv[0]}; {instead(argv[0], OPTIONS, 'there are')}")
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
