"""Read a launch's steps, progress and owner from its run folder; files that cannot be read are ignored.

Does not import the rooms that write these files; verdict.py interprets the end of a launch."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ddl.reading import parse_object, read_regular, take

TAIL_BYTES = 1 << 16


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if it cannot be read."""
    try:
        return parse_object(read_regular(path))
    except (OSError, ValueError):
        return {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically: a reader sees the old file or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        aside.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def last_step(folder: Path) -> int:
    """The newest committed step in metrics.jsonl or the ledger; -1 if there is none."""
    for name, first in (("metrics.jsonl", 0), ("ledger.jsonl", 1)):  # the ledger counts from 0
        try:
            lines = read_regular(folder / name, TAIL_BYTES).splitlines()
        except OSError:
            continue
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                found = parse_object(line)
                if found.get("event", "step") == "step" and "step" in found:
                    step: int = take(found, "step", int)
                    return step + first
    return -1


def steps_of(folder: Path, supervisor: str) -> int:
    """How many of the ledger's newest steps belong to launches of this supervisor."""
    with contextlib.suppress(OSError):
        lines = read_regular(folder / "ledger.jsonl", TAIL_BYTES).splitlines()
        return sum(b'"step"' in line and f'"{supervisor}-'.encode() in line for line in lines)
    return 0


def progress_of(folder: Path) -> tuple[tuple[int, int], ...]:
    """A value that changes whenever the job makes progress."""
    found = []
    for name in ("metrics.jsonl", "ledger.jsonl", "checkpoints", "summary.json"):
        with contextlib.suppress(OSError):
            status = (folder / name).stat()
            found.append((status.st_mtime_ns, status.st_size))
    return tuple(found)


def config_written(folder: Path) -> int:
    """When config.toml was written, in ns: every launch writes it as soon as its ranks have met."""
    try:
        return (folder / "config.toml").stat().st_mtime_ns
    except OSError:
        return 0


def owner_of(folder: Path) -> str:
    """The launch that owns the run folder; "" if none is known."""
    return str(read_json(folder / "owner.json").get("launch", ""))
