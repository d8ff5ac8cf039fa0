"""Code that settings name ("package.module:Name"), and the refusal to run it for a finished run unless that is trusted.

A job file is its user's own program, which may name any code. A finished run may be another user's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ddl.config.folder import holds_run
from ddl.config.sections import Job
from ddl.errors import ConfigError
from ddl.registry import QUALIFIED

# Every setting whose value may name code, and the ones needed to open a finished run.
NAMING = (
    *("data.source", "data.augment", "model.name", "model.loss", "model.metrics", "optim.name", "optim.groups"),
    *("comm.algorithm", "train.callbacks"),
)
OPENING = ("data.source", "model.name", "model.loss", "model.metrics")


def refuse_code(job: Job, settings: Iterable[str], what: str) -> None:
    """Raises ConfigError that lists the code that ``settings`` of ``job`` name. what: where the job comes from."""
    named = [f"{name} = {text!r}" for name in settings for text in _texts(job, name) if QUALIFIED.fullmatch(text)]
    if named:
        raise ConfigError(f"{what} names code to run: {', '.join(named)}; if you trust it, add --trust")


def is_of_another_user(path: Path) -> bool:
    """Whether ``path`` is the config.toml of a run that belongs to another user; root's are trusted."""
    return (
        path.name == "config.toml"
        and holds_run(path.parent)
        and any(one.stat().st_uid not in (0, os.geteuid()) for one in (path, path.parent))
    )


def _texts(job: Job, name: str) -> Iterable[str]:
    section, key = name.split(".")
    value = getattr(getattr(job, section), key)
    for one in (value,) if isinstance(value, str) else value:
        yield str(one.get("name", "")) if isinstance(one, dict) else one
