"""Services that training needs from the job around it: a run log, the run folder, the watchdog, a trace.

The base classes do nothing, which suits tests and benchmarks; ddl/run implements them for real jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ddl.checkpoint import Writer
from ddl.comm import Group
from ddl.errors import DdlError
from ddl.fault.decision import RankDeath
from ddl.fault.recover import Report
from ddl.train.state import Progress, TrainingState
from ddl.train.step import Outcome


class Reporter:
    """Reports of the leader about a run. Every rank has one, since every rank may become the leader.

    has_started: whether the start of this launch was written. ranks_started: with how many ranks it began."""

    has_started: bool = True
    ranks_started: int = 0

    def to_json(self) -> dict[str, Any]:
        """What another rank needs to continue the report; it travels with the state."""
        return {}

    def become(self, values: Mapping[str, Any]) -> None:
        """Take over another rank's ``to_json``."""

    def lead(self) -> None:
        """This rank writes from now on."""

    def fall_silent(self) -> None:
        """This rank writes nothing any more: a newer generation or launch holds the run folder."""

    def touch(self) -> None:
        """Called during long waits, so that the supervisor sees that the job is alive."""

    def warn(self, message: str) -> None:
        """Show one line to the user."""

    def step(self, outcome: Outcome, generation: int, owners: tuple[int, ...]) -> None:
        """Report a committed step. owners: shard -> identity of the rank that computed it."""

    def moved(self, step: int, moved: Mapping[int, Sequence[int]], seconds: Mapping[int, float]) -> None:
        """Report that shards have moved to faster ranks; see ``ShardsMoved``."""

    def missed(self, outcome: Outcome, generation: int, owners: tuple[int, ...]) -> None:
        """Report the step unless an earlier leader has done so."""

    def epoch(self, epoch: int, progress: Progress, waited: Mapping[int, float]) -> None:
        """Report the end of an epoch, with its results. waited: identity -> seconds that this rank spent in sums."""

    def missed_epoch(self, epoch: int, progress: Progress, waited: Mapping[int, float]) -> None:
        """Report the end of the epoch unless an earlier leader has done so."""

    def recovered(self, report: Report) -> None:
        """Report the deaths and the recovery; called on every rank."""

    def end(
        self,
        state: TrainingState,
        digest: str,
        ranks: int,
        samples_per_s: float,
        status: str,
        failure: DdlError | None = None,
    ) -> DdlError | None:
        """Write the summary. digest: of the parameters. ranks: at the end. Returns why the job has failed, or None."""
        return None

    def close(self) -> None:
        """Close the files."""


class Services:
    """The job around a training loop. log: the run log."""

    def __init__(self, log: Reporter | None = None):
        self.log = log or Reporter()

    def beat(self, step: int, phase: str) -> None:
        """This rank made progress; the watchdog counts from here."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Wraps a part of a step, for tracing."""
        return nullcontext()

    def open_writer(self, group: Group) -> Writer | None:
        """The writer of checkpoints for a rank of ``group``; None if the job writes none.

        Raises LeaseLost if a newer generation holds the run folder, OSError if it cannot be used."""
        return None

    def claim_folder(self, group: Group) -> None:
        """Make ``group`` the generation that writes the run folder. Raises LeaseLost or OSError, as above."""

    def check_lease(self) -> None:
        """Raises LeaseLost if a newer generation holds the run folder. Cheap: called after every step."""

    def announce(self) -> None:
        """Report that the job begins."""

    def note_exception(self, error: Exception, death: RankDeath) -> RankDeath:
        """Leave a note that code of this rank raised; returns ``death`` with what the note says about the error."""
        return death
