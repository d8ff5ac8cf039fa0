"""Jobs, doors and scripts started as a user starts them: as subprocesses, under mpirun where they have ranks.

Deaths of ranks are tests/fault's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from ddl.launcher.mpirun import find_mpirun

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "launch" / "jobs"
LIMIT_S = 150.0


@dataclass(frozen=True)
class Ended:
    """A program that has ended, and the run folder it was to leave, if any."""

    status: int
    out: str
    said: str
    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        assert self.status == 0, self.said
        summary = json.loads((self.folder / "summary.json").read_text())
        assert summary["status"] == "finished"
        # Whatever the job is: each sample of an epoch is used exactly once.
        samples = summary["samples"]
        assert samples["used"] == samples["expected"] > 0 and not samples["missing"] + samples["repeated"]
        return summary


def start(ranks: int, words: list[str], cwd: Path, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    """(status, stdout, all that was said) of ``python WORDS`` on so many ranks; 0 ranks: without mpirun."""
    under = [find_mpirun(), "-n", str(ranks), "--map-by", ":oversubscribe", "--bind-to", "none"] if ranks else []
    known = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    process = subprocess.Popen(
        [*under, sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **known, **(environ or {})},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        # mpirun ends its ranks when it is asked to end.
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    return process.returncode, out, out + err


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Ended]:
    """train("mlp", 2, "--train.epochs=3") runs that job of the catalogue on 2 ranks, in its own run folder."""

    def run(job: str, ranks: int, *words: str, name: str = "run", environ: dict[str, str] | None = None) -> Ended:
        folder = tmp_path / name
        file = [str(JOBS / f"{job}.toml")] if job else []
        fixed = [f"--run.dir={folder}", "--metrics.console_every_s=0"]
        status, out, said = start(ranks, ["-m", "ddl.train", *file, *fixed, *words], tmp_path, environ)
        return Ended(status, out, said, folder)

    return run


@pytest.fixture
def door(tmp_path: Path) -> Callable[..., Ended]:
    """door(["-m", "ddl.evaluate", RUN], ranks=2): any other program, in an empty folder."""

    def run(words: list[Any], ranks: int = 0, environ: dict[str, str] | None = None) -> Ended:
        status, out, said = start(ranks, list(map(str, words)), tmp_path, environ)
        return Ended(status, out, said, tmp_path)

    return run
