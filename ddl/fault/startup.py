"""Start-up of a launch: every rank announces itself before MPI starts, so that none waits forever for a lost rank.

Until MPI has started, a rank may end or hang while it imports, opens its data or builds its model, and the others then
wait in MPI_Init; mpi4py holds the GIL meanwhile, so no Python thread can watch it. Each rank therefore starts a small
process, ``python -I -S startup.py ...``, that imports nothing of ddl. It writes the rank's announcement to a folder of
this launch, reads those of the others, and kills its rank when one is lost. Once MPI has started, fault/recover.py
handles failures."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

TIMEOUT_S, OF_SCRIPTS_S = 60.0, 600.0  # what a script does before it joins the others is not seen by them
TICK_S = 0.2
MPI_PATIENCE = 10  # MPI_Init of many ranks on few cores takes long and shows no progress: so many times the timeout
LOST_S = 5.0  # a rank that is known to have ended cannot join any more: the others do not wait the full time
SETTLE_S = 2.0  # between notes and kill: mpirun may end all ranks as soon as one has ended, before others wrote theirs
CPU_STEP_S, READ_STEP_BYTES = 0.05, 1 << 16  # what counts as progress of a rank that has not come to MPI yet
EX_TEMPFAIL = 75
# A fault-tolerant mpirun ends with status 0 if signals killed all ranks. This one makes a rank exit with its number.
END_SIGNAL = signal.SIGRTMAX
END_WAIT_S = 1.0
STARTING, JOINING, STARTED, ENDED = "starting", "joining", "started", "ended"

_watcher: subprocess.Popen[bytes] | None = None


# The rank's side.


def announce(timeout_s: float, run_dir: str = "") -> None:
    """Announce this rank to the others of its launch and watch for them; call before MPI is imported.

    timeout_s: seconds after the last sign of progress when a launch without all its ranks ends; 0: never.
    run_dir: the run folder, if it is known; notes and the summary go there. Does nothing on a second call, in a
    job of one process, or where the launcher gives its ranks no common name."""
    from ddl.environment import launched_rank, launched_size

    global _watcher
    size, folder = launched_size() or 1, announcements_folder(run_dir)
    if _watcher is not None or size < 2 or not timeout_s or folder is None:
        return
    launch = os.environ.get("DDL_LAUNCH") or os.environ["PMIX_NAMESPACE"]
    words = [folder, str(launched_rank()), str(size), str(timeout_s), run_dir and os.path.abspath(run_dir), launch]
    # Signals go to whole process groups and mean the rank: the watcher inherits the mask and never receives them.
    mask = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mask)
    try:
        _watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _exit_on_end_signal()


def _exit_on_end_signal() -> None:
    """Let the C library's ``_exit`` handle the signal: MPI_Init holds the GIL, so no Python handler would run."""
    import ctypes

    library = ctypes.CDLL(None)
    library.signal(END_SIGNAL, library._exit)


def doing(what: str) -> None:
    """Say what this rank does from here on, such as "opening its data"."""
    _send(what)


def joining() -> None:
    """Announce that this rank enters MPI_Init, where CPU time is no sign of progress: waiting in MPI uses it too."""
    _send(JOINING)


def joined() -> None:
    """Say that MPI has started, and end the watcher."""
    global _watcher
    _send(STARTED)
    if _watcher is not None:
        assert _watcher.stdin is not None
        _watcher.stdin.close()
        _watcher.wait()
        _watcher = None


@contextlib.contextmanager
def meeting(timeout_s: float = TIMEOUT_S, run_dir: str = "") -> Iterator[None]:
    """Around the call that starts MPI: announce this rank, unless that is done, and watch for the others meanwhile."""
    announce(timeout_s, run_dir)
    joining()
    yield
    joined()


def _send(line: str) -> None:
    if _watcher is not None and _watcher.stdin is not None:
        with contextlib.suppress(OSError):
            os.write(_watcher.stdin.fileno(), f"{line}\n".encode())


def announcements_folder(run_dir: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The folder in which the ranks of this launch announce themselves; None if the launcher gives no common name.

    On one node a folder for temporary files; on several the folder that holds the runs, which they must share anyway:
    the run folder itself may not be chosen yet."""
    from ddl.environment import launched_size, ranks_on_node

    namespace = environment.get("PMIX_NAMESPACE")
    if not namespace:
        return None
    name = f".ddl-startup-{os.geteuid()}-{environment.get('DDL_LAUNCH', '')}-{namespace}".replace("/", "_")
    if ranks_on_node(environment) == launched_size(environment):
        return os.path.join(tempfile.gettempdir(), name)
    return os.path.join(os.path.dirname(os.path.abspath(run_dir)) if run_dir else os.path.abspath("runs"), name)


# The watcher's side.


def lost_ranks(
    announced: Mapping[int, Mapping[str, Any]],
    size: int,
    still_s: float,
    timeout_s: float,
    gone: Collection[int] = (),
) -> list[int]:
    """The lost ranks because of which this launch must end now; empty while the others still wait for them.

    announced: rank -> announcement. still_s: seconds since any announcement changed: as long as one rank makes
    progress, the others may be waiting for it. gone: ranks that are known to have ended without an announcement."""
    absent = [rank for rank in range(size) if rank not in announced or announced[rank]["state"] == ENDED]
    ended = bool(gone) or any(rank in announced for rank in absent)
    if still_s <= (min(LOST_S, timeout_s) if ended else timeout_s):
        return []
    starting = [rank for rank in range(size) if rank in announced and announced[rank]["state"] == STARTING]
    joining = [rank for rank in range(size) if rank in announced and announced[rank]["state"] == JOINING]
    return absent or starting or (joining if still_s > MPI_PATIENCE * timeout_s else [])


def reason_of(
    lost: list[int], announced: Mapping[int, Mapping[str, Any]], timeout_s: float, gone: Collection[int] = ()
) -> str:
    """One line that says which ranks are lost, and what they did."""
    parts = []
    never = set(lost) - set(announced)
    late = f"did not start within {timeout_s:g} s"
    for ranks, how in ((never & set(gone), "ended while starting"), (never - set(gone), late)):
        if ranks:
            parts.append(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))} {how}")
    for rank in lost:
        if rank in announced:
            one = announced[rank]
            still_s = timeout_s * (MPI_PATIENCE if one["state"] == JOINING else 1)
            how = "ended" if one["state"] == ENDED else f"made no progress for {still_s:g} s"
            parts.append(f"rank {rank} on {one['host']} {how} while {one['doing']}")
    return "; ".join(parts)


class Watcher:
    """The announcement of one rank, and what this rank has seen of the others."""

    def __init__(self, folder: str, rank: int, size: int, timeout_s: float, run_dir: str, launch: str):
        self.folder, self.rank, self.size, self.timeout_s = folder, rank, size, timeout_s
        self.run_dir, self.launch, self.pid = run_dir, launch, os.getppid()
        self.state, self.doing, self.progress = STARTING, "starting", 0
        self.gave_up = False

    def run(self) -> None:
        """Return when the rank has started or ended, or was ended here because others are lost."""
        self.write()
        still_s, looked_s, seen, before = 0.0, 0.0, self.changed(), time.monotonic()
        while self.state in (STARTING, JOINING):
            self.follow_rank()
            now = time.monotonic()
            passed_s, before = min(now - before, 5 * TICK_S), now  # a stopped watcher does not count that time
            changed = self.changed()
            still_s, looked_s = (still_s + passed_s, looked_s) if changed == seen else (0.0, 0.0)
            seen = changed
            if self.state in (STARTING, JOINING) and still_s > looked_s + min(LOST_S, self.timeout_s):
                looked_s = still_s
                announced = self.read()
                gone = self.gone(announced)
                lost = lost_ranks(announced, self.size, still_s, self.timeout_s, gone)
                if lost:
                    self.end_rank(lost, announced, gone)
        self.remove_folder_if_last()

    def follow_rank(self) -> None:
        """Wait for a tick, or until the rank reports its state; write what changed."""
        before = self.state, self.doing, self.progress
        if select.select([0], [], [], TICK_S)[0]:
            lines = os.read(0, 1 << 12).decode().split("\n")[:-1]
            if not lines:  # end of file: the rank is gone
                self.state = ENDED
            elif lines[-1] in (JOINING, STARTED):
                self.state, self.doing = lines[-1], f"{lines[-1]} MPI"
            else:
                self.doing = lines[-1]
        if self.state == STARTING:
            self.progress = progress_of(self.pid)
        if (self.state, self.doing, self.progress) != before:
            self.write()

    def changed(self) -> int:
        """A number that changes with each announcement: every one renames a file in the folder."""
        try:
            return os.stat(self.folder).st_mtime_ns
        except OSError:
            return 0

    def note(self, **more: Any) -> dict[str, Any]:
        return {"rank": self.rank, "host": os.uname().nodename, "pid": self.pid, "time": time.time(), **more}

    def write(self) -> None:
        write_json(self.folder, f"rank-{self.rank}.json", self.note(state=self.state, doing=self.doing))

    def read(self) -> dict[int, dict[str, Any]]:
        """rank -> announcement, of all ranks that have made one."""
        announced = {}
        for rank in range(self.size):
            path = os.path.join(self.folder, f"rank-{rank}.json")
            with contextlib.suppress(OSError, ValueError), open(path) as file:
                announced[rank] = json.load(file)
        return announced

    def gone(self, announced: Mapping[int, Any]) -> set[int]:
        """Ranks that ended before they could announce themselves: known where all ranks run on this host."""
        absent = set(range(self.size)) - set(announced)
        if not os.environ.get("PMIX_NAMESPACE") or os.path.dirname(self.folder) != tempfile.gettempdir():
            return set()  # not all on this host: see announcements_folder
        return {rank for rank in absent if not unannounced({rank})}

    def end_rank(self, lost: list[int], announced: Mapping[int, Mapping[str, Any]], gone: Collection[int]) -> None:
        """Leave a note, let the lowest present rank print the reason, and kill the rank, which is blocked."""
        reason = reason_of(lost, announced, self.timeout_s, gone)
        if self.run_dir:
            note = self.note(kind="startup", step=0, phase=self.doing, error=reason)
            write_json(os.path.join(self.run_dir, "notes", self.launch), f"rank-{self.rank}.json", note)
        present = {rank for rank, one in announced.items() if one["state"] in (STARTING, JOINING)}
        if self.rank == min(present - set(lost) or present):
            print(f"ddl: {reason}; this launch ends before its first step and can be started again", file=sys.stderr)
            sys.stderr.flush()
            self.write_summary(reason)
        time.sleep(min(SETTLE_S, self.timeout_s))
        for pid in unannounced(set(lost) - set(announced)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.kill_rank()
        self.state, self.gave_up = ENDED, True
        self.write()

    def kill_rank(self) -> None:
        """End the rank, if it is still this process's parent, with a status that mpirun reports if it can."""
        for number in (END_SIGNAL, signal.SIGKILL):
            if os.getppid() == self.pid:
                os.kill(self.pid, number)
                select.select([0], [], [], END_WAIT_S)  # until the end of file of a rank that is gone

    def write_summary(self, reason: str) -> None:
        """A summary of status "stopped", unless the folder holds that of a run that finished before."""
        path = os.path.join(self.run_dir, "summary.json")
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            if json.load(file).get("status") == "finished":
                return
        if self.run_dir:
            stopped = {"status": "stopped", "launch": self.launch, "exit_status": EX_TEMPFAIL, "error": reason}
            write_json(self.run_dir, "summary.json", stopped)

    def remove_folder_if_last(self) -> None:
        announced = self.read()
        present = [rank for rank, one in announced.items() if one["state"] in (STARTING, JOINING)]
        if not present and (self.gave_up or len(announced) == self.size):  # else others may still come and look
            shutil.rmtree(self.folder, ignore_errors=True)


def write_json(folder: str, name: str, content: Mapping[str, Any]) -> None:
    """Write a file so that readers see all of it or nothing. A folder that cannot be written is left alone."""
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{name}-{os.getpid()}")
        with open(temporary, "w") as file:
            json.dump(content, file)
        os.replace(temporary, os.path.join(folder, name))


def progress_of(pid: int) -> int:
    """A number that grows while a process or one of its children computes or reads; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        children = []
    return sum(_progress_of(one) for one in (pid, *children) if one != os.getpid())


def _progress_of(pid: int) -> int:
    cpu_s = read_bytes = 0.0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
        cpu_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # with the children that have ended
    with contextlib.suppress(OSError), open(f"/proc/{pid}/io", "rb") as file:
        counts = dict(line.split(b": ") for line in file)
        read_bytes = int(counts[b"rchar"]) + int(counts[b"read_bytes"])  # a memory map is read without a call
    return int(cpu_s / CPU_STEP_S) + int(read_bytes / READ_STEP_BYTES)


def unannounced(ranks: set[int]) -> list[int]:
    """The processes of these ranks of this launch on this host.

    A rank that was stopped before it could announce itself has no watcher to end it, and mpirun would wait for it."""
    namespace, found = os.environ.get("PMIX_NAMESPACE"), []
    marks = {f"PMIX_RANK={rank}".encode() for rank in ranks}
    for name in os.listdir("/proc") if namespace and ranks else ():
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if name.isdecimal():
                with open(f"/proc/{name}/environ", "rb") as file:
                    variables = set(file.read().split(b"\0"))
                if f"PMIX_NAMESPACE={namespace}".encode() in variables and variables & marks:
                    found.append(int(name))
    return found


def make_private(folder: str) -> bool:
    """Make the folder, readable by its owner alone; False if another user has made it, or it is a link."""
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def main(folder: str, rank: str, size: str, timeout_s: str, run_dir: str, launch: str) -> None:
    if make_private(folder):
        Watcher(folder, int(rank), int(size), float(timeout_s), run_dir, launch).run()


if __name__ == "__main__":
    main(*sys.argv[1:7])
