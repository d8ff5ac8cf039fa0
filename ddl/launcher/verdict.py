"""Decide what follows the end of a launch: a pure function from its facts to an exit status, or another start.

evidence.py reads the facts from the run folder; supervisor.py carries out the decision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ddl.errors import EX_TEMPFAIL, EX_USAGE

SAME_STEP = 3  # a step that fails this often in a row is not going to succeed


@dataclass(frozen=True)
class Ended:
    """How a launch ended. returncode: mpirun's, which proves little. summary: the one this launch wrote, or empty.

    step: the last step known to be committed, -1 if none. failed_at: the same for earlier failed launches. asked: the
    signal with which the user or the system asked the job to end, or "". taken_over_by: another launch that owns the
    run folder now."""

    returncode: int
    summary: dict[str, Any] = field(default_factory=dict)
    step: int = -1
    progressed: bool = False
    failed_at: tuple[int, ...] = ()
    restarts_left: int = 0
    asked: str = ""
    overdue_s: float = 0.0
    hosts: int = 1
    taken_over_by: str = ""


@dataclass(frozen=True)
class Verdict:
    """status: the exit status; None: start again. reason: a message for the user."""

    status: int | None
    reason: str


def taken_over(by: str) -> Verdict:
    """The verdict for a supervisor whose run folder now belongs to another launch."""
    return Verdict(EX_TEMPFAIL, f"launch {by} has taken over the run folder, so this one ends")


def decide(now: Ended) -> Verdict:
    """Whether the job is done, cannot succeed, or must be started again."""
    status, step = now.summary.get("status"), max(now.step, 0)
    error = f": {now.summary['error']}" if now.summary.get("error") else ""
    if status == "finished":
        return Verdict(0, "finished")
    if now.taken_over_by:
        return taken_over(now.taken_over_by)
    if status == "failed":
        return Verdict(int(now.summary.get("exit_status") or 1), f"failed after step {step}{error}")
    if now.asked:
        when = f"after step {step}; starting it again resumes there" if step else "before its first step"
        return Verdict(EX_TEMPFAIL, f"ended by {now.asked} {when}")
    if now.returncode == EX_USAGE and not now.progressed:
        return Verdict(EX_USAGE, "")  # the rank that found the error has printed it
    # A launch that made no progress, or that ranks ended because others were lost, is worth another try.
    is_code_error = status != "stopped" and not now.overdue_s and now.hosts == 1
    if now.returncode == 1 and not now.progressed and not now.failed_at and is_code_error:
        return Verdict(1, "failed before its first step")  # a bug in code, not the death of a machine
    what = f"ended early after step {step}{error}" if status == "stopped" else f"lost after step {step}"
    if now.overdue_s:
        what = f"made no progress for {now.overdue_s:.0f} s after step {step} and was killed"
    if (*now.failed_at, now.step)[-SAME_STEP:] == (now.step,) * SAME_STEP:
        return Verdict(1, f"{what}, the {SAME_STEP}rd time at the same step: starting it again would not help")
    if not now.restarts_left:
        return Verdict(EX_TEMPFAIL if status == "stopped" else 1, f"{what}; no restart is left (--restarts)")
    return Verdict(None, what)
