"""Detect changed training data: compare schema and hashes with those in a checkpoint, or with another rank's.

A checkpoint stores them beside the parameters; resuming compares them before it loads the parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.held import runs
from ddl.data.source import Source

ROWS = 32  # hashed one by one, to say how much changed
PIECE_BYTES = 2**20
MOST_BYTES = 128 * 2**20  # larger data are not hashed whole: a change in 10 % of the rows is missed in 3 % of cases


def fingerprint(source: Source) -> dict[str, Any]:
    """Hashes of some samples, field by field, and of everything if that is cheap, as plain JSON values.

    Afterwards the source holds nothing.

    A source that is read from its beginning on, such as a gzip file, is sampled there."""
    count = min(ROWS, len(source))
    last = count - 1 if source.reads_from_start else len(source) - 1
    rows = np.unique(np.linspace(0, last, count).astype(np.int64))
    source.hold(runs(rows))
    batch = source.gather(rows)
    source.hold([])
    hashes = {
        name: [hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=6).hexdigest() for row in values]
        for name, values in batch.items()
    }
    return {"rows": rows.tolist(), "hashes": hashes, "all": _digest(source.content())}


def _digest(content: Sequence[Path | np.ndarray]) -> str:
    """A hash of these files and arrays; "" if there are none, or they are too large to be read by every rank."""
    total = sum(part.nbytes if isinstance(part, np.ndarray) else part.stat().st_size for part in content)
    if not 0 < total <= MOST_BYTES:
        return ""
    digest = hashlib.blake2b(digest_size=12)
    for part in content:
        if isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            with open(part, "rb") as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
    return digest.hexdigest()


def compare(kept: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(differences that forbid resuming, differences to report), one line each.

    kept, now: what ``Known.to_json`` and ``fingerprint`` return, from the checkpoint and from today's data. What an
    earlier version did not keep is not compared."""
    kept, now = (json.loads(json.dumps(record)) for record in (kept, now))
    wrong = []
    for name in sorted({*kept["fields"], *now["fields"]}):
        before, after = (_field(record["fields"].get(name)) for record in (kept, now))
        if before != after:
            wrong.append(f"{name} was {before} and is {after}")
    for name, what in (("columns", "columns"), ("features", "columns of x"), ("targets", "columns of y")):
        before, after = kept["learned"].get(name), now["learned"].get(name)
        if before != after:
            wrong.append(f"the {what} were {_shown(before)} and are {_shown(after)}")
    if kept["names"] != now["names"]:
        wrong.append(f"the classes were {_shown(kept['names'])} and are {_shown(now['names'])}")
    for name in ("words", "known", "window", "unit", "length"):
        if kept["learned"].get(name) != now["learned"].get(name):
            wrong.append(f"the {({'words': 'vocabulary', 'known': 'alphabet'}).get(name, name)} of the text differs")
    before, after = kept["learned"].get("resize"), now["learned"].get("resize")
    if before != after:
        wrong.append(f"images were resized by {before} and are by {after}")
    if _categories(kept) != _categories(now):
        wrong.append("the categories of the columns differ")
    was, now_is = kept.get("target"), now.get("target")
    if was and now_is and any(was[key] != now_is[key] for key in ("kind", "labels", "one_hot")):
        wrong.append(f"y was {was['reason']} and is {now_is['reason']}")
    return wrong, [] if wrong else _changed_rows(kept, now)


def _categories(record: Mapping[str, Any]) -> list[list[str]]:
    return [column["categories"] for column in record["learned"].get("encoding") or []]


def _changed_rows(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = kept.get("fingerprint"), now.get("fingerprint")
    if before and any(len(hashes) != len(before["rows"]) for hashes in before["hashes"].values()):
        raise ValueError("a fingerprint has not one hash for each row")
    if not before or not after or before["rows"] != after["rows"]:
        return []
    changed = []
    for name, hashes in before["hashes"].items():
        # Another training dtype changes every byte, and no value.
        if kept["fields"][name]["dtype"] != now["fields"][name]["dtype"] or name not in after["hashes"]:
            continue
        count = sum(a != b for a, b in zip(hashes, after["hashes"][name], strict=True))
        if count:
            changed.append(f"{name} in {count} of {len(hashes)} sampled rows")
    dtypes = [{name: field["dtype"] for name, field in record["fields"].items()} for record in (kept, now)]
    whole = [record.get("all") for record in (before, after)]
    if not changed and dtypes[0] == dtypes[1] and all(whole) and whole[0] != whole[1]:
        changed = ["some of the rows that are not sampled"]
    return [f"the training data are not those of the checkpoint: {', '.join(changed)} changed"] if changed else []


def _field(field: Mapping[str, Any] | None) -> str:
    if field is None:
        return "absent"
    kind = np.dtype(field["dtype"]).kind
    what = {"f": "floating-point", "i": "whole numbers", "u": "whole numbers"}.get(kind, field["dtype"])
    size = "" if field["size"] is None else f" below {field['size']}"
    return f"{what}{size} of shape {tuple(field['shape'])}"


def _shown(values: Any) -> str:
    if not isinstance(values, list):
        return "absent" if values is None else str(values)
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "") if values else "without names"
