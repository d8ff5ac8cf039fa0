"""The folder of a run: what in it tells one launch from another. Which folder it is, is config's."""

from __future__ import annotations

import os
import time
import uuid

from ddl.config.folder import holds_run, run_folder

__all__ = ["holds_run", "new_launch", "run_folder"]


def new_launch() -> str:
    """This launch's id: the supervisor's, where there is one, so that it knows its own summary.json."""
    return os.environ.get("DDL_LAUNCH") or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
