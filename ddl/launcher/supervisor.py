"""The supervisor: starts mpirun, and starts it again from the newest state when it must.

Works with mpi4py absent, since it has to outlive MPI. It believes no exit status of mpirun's, only the
summary.json of the launch it started. launcher/mpirun.py builds mpirun's command line, filters its output and cleans
up after it; launch.py parses the arguments."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import IO, Any

from ddl.config import Job, check
from ddl.config.folder import run_folder
from ddl.environment import REGAINS_VARIABLE
from ddl.errors import EX_TEMPFAIL, ConfigError
from ddl.launcher.evidence import config_written, last_step, owner_of, progress_of, read_json, steps_of, write_json
from ddl.launcher.hosts import SHARED, Hosts
from ddl.launcher.leftovers import remove_leftovers, remove_segments, segments
from ddl.launcher.mpirun import (
    LAUNCH_VARIABLE,
    Filter,
    command_line,
    home,
    sweep,
)
from ddl.launcher.replica import MemoryFolder, remove_stale_replicas
from ddl.launcher.verdict import Ended, decide, taken_over
from ddl.metrics import EARLY_STOPS, TOO_EARLY, early_stops

REPLICA_VARIABLE = "DDL_REPLICA"
# Where Open MPI 5 has options, older versions and other MPIs would refuse them; variables mean nothing to the others.
OLDER_OPEN_MPI = {"OMPI_MCA_rmaps_base_oversubscribe": "1"}
if os.geteuid() == 0:
    OLDER_OPEN_MPI |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
OWN = (LAUNCH_VARIABLE, REPLICA_VARIABLE, REGAINS_VARIABLE)
GRACE_S = 15.0  # for mpirun to end once the job has
TERM_S = 3.0
END_S = 15.0  # for the ranks to save their state once a person or the system ends the job
TICK_S = 0.1
JOIN_S = 10.0  # between two questions whether a lost host answers again


class Supervisor:
    """Starts ``words`` (the job and its settings) repeatedly until the job is done or cannot succeed."""

    def __init__(
        self,
        job: Job,
        words: Sequence[str],
        ranks: int,
        hosts: Hosts,
        *,
        restarts: int = 10,
        deadline_s: float = 600.0,
        verbose: bool = False,
    ):
        self.job, self.words = job, list(words)
        self.restarts, self.deadline_s, self.verbose = restarts, deadline_s, verbose
        self.hosts = hosts
        self.ranks = self._all_ranks = ranks
        self.folder = run_folder(job).absolute()
        self.name = uuid.uuid4().hex[:8]
        self.asked = ""
        self.is_taken_over = False
        self._owner = owner_of(self.folder)  # the launch to which the folder belonged at the end of the last one
        self.must_end = False
        self._end_at: float | None = None  # by the clock, once a signal has said so
        self._process: subprocess.Popen[bytes] | None = None
        self._launched_at = 0.0
        self._passed_on: set[int] = set()  # signals that it has been sent
        self._is_under_way = False  # the ranks of this launch handle signals
        self._found: tuple[object, int] = ((), 0)  # what was in the folder before: they change it once they have met
        self._replica: MemoryFolder | None = None

    def run(self) -> int:
        """Returns the overall exit status, when no process and no file in shared memory is left."""
        failed_at: list[int] = []
        try:
            remove_stale_replicas()
            remove_leftovers()
            self._make_replica()
            while not self.asked:
                ended = self._launch(len(failed_at), tuple(failed_at))
                verdict = decide(ended)
                if verdict.status is not None:
                    if self.asked and not ended.summary and not ended.taken_over_by:
                        return self._end_asked(verdict.reason)
                    if verdict.status and verdict.reason:
                        self._say(verdict.reason)
                        if not ended.summary and not ended.taken_over_by:  # else the leader has printed the reason
                            self._show_notes(self._id(len(failed_at)))
                    return verdict.status
                failed_at.append(ended.step)
                if self._choose_hosts(self._id(len(failed_at) - 1)):
                    try:
                        check(self.job, self.ranks)
                    except ConfigError as error:  # it was valid on all the hosts
                        self._say(f"{verdict.reason}; {self.ranks} ranks are too few to continue: {error}")
                        return EX_TEMPFAIL
                if not self.asked:
                    if owner := self._taken_over_by():
                        self._say(taken_over(owner).reason)
                        return EX_TEMPFAIL
                    left = self.restarts - len(failed_at)
                    self._say(
                        f"{verdict.reason}; starting again on {_count(self.ranks, 'rank')} "
                        f"({_count(left, 'restart')} left)"
                    )
                    if self.job.fault.respawn and not self._regains(len(failed_at)):
                        self._say("fault.respawn: a rank lost from here on is not regained (--restarts)")
            return self._end_asked(f"ended by {self.asked} before the job was started{' again' if failed_at else ''}")
        finally:
            if self._replica is not None:
                self._replica.remove()
                self.hosts.remove_replicas(self._id(len(failed_at)), self._replica.path)

    def _end_asked(self, reason: str) -> int:
        """The status after a signal if no rank has written a summary. Then a summary is written here, which counts the
        launches that a signal ended before they could train, as the ranks' own does."""
        count = early_stops(self.folder) + 1
        if steps_of(self.folder, self.name) > 1:
            count = 0
        status, reason = (1, TOO_EARLY) if count >= EARLY_STOPS else (EX_TEMPFAIL, reason)
        if count and read_json(self.folder / "summary.json").get("status") != "finished":
            summary: dict[str, Any] = {"status": "failed" if status == 1 else "stopped", "launch": self.name}
            summary |= {"exit_status": status, "error": reason, "early_stops": count}
            try:
                write_json(self.folder / "summary.json", summary)
            except OSError as error:
                self._say(f"{self.folder} cannot be written: {error}")
        self._say(reason)
        return status

    def ask_to_stop(self, number: int, frame: object = None) -> None:
        """SIGUSR1: the ranks write a checkpoint and end. Between two launches there is nothing to write."""
        self.asked = signal.Signals(number).name
        self._signal(number)

    def end(self, number: int, frame: object = None) -> None:
        """SIGTERM, SIGINT, SIGHUP: as SIGUSR1 where there is something to save, for at most END_S. A second one
        ends everything now."""
        self.asked, is_second = signal.Signals(number).name, self._end_at is not None
        self._end_at = time.monotonic() + END_S
        self.must_end = self.must_end or is_second or not self._notice()
        self._signal(signal.SIGTERM if self.must_end else signal.SIGUSR1)

    # One launch.

    def _id(self, attempt: int) -> str:
        return f"{self.name}-{attempt}"

    def _environ(self, attempt: int) -> dict[str, str]:
        replica = {} if self._replica is None else {REPLICA_VARIABLE: str(self._replica.path)}
        own = {LAUNCH_VARIABLE: self._id(attempt), REGAINS_VARIABLE: str(self._regains(attempt))}
        return {**os.environ, "HOME": home(), **OLDER_OPEN_MPI, **own, **replica}

    def _regains(self, attempt: int) -> int:
        """How often ranks may still be regained; the last restart is kept for a launch that is lost."""
        return max(self.restarts - attempt - 1, 0)

    def _command(self, attempt: int) -> list[str]:
        words = [*self.words, "--run.dir", str(self.folder)]
        if attempt:
            words += [
                "--fault.chaos",
                "",
            ]  # a drill is for the first launch only; it would strike the same step again
            if self.job.checkpoint.resume == "none" or self._has_state():
                words += ["--checkpoint.resume", "auto"]
        return command_line(
            self.hosts.mpirun,
            [sys.executable, "-m", "ddl.train", *words],
            self.ranks,
            self.hosts.chosen,
            tolerant=self.job.fault.tolerance != "off",
            exported=(*OWN, *SHARED),
            environ=self._environ(attempt),
        )

    def _has_state(self) -> bool:
        replica = self._replica is not None and any(self._replica.path.glob("step_*"))
        return replica or any((self.folder / "checkpoints").glob("step_*"))

    def _launch(self, attempt: int, failed_at: tuple[int, ...]) -> Ended:
        launch, files, overdue_s = self._id(attempt), segments(), 0.0
        before, _ = self._found = progress_of(self.folder), config_written(self.folder)
        with subprocess.Popen(
            self._command(attempt),
            env=self._environ(attempt),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only this process, which decides what to pass on
            preexec_fn=_end_with_parent,
        ) as process:
            self._passed_on.clear()
            self._is_under_way = False
            self._process = process
            pumps = [self._pump(process.stdout, sys.stdout), self._pump(process.stderr, sys.stderr)]
            self._launched_at = time.monotonic()
            if self.hosts.is_short() and self.restarts - attempt > 1:
                threading.Thread(target=self._await_hosts, daemon=True).start()
            if self.asked:  # while mpirun was being started: there is nothing to save
                self._signal(signal.SIGTERM)
            try:
                overdue_s = self._watch(process, launch)
            finally:
                self._end(process, launch)
                self._process = None
            for pump in pumps:
                pump.join(GRACE_S)
        remove_segments(files)
        taken_over_by = self._taken_over_by(launch)
        self._owner = owner_of(self.folder)
        return Ended(
            process.returncode,
            self._summary(launch),
            last_step(self.folder),
            progress_of(self.folder) != before,
            failed_at,
            self.restarts - attempt,
            self.asked,
            overdue_s,
            max(len(self.hosts.chosen), 1),
            taken_over_by,
        )

    def _watch(self, process: subprocess.Popen[bytes], launch: str) -> float:
        """Wait until mpirun ends or must be ended; returns how long the job made no progress, if that is the reason."""
        seen, still_s, done_s, last = self._found[0], 0.0, 0.0, time.monotonic()
        # Plots and the timeline are made after the summary; if a rank hangs there, its companion kills it.
        makes_more = self.job.metrics.plots or self.job.metrics.trace
        hang_s = self.job.fault.hang_timeout_s
        grace_s = GRACE_S + ((self.deadline_s if hang_s == "auto" else hang_s) if makes_more else 0.0)
        while process.poll() is None and not self.must_end:
            time.sleep(TICK_S)
            now = time.monotonic()
            # Time in which this process was stopped, together with its job, does not count.
            passed_s, last = min(now - last, 10 * TICK_S), now
            progress = progress_of(self.folder)
            if not self._is_under_way and self._notice() and self.asked:
                self._signal(signal.Signals[self.asked])
            still_s = still_s + passed_s if progress == seen else 0.0
            seen = progress
            done_s = done_s + passed_s if self._summary(launch) else 0.0
            if done_s > grace_s:
                return 0.0
            if self._end_at is not None and now > self._end_at:
                return 0.0
            if self.deadline_s and still_s > self.deadline_s:
                return still_s
        return 0.0

    def _notice(self) -> bool:
        """Whether the ranks of this launch handle signals by now."""
        found = progress_of(self.folder), config_written(self.folder)
        self._is_under_way = self._is_under_way or (self._process is not None and found != self._found)
        return self._is_under_way

    def _end(self, process: subprocess.Popen[bytes], launch: str) -> None:
        """End mpirun and all its processes; they are gone when this returns."""
        if process.poll() is None:
            self._signal(signal.SIGTERM)  # mpirun then ends its ranks, those of other hosts as well
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TERM_S)
        if process.poll() is None:
            process.kill()
            process.wait()
        left = sweep(launch)
        if left:
            self._say(f"processes {left} of this launch cannot be killed: they wait for a device or a file system")

    def _pump(self, source: IO[bytes] | None, sink: IO[str]) -> threading.Thread:
        """Pass mpirun's output on, without its noise."""
        assert source is not None
        quiet = Filter(self.verbose)

        def pump() -> None:
            for line in source:
                for shown in quiet.feed(line.decode(errors="replace")):
                    sink.write(shown)
                sink.flush()
            for shown in quiet.flush():
                sink.write(shown)
            sink.flush()

        thread = threading.Thread(target=pump, daemon=True)
        thread.start()
        return thread

    def _signal(self, number: int) -> None:
        process = self._process
        if number != signal.SIGTERM and not self._is_under_way:
            return  # USR1 would kill a rank that has no handler yet; ``_watch`` sends it once the ranks have met
        if process is not None and process.poll() is None and number not in self._passed_on:
            self._passed_on.add(number)  # a second SIGTERM makes mpirun leave its ranks alone
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _summary(self, launch: str) -> dict[str, Any]:
        summary = read_json(self.folder / "summary.json")
        return summary if summary.get("launch") == launch else {}

    def _taken_over_by(self, launch: str = "") -> str:
        """The launch to which the folder belongs if that is neither the one that had it before nor ``launch``."""
        owner = owner_of(self.folder)
        self.is_taken_over = owner not in (self._owner, launch)
        return owner if self.is_taken_over else ""

    # Between two launches.

    def _choose_hosts(self, launch: str) -> bool:
        """Continue with the hosts that answer; on these, end the remaining processes of the launch.

        Whether their number has changed."""
        if len(self.hosts.known) < 2 or self.asked:
            return False
        before = self.ranks
        lost = self.hosts.choose(launch, lambda: bool(self.asked))
        self.ranks = self.hosts.share(self._all_ranks)
        if lost:
            self._say(f"no answer from {', '.join(lost)}: continuing without")
        return self.ranks != before

    def _await_hosts(self) -> None:
        """Ask the ranks to stop at a checkpoint when a host that is missing answers again: all then start with it."""
        process = self._process
        while self._process is process and not self.asked:
            time.sleep(TICK_S)
            if time.monotonic() - self._launched_at > JOIN_S and self._is_under_way:
                if self.hosts.returned(lambda: self._process is not process or bool(self.asked)):
                    self._say("a host is back: the run is saved and starts again with it")
                    self._signal(signal.SIGUSR1)
                    return
                time.sleep(JOIN_S)

    def _make_replica(self) -> None:
        if self.job.checkpoint.replica:
            try:
                self._replica = MemoryFolder()
            except OSError as error:
                self._say(f"no checkpoint is kept in memory: {error}")

    def _show_notes(self, launch: str) -> None:
        """Say how the ranks died, and show the traceback or stack of the first."""
        folder = self.folder / "notes" / launch
        notes = sorted((read_json(path) for path in folder.glob("rank-*.json")), key=lambda note: note.get("time", 0))
        alike: dict[str, list[str]] = {}
        for note in notes:
            what = f"step {note.get('step')}: {note.get('error') or note.get('kind')}"
            alike.setdefault(what, []).append(f"{note.get('rank')} on {note.get('host')}")
        for what, ranks in alike.items():
            self._say(f"rank {', '.join(ranks)}, {what}")
        texts = [note.get("traceback") or note.get("stack") or "" for note in notes]
        if any(texts):
            print(next(filter(None, texts)).rstrip(), file=sys.stderr)
        if notes:
            self._say(f"all notes are in {folder}")

    def _say(self, line: str) -> None:
        print(f"ddl.launch: {line}", file=sys.stderr, flush=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _end_with_parent() -> None:
    """In the new process: make the kernel send SIGTERM to mpirun if the supervisor is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
