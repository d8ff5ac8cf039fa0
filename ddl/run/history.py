"""A run's epochs as lists by name, from its metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ddl.metrics import read_lines


def history_of(folder: Path | None) -> dict[str, list[Any]]:
    """name -> one value per epoch; training figures by their own names, those of validation as ``validation_loss``.

    An epoch that was trained again, after training resumed from an older checkpoint, counts as the last time."""
    path = None if folder is None else folder / "metrics.jsonl"
    if path is None or not path.exists():
        return {}
    events = {line["step"]: line for line in read_lines(path) if line.get("event") == "epoch"}
    epochs = []
    for step, event in sorted(events.items()):
        parts = {"": event.get("train") or {}, "validation_": event.get("validation") or {}}
        values = {f"{start}{name}": value for start, part in parts.items() for name, value in part.items()}
        epochs.append({"epoch": event["epoch"], "step": step, **values})
    names = dict.fromkeys(name for epoch in epochs for name in epoch if not name.endswith("samples"))
    return {name: [math.nan if epoch.get(name) is None else epoch[name] for epoch in epochs] for name in names}
