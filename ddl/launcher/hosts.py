"""The hosts of a job: which of them answer, which take part in the next launch, and which wait as spares.

supervisor.py decides when to ask; mpirun.py builds mpirun's command line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ddl.launcher.mpirun import Host, command_line, sweep

SHARED = (
    *("PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "OPAL_PREFIX", "MPI4PY_LIBMPI"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
)
PROBE_S = 30.0
TICK_S = 0.05


class Hosts:
    """known: every host, in order of preference. The first ``len(known) - spares`` that answer are ``chosen``.

    in_slurm: hosts are nodes of a Slurm allocation, on which srun starts probes faster than mpirun does."""

    def __init__(self, mpirun: str, known: Sequence[Host], spares: int = 0, *, in_slurm: bool = False):
        self.mpirun, self.known, self.in_slurm = mpirun, list(known), in_slurm
        self.wanted = len(self.known) - spares
        self.chosen = self.known[: self.wanted]
        self._used = list(self.chosen)  # also earlier ones that answered when they were asked last

    def share(self, ranks: int) -> int:
        """How many of the ``ranks`` of a full choice the present one starts: as its slots are to those of all."""
        if not self.known:
            return ranks
        full = sum(host.slots for host in self.known[: self.wanted])
        return max(ranks * sum(host.slots for host in self.chosen) // full, 1)

    def choose(self, launch: str, is_over: Callable[[], bool]) -> list[str]:
        """Choose from the hosts that answer; the remaining processes of ``launch`` are ended there. Keeps the choice
        if none answers. Returns the names of hosts that were chosen before and do not answer."""
        alive = self._answering(self.known, launch, is_over)
        lost = [host.name for host in self.chosen if host not in alive]
        self.chosen = alive[: self.wanted] or self.chosen
        self._used = [host for host in self.known if host in self.chosen or (host in self._used and host in alive)]
        return lost

    def is_short(self) -> bool:
        """Whether fewer hosts take part than should."""
        return len(self.chosen) < self.wanted

    def returned(self, is_over: Callable[[], bool]) -> bool:
        """Whether a host that is missing from the choice answers again. Ends no process of the launch under way."""
        away = [host for host in self.known if host not in self.chosen]
        return self.is_short() and bool(self._answering(away, "none", is_over)) and not is_over()

    def remove_replicas(self, launch: str, folder: Path) -> None:
        """Remove the memory checkpoints of other hosts; one that does not answer keeps its own."""
        probes = [self._start(host, launch, str(folder)) for host in self._used if not _is_here(host)]
        deadline = time.monotonic() + PROBE_S
        for probe in probes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                probe.wait(max(deadline - time.monotonic(), 0.0))
            _close(probe)

    def _answering(self, hosts: Sequence[Host], launch: str, is_over: Callable[[], bool]) -> list[Host]:
        """Those of ``hosts`` on which a program starts, asked all at once. After the first answer the others have as
        long again and two seconds; all of them count as alive once ``is_over``: the answer no longer matters."""
        started, answered = time.monotonic(), {host for host in hosts if _is_here(host)}
        if answered:
            sweep(launch)
        asked = {host: self._start(host, launch) for host in hosts if host not in answered}
        deadline, is_first = started + PROBE_S, True
        try:
            while (waiting := [h for h, p in asked.items() if p.poll() is None]) and time.monotonic() < deadline:
                if is_over():
                    return list(hosts)
                if is_first and len(waiting) < len(asked) and any(p.returncode == 0 for p in asked.values()):
                    is_first, deadline = False, 2 * time.monotonic() - started + 2.0
                time.sleep(TICK_S)
            for host, probe in asked.items():
                if probe.poll() == 0 and probe.stdout is not None and b"swept" in probe.stdout.read():
                    answered.add(host)
        finally:
            for probe in asked.values():
                _close(probe)
        return [host for host in hosts if host in answered]

    def _start(self, host: Host, *words: str) -> subprocess.Popen[bytes]:
        """A sweep of ``words`` on a host. Its exit status proves nothing under mpirun: it prints "swept"."""
        program = [sys.executable, "-m", "ddl.launch", "--sweep", *words]
        if self.in_slurm:
            step = ["srun", "--overlap", "--mem=0", "--nodes=1", "--ntasks=1", "--mpi=none", "--quiet"]
            command = [*step, f"--nodelist={host.name}", *program]
        else:
            hosts = [replace(host, slots=1)]
            command = command_line(self.mpirun, program, 1, hosts, tolerant=False, exported=SHARED)
        return subprocess.Popen(
            command,
            env={k: v for k, v in os.environ.items() if k not in ("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )


def _is_here(host: Host) -> bool:
    return host.name in (os.uname().nodename, os.uname().nodename.partition(".")[0], "localhost")


def _close(probe: subprocess.Popen[bytes]) -> None:
    if probe.poll() is None:
        probe.kill()
    probe.wait()
    if probe.stdout is not None:
        probe.stdout.close()
