"""Waiting for a job on a machine that does other work."""

from __future__ import annotations

import os
import subprocess
import time

TICK_S = 0.2


def ends_within(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    """Wait until a process has ended, at most ``limit_s``. Where more processes want to run than there
    are cores, time passes as much slower."""
    passed_s, before = 0.0, time.monotonic()
    while process.poll() is None:
        time.sleep(TICK_S)
        now = time.monotonic()
        passed_s += (now - before) / max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        before = now
        if passed_s > limit_s:
            return False
    return True
