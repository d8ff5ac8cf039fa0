"""Whole jobs as subprocesses: start one under mpirun, wait for its end, read its run folder, check nothing is left.

The tests themselves define the faults."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from ddl.audit import report
from ddl.launcher.mpirun import LAUNCH_VARIABLE, find_mpirun, members, ranks, sweep

ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0
GONE_S = 5.0  # for the last process of a job to be reaped
TOLERANT = ("--with-ft", "ulfm")
# Small enough for two cores, large enough for every room of the job to be visited several times.
QUICK = (
    *("--model.name=mlp", "--train.steps=30", "--train.global_batch=256", "--train.dtype=float64"),
    *("--train.compiled=off", "--metrics.console_every_s=0"),
)


@dataclass(frozen=True)
class Ended:
    """A job that has ended, and its run folder."""

    status: int
    said: str
    seconds: float
    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    @property
    def losses(self) -> dict[int, float]:
        """step -> loss; the last report of a step counts."""
        return {event["step"]: event["loss"] for event in self.of("step")}

    @property
    def lost(self) -> list[tuple[int, str]]:
        """(rank, kind) of every failure, in order."""
        return [(failure["rank"], failure["kind"]) for failure in self.summary.get("failures", [])]

    def is_exact(self) -> bool:
        """Every sample exactly once per epoch: by the ledger, and by the summary."""
        samples = self.summary["samples"]
        return report(self.folder).is_exact and samples["used"] == samples["expected"] > 0


class Running:
    """A job under way. ``wait`` sees that no process of it is left, whatever happened."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str], limit_s: float, mark: str):
        self.folder, self.limit_s, self.mark = folder, limit_s, mark
        self.began = time.monotonic()
        self._output = open(folder.with_suffix(".out"), "w+b")  # noqa: SIM115 - wait() closes it
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environ, LAUNCH_VARIABLE: mark},
            cwd=folder.parent,
            start_new_session=True,
        )

    def until(self, step: int) -> None:
        """Until that step is committed."""
        while self.step() < step:
            assert self.process.poll() is None, self._said()
            assert time.monotonic() - self.began < self.limit_s, self._said()
            time.sleep(0.01)

    def step(self) -> int:
        with contextlib.suppress(OSError):
            lines = (self.folder / "metrics.jsonl").read_bytes().splitlines()
            for line in reversed(lines):
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if event["event"] == "step":
                        return int(event["step"])
        return 0

    def ranks(self) -> dict[int, int]:
        """rank -> pid of the job's ranks, without launchers and companions."""
        return ranks(self.mark)

    def everything(self) -> list[int]:
        """All processes of the job: launchers, ranks and companions."""
        return members(self.mark)

    def kill(self) -> None:
        """SIGKILL to everything at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        sweep(self.mark)

    def wait(self) -> Ended:
        try:
            status = self.process.wait(self.limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over after {self.limit_s:g} s:\n{self._stacks()}\n{self._said()}") from None
        finally:
            seconds = time.monotonic() - self.began
            left = self._left()
            self.kill_quietly()
        said = self._said()
        self._output.close()
        assert not left, f"processes {left} are left:\n{said}"
        assert not list(Path("/dev/shm").glob(f"ddl*{self.mark}*"))
        return Ended(status, said, seconds, self.folder)

    def kill_quietly(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.kill()
        self.process.wait()

    def _left(self) -> list[int]:
        """Processes that outlive their job; a companion needs a moment to see its rank's end."""
        deadline = time.monotonic() + GONE_S
        while (left := members(self.mark)) and self.process.poll() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        return left if self.process.poll() is not None else []

    def _said(self) -> str:
        return self.folder.with_suffix(".out").read_text(errors="replace")

    def _stacks(self) -> str:
        """Where each rank hangs."""
        from ddl.fault.companion import STACK_SIGNAL

        stacks = []
        for rank, pid in sorted(self.ranks().items()):
            with contextlib.suppress(OSError):
                os.kill(pid, STACK_SIGNAL)
                time.sleep(0.3)
                for fd in Path(f"/proc/{pid}/fd").iterdir():
                    if "ddl-stack" in os.readlink(fd):
                        stacks.append(f"rank {rank}:\n{fd.read_text(errors='replace')}")
        return "\n".join(stacks)


class Jobs:
    """Starts jobs, each in its own folder. ``words`` are settings; ``chaos`` is the script of faults."""

    # The environment's parameter files may make mpirun tolerant; these options override them.
    INTOLERANT = ("--prtemca", "state_base_recoverable", "0", "--prtemca", "state_base_notify_errors", "0")

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self._running: list[Running] = []

    def start(
        self,
        *words: str,
        n: int = 4,
        chaos: str = "",
        flags: tuple[str, ...] = TOLERANT,
        environ: dict[str, str] | None = None,
        folder: Path | None = None,
        limit_s: float = LIMIT_S,
        program: tuple[str, ...] = ("-m", "ddl.train"),
        quick: bool = True,
        before: tuple[str, ...] = (),
    ) -> Running:
        self.count += 1
        folder = folder or self.folder / f"run{self.count}"
        settings = [*(QUICK if quick else ()), *words, "--run.dir", str(folder)]
        settings += ["--fault.chaos", chaos] if chaos else []
        command = [*before, find_mpirun(), *flags, "-n", str(n), sys.executable, *program, *settings]
        return self._start(command, folder, environ or {}, limit_s)

    def supervised(
        self,
        *words: str,
        n: int = 4,
        chaos: str = "",
        folder: Path | None = None,
        environ: dict[str, str] | None = None,
        limit_s: float = LIMIT_S,
    ) -> Running:
        """The same under ddl.launch."""
        self.count += 1
        folder = folder or self.folder / f"run{self.count}"
        settings = [*QUICK, *words, "--run.dir", str(folder), *(["--chaos", chaos] if chaos else [])]
        return self._start(
            [sys.executable, "-m", "ddl.launch", "-n", str(n), *settings], folder, environ or {}, limit_s
        )

    def _start(self, command: list[str], folder: Path, environ: dict[str, str], limit_s: float) -> Running:
        defaults = {
            "PYTHONPATH": str(ROOT),
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        made = Running(command, folder, {**defaults, **environ}, limit_s, f"test-{uuid.uuid4().hex[:10]}")
        self._running.append(made)
        return made

    def run(self, *words: str, **named: Any) -> Ended:
        return self.start(*words, **named).wait()

    def close(self) -> None:
        for running in self._running:
            if running.process.poll() is None:
                running.kill_quietly()


@pytest.fixture
def jobs(tmp_path: Path):
    made = Jobs(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The quick job, undisturbed on 4 ranks, with a checkpoint every 7 steps."""
    made = Jobs(tmp_path_factory.mktemp("calm"))
    ended = made.run("--checkpoint.every_steps", "7", flags=())
    assert ended.status == 0, ended.said
    return ended


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """words -> the quick job with these settings on 4 ranks, undisturbed; each is run once."""
    made, done = Jobs(tmp_path_factory.mktemp("undisturbed")), {}

    def ended(*words: str, quick: bool = True) -> Ended:
        if (words, quick) not in done:
            done[words, quick] = made.run(*words, flags=(), quick=quick)
            assert done[words, quick].status == 0, done[words, quick].said
        return done[words, quick]

    yield ended
    made.close()


@pytest.fixture(scope="session")
def main_job(tmp_path_factory: pytest.TempPathFactory):
    """ranks -> the main job, without an argument, on so many ranks; each is run once."""
    made, done = Jobs(tmp_path_factory.mktemp("main")), {}

    def ended(ranks: int) -> Ended:
        if ranks not in done:
            done[ranks] = made.run(n=ranks, flags=(), quick=False)
        return done[ranks]

    yield ended
    made.close()
