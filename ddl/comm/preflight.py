"""Before MPI starts: whether this launch survives a death, and the MPI settings that it needs.

Imports no MPI, so that commands and the doctor answer at once. ddl/environment.py gives the number of ranks; mpi.py
makes the group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ddl.comm.topology import cores
from ddl.environment import launched_size, ranks_on_node
from ddl.errors import UserError

UNSAFE_COLL = "^han,adapt"
"""After a death these two components return wrong sums without an error, so they are never used."""

EAGER_BYTES = 256 << 10
"""Up to this size messages are sent over TCP without a handshake. MPI's default is 64 KiB, and its handshake waits
behind all data in the sockets: a fifth of the time of a ring at 1 Gbit/s with both directions busy."""


def has_process_manager(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started by a process manager that an MPI library can connect to."""
    return any(name in environment for name in ("PMIX_RANK", "PMI_RANK", "PMI_FD", "PMI_PORT"))


def check_world_size(world: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError if the launcher started another number of processes than MPI sees."""
    launched = launched_size(environment)
    if launched is not None and launched != world:
        raise UserError(
            f"{launched} processes were started but each sees a world of {world}: the launcher (mpirun, srun) belongs "
            "to another MPI than the library that mpi4py loads. Use the mpirun of this environment, or with Slurm "
            "`srun --mpi=pmix`; `python -m ddl.doctor` shows both"
        )


def unconnected(environment: Mapping[str, str] = os.environ) -> str:
    """Why a process that nothing connects to others was probably meant to be one of several; "" if nothing says so."""
    if has_process_manager(environment):
        return ""
    for name in ("SLURM_NTASKS", "WORLD_SIZE"):
        if environment.get(name, "").isdecimal() and int(environment[name]) > 1:
            return (
                f"{name} is {environment[name]}, but this process trains alone: start the job with mpirun -n "
                f"{environment[name]} or, under Slurm, srun --mpi=pmix"
            )
    if count := _copies():
        return f"{count} more of this command run beside it, each a separate job: mpirun -n {count + 1} makes them one"
    return ""


def _copies() -> int:
    """How many other processes of this process's parent run the same command of ddl."""
    own = _process(os.getpid())
    if own is None or not any(word == "ddl.train" or word.endswith("/ddl") for word in own[1]):
        return 0
    others = (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid())
    return sum(_process(pid) == own for pid in others)


def _process(pid: int) -> tuple[int, list[str]] | None:
    """(parent, words) of a process; None where that cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), words
    except (OSError, ValueError, IndexError):
        return None


def fault_tolerance(environment: Mapping[str, str] = os.environ) -> tuple[bool, str]:
    """Whether this launch survives the death of a process, and the reason.

    The launcher must keep the other processes alive, and the library must report the death: with only one of the two
    the survivors would hang. Uses only what is known before MPI is imported."""
    reason = _recoverable(environment) if "OMPI_COMM_WORLD_SIZE" in environment else ""
    if library_is_tolerant(environment):
        if reason or _launcher().may_be_tolerant:
            return True, "launched with --with-ft ulfm"
        return False, "OMPI_MCA_mpi_ft_enable is set, but mpirun was started without --with-ft ulfm"
    if reason:
        return True, reason
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        if launched_size(environment) is None:
            return False, "a single process, started without mpirun"
        return False, "not launched by Open MPI's mpirun: this launcher ends the job when a process dies"
    if _launcher().can_be_tolerant:
        return False, "mpirun was started without --with-ft ulfm: it ends the job when a process dies"
    return False, "this mpirun ends the job when a process dies"


def _recoverable(environment: Mapping[str, str]) -> str:
    """Why the launcher is recoverable; "" if it is not.

    Its arguments take precedence over its environment, and that over parameter files; the first value found decides."""
    launcher = _launcher()
    found = [_setting(name, launcher, environment) for name in ("state_base_recoverable", "state_base_notify_errors")]
    return f"launcher made recoverable by {found[0][1]}" if all(_is_true(value) for value, _ in found) else ""


def _setting(name: str, launcher: _Launcher, environment: Mapping[str, str]) -> tuple[str, str]:
    """(value, where it was set) of a parameter of the launcher; ("", "") if it was not set."""
    for word, value in pairwise(launcher.words):
        if word == name:
            return value, "its arguments"
    # The launcher does not pass its own variables to the ranks, so read them from its environment too.
    for variables in (environment, launcher.environment):
        if f"PRTE_MCA_{name}" in variables:
            return variables[f"PRTE_MCA_{name}"], "PRTE_MCA_state_base_* in its environment"
    for path in launcher.files(environment.get("HOME")):
        value = _parameters(path).get(name, "")
        if value:
            return value, str(path)
    return "", ""


def library_is_tolerant(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether MPI will report deaths: set by mpirun --with-ft ulfm, or by ``settings``."""
    return _is_true(environment.get("OMPI_MCA_mpi_ft_enable", ""))


def _is_true(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes")


@dataclass(frozen=True)
class _Launcher:
    """The mpirun (or its daemon on this node) that started this process, as read from /proc."""

    executable: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def can_be_tolerant(self) -> bool:
        """Whether it is known to be PRRTE's, which ``--with-ft`` makes tolerant."""
        return self.executable is not None and self.executable.name in ("prterun", "prte", "prted")

    @property
    def may_be_tolerant(self) -> bool:
        """False for an mpirun without ``--with-ft``. Its daemons on other nodes do not show that."""
        is_mpirun = self.executable is not None and self.executable.name in ("prterun", "mpirun", "mpiexec")
        return not is_mpirun or any(word.lstrip("-") == "with-ft" for word in self.words)

    def files(self, home: str | None) -> list[Path]:
        """The parameter files that it reads."""
        found = [] if self.executable is None else [self.executable.parent.parent / "etc" / "prte-mca-params.conf"]
        return found + ([Path(home) / ".prte" / "mca-params.conf"] if home else [])


def _launcher() -> _Launcher:
    """The nearest ancestor that is a launcher; there may be a wrapper in between."""
    pid = os.getppid()
    for _ in range(4):
        try:
            executable = Path(os.readlink(f"/proc/{pid}/exe"))
            if executable.name in ("prterun", "prte", "prted", "mpirun", "mpiexec"):
                text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                pairs = (item.partition("=") for item in text.split("\0"))
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                return _Launcher(executable, {name: value for name, equals, value in pairs if equals}, tuple(words))
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            break  # no /proc, or a process of another user
    return _Launcher()


def _parameters(path: Path) -> dict[str, str]:
    """The ``name = value`` lines of an MCA parameter file; empty if it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split("#")[0].partition("=") for line in lines)
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def settings(tolerant: bool, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables to set before MPI is imported. Raises UserError if the user's own setting is unsafe."""
    chosen = {"MPI4PY_RC_THREAD_LEVEL": "serialized"}
    if "OMPI_MCA_opal_signal" not in environment:
        # Open MPI's handler of fatal signals allocates memory: in a crash inside malloc it deadlocks, and the death is
        # noticed after minutes instead of milliseconds. Without the handler the kernel ends the process.
        chosen["OMPI_MCA_opal_signal"] = ""
    coll = environment.get("OMPI_MCA_coll")
    if coll is None:
        chosen["OMPI_MCA_coll"] = UNSAFE_COLL
    elif tolerant and _uses_han(coll):
        raise UserError(
            f"OMPI_MCA_coll={coll} leaves the collective component han in use, which returns wrong sums after a "
            f"process died; use OMPI_MCA_coll={UNSAFE_COLL}, or --fault.tolerance off"
        )
    if tolerant:
        chosen["OMPI_MCA_mpi_ft_enable"] = "1"
        if "OMPI_MCA_pml" not in environment:
            chosen["OMPI_MCA_pml"] = "ob1"  # the one that reports deaths
        chosen["MPI4PY_RC_FINALIZE"] = "0"  # MPI_Finalize can hang after a death
    if "OMPI_MCA_btl_tcp_eager_limit" not in environment:
        chosen["OMPI_MCA_btl_tcp_eager_limit"] = str(EAGER_BYTES + 1024)  # and room for headers
    # Ranks that spin in MPI take cores from ranks that still compute and, if every core has a rank, from the threads
    # that read ahead and write checkpoints. Yielding costs a barrier 0.3 us, and halves a step on a busy machine.
    if ranks_on_node(environment) >= max(2, cores()) and "OMPI_MCA_mpi_yield_when_idle" not in environment:
        chosen["OMPI_MCA_mpi_yield_when_idle"] = "1"
    return chosen


def _uses_han(coll: str) -> bool:
    names = coll.lstrip("^").split(",")
    return "han" not in names if coll.startswith("^") else "han" in names
