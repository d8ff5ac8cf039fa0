"""Small generated data sets, each trained in this process: it learns, it is refused in one line, or it says that it has
learned nothing. Nothing else may happen, and what was read must be what was written.

usage: python -m tests.jobs.generated_data [--count 200] [--first 0] [--show]"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import ddl
from ddl.checkpoint import Store
from ddl.config import Job, override
from ddl.errors import UserCodeError, UserError
from ddl.fault import session
from ddl.run.runner import Runner
from ddl.train.build import build_task

from .generated_cases import Case, make

QUIET = {"metrics.console_every_s": 0, "data.prefetch": 0, "fault.tolerance": "off", "optim.lr": 0.01}


class Violation(AssertionError):
    """A data set that ended in none of the allowed ways."""


def _train(case: Case, folder: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises what refused it."""
    settings = {"run.dir": str(folder / "run"), "train.epochs": 12, "train.global_batch": 16, **QUIET, **case.settings}
    if case.arrays is not None:
        own = ("run.dir", "fault.tolerance", "metrics.console_every_s", "data.prefetch")
        model, loss = case.settings["model.name"], case.settings.get("model.loss")
        run = ddl.Trainer(
            model,
            case.arrays,
            loss=loss,
            normalize="feature",
            global_batch=16,
            optimizer=ddl.optim.Adam(lr=0.01),
            settings={key: settings[key] for key in own},
        )
        return run.fit(epochs=12)
    if "data.path" in settings:
        settings["data.source"] = "files"
    runner = Runner(override(Job(), settings), build_task, session.current(), in_script=True)
    try:
        runner.run()
    finally:
        if runner.has_started:
            session.hold(runner.group, runner.heartbeat)
    if runner.failure is not None:
        raise runner.failure
    return json.loads((folder / "run" / "summary.json").read_text())


def outcome(case: Case, folder: Path) -> str:
    """How the run of a data set ended. Raises Violation if that is none of the allowed ways."""
    try:
        summary = _train(case, folder)
    except UserCodeError as error:
        raise Violation(f"an error that names no problem: {error}") from error
    except UserError as error:
        if "\n" in str(error) or not str(error).strip():
            raise Violation(f"not one line: {error}") from error
        if case.is_plain and not case.refused:
            raise Violation(f"plain data were refused: {error}") from error
        if case.is_plain and not any(word in str(error) for word in case.refused.split("|")):
            raise Violation(f"refused, but not because it {case.refused}: {error}") from error
        return f"refused: {error}"
    except Exception as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    if case.refused:
        raise Violation(f"trained, but ought to be refused: {case.refused}")
    _, meta = Store(folder / "run" / "checkpoints").load()
    _check_read(case, meta["knowledge"])
    if summary["warning"]:
        if case.is_plain:
            raise Violation(f"plain data taught nothing: {summary['warning']}")
        return f"warned: {summary['warning']}"
    epochs = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [event["train"]["loss"] for event in epochs if event["event"] == "epoch"]
    if not losses[-1] < losses[0]:
        raise Violation(f"finished without a warning, and the losses are {losses}")
    return f"learned: loss {losses[0]:.4g} -> {losses[-1]:.4g}, {summary['train']}"


def _check_read(case: Case, known: dict[str, Any]) -> None:
    """Raises Violation if the data were read as something else than what was written."""
    x, y = known["data"]["fields"]["x"], known["data"]["fields"].get("y")
    rows, width = sum(known["samples"].values()), int(np.prod(x["shape"]))
    target = known["data"].get("target") or {}
    found = {"rows": rows, "width": width, "kind": target.get("kind"), "classes": y and y["size"]}
    for name, value in found.items():
        wanted = getattr(case, name)
        if wanted is not None and value != wanted:
            raise Violation(f"{name} is {value} and ought to be {wanted}: {target.get('reason')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every data set and how it ended")
    asked = parser.parse_args()
    ends: Counter[str] = Counter()
    for seed in range(asked.first, asked.first + asked.count):
        with tempfile.TemporaryDirectory() as name:
            case = make(seed, Path(name))
            try:
                end = outcome(case, Path(name))
            except Violation as violation:
                end = f"VIOLATION: {violation}"
        ends[end.split(":")[0]] += 1
        if asked.show or end.startswith("VIOLATION"):
            print(f"{seed:4} {case.text}\n     {end}", flush=True)
    print(", ".join(f"{count} {end}" for end, count in ends.most_common()))
    return 1 if ends["VIOLATION"] else 0


if __name__ == "__main__":
    sys.exit(main())
