"""Reading files that may hold anything: only regular files are opened, and JSON must be an object with known fields.

The modules that own the files define their fields. ``braces`` expands patterns of names."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_regular(path: str | Path, tail_bytes: int | None = None) -> bytes:
    """The bytes of a file, or the last ``tail_bytes`` of them.

    Raises OSError, also if it is not a regular file: reading a FIFO would wait for a writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        file.seek(0 if tail_bytes is None else max(status.st_size - tail_bytes, 0))
        return file.read()


def braces(pattern: str) -> list[str]:
    """The patterns that one with braces means, as a shell expands them: ``{000..009}`` and ``{a,b}``."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, several = found.groups()
    parts = several.split(",") if several else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [whole for part in parts for whole in braces(pattern[: found.start()] + part + pattern[found.end() :])]


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else, and if a key occurs twice."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is {_short(value)}, not an object")
    return value


def take(values: Mapping[str, Any], name: str, *kinds: type, least: float | None = 0) -> Any:
    """The field ``name``, whose type is exactly one of ``kinds``; numbers are finite and at least ``least``.

    Raises ValueError in one line if it is missing or anything else."""
    if name not in values:
        raise ValueError(f"{name} is missing")
    value = values[name]
    is_right = type(value) in kinds
    if is_right and type(value) in (int, float):
        is_right = abs(value) < 1 << 63 if type(value) is int else math.isfinite(value)
        is_right &= least is None or value >= least
    if not is_right:
        raise ValueError(f"{name} is {_short(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"the key {_short(twice)} stands twice")
    return values


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
