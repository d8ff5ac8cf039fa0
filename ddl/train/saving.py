"""Checkpoints of a training loop: on which ranks, of which step, and what happens if one cannot be written.

loop.py decides when a checkpoint is due; ddl/checkpoint writes it."""

from __future__ import annotations

import errno
import math
import time
from typing import Any

import numpy as np

from ddl.checkpoint import Writer, read_state
from ddl.comm import Group
from ddl.errors import CheckpointError, LeaseLost
from ddl.train.signals import Due, StepRequest
from ddl.train.step import Outcome
from ddl.train.work import Work


class Saving:
    """The checkpoints of one rank. ``save`` is called on all ranks at the same steps.

    The leader writes to disk and, if copies in memory are kept, the first rank of each node to its memory.
    lease_lost: set on a leader that may no longer write the run folder; the next step informs the other ranks."""

    def __init__(self, work: Work, request: StepRequest):
        self.work, self.request = work, request
        self.lease_lost: LeaseLost | None = None
        self._writer: Writer | None = None
        self._group = work.group  # of the last ``save``
        self._saved: tuple[int, float] | None = None  # (step, score) of the newest checkpoint, on every rank
        self._problem: CheckpointError | None = None  # why the newest could not even be begun

    def lose_lease(self, error: LeaseLost) -> None:
        self.lease_lost = error
        self.work.services.log.fall_silent()

    def recovered(self) -> None:
        """After a recovery: forget what the last leader saved, since it may have died while writing."""
        self._saved = None

    def after_step(self, group: Group, outcome: Outcome) -> None:
        """Save or copy if that is due after this step; the same on all ranks."""
        every = self.request.checkpoint_every_steps
        if outcome.checkpoint is Due.DISK or (every and outcome.step % every == 0):
            self.save(group)
        elif outcome.checkpoint is Due.COPY:
            self.copy(group)

    def save(self, group: Group) -> None:
        """Begin to write the state, unless the same step has been saved with the same score; a background thread
        finishes. The time until the next checkpoint that is due by the clock starts again."""
        self.request.last_checkpoint = self.request.last_copy = time.monotonic()
        progress = self.work.state.progress
        if progress.final and progress.final["step"] != progress.step:
            return  # the best state has been restored, after the newest was written
        # The store keeps the highest score, and the validation loss should be low.
        validated = progress.validated_at == progress.step
        score = -progress.results["validation"]["loss"] if validated else math.nan
        improved = math.isfinite(score) and self.request.keep_best
        if self._saved is not None and self._saved[0] == progress.step and (self._saved[1] == score or not improved):
            return
        self._group, self._saved = group, (progress.step, score)
        self.work.gather(group, {0, *(ranks[0] for ranks in group.nodes if self.request.in_memory)})
        self._submit(score)

    def copy(self, group: Group) -> None:
        """Begin to renew the checkpoints in memory only, unless an earlier write is not done yet."""
        began = self.request.last_copy = time.monotonic()
        if self._saved is None or self._saved[0] != self.work.state.progress.step:
            self._group = group
            self.work.gather(group, {ranks[0] for ranks in group.nodes})
            self._submit(math.nan, to_disk=False)
            writing_s = self._writer.write_s if self._writer is not None else 0.0
            self.request.copy_s = time.monotonic() - began + writing_s

    def wait(self) -> None:
        """Until the newest checkpoint, the last one, is written. One that failed is tried again, since there may be
        room now, and then as long as older ones can be deleted to make room.

        Raises CheckpointError if that fails as well, LeaseLost if a newer generation holds the run folder."""
        is_first = True
        try:
            while (error := self._failure()) is not None:
                if not is_first and not self._make_room(error):
                    raise error
                is_first = False
                self._submit(self._saved[1] if self._saved is not None else math.nan)
        except LeaseLost as lost:
            self.lose_lease(lost)
            raise

    def best(self, score: float) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, meta) of the best checkpoint on disk, on the leader, after the newest is written.

        Raises CheckpointError if it cannot be read, or is not the one of ``score``; LeaseLost."""
        self.wait()
        store = self._writer.store if self._writer is not None else None
        path = store.best() if store is not None else None
        if store is None or path is None:
            raise CheckpointError("no checkpoint of it was written")
        if read_state(path)["score"] != score:
            raise CheckpointError(f"{path.name} is of another history of this run")
        return store.load(path)

    def _failure(self) -> CheckpointError | None:
        """Why the newest checkpoint was not written; waits for it. Raises LeaseLost."""
        if self._problem is None and self._writer is not None:
            try:
                self._writer.wait()
            except CheckpointError as error:
                return error
        return self._problem

    def _make_room(self, error: CheckpointError) -> bool:
        cause, store = error.__cause__, self._writer.store if self._writer is not None else None
        is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        return is_full and store is not None and store.make_room()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _submit(self, score: float, *, to_disk: bool = True) -> None:
        work, group, services = self.work, self._group, self.work.services
        keeps_copy = self.request.in_memory and group.rank == group.local_ranks[0]
        if to_disk:
            self._problem = None
        if not (keeps_copy or (group.is_leader and to_disk)):
            return
        if self._writer is not None and group.is_leader and self._writer.store is None:
            self._writer.close()  # it wrote to memory only, and this rank has become the leader since
            self._writer = None
        progress = work.state.progress
        meta = {"progress": work.state.meta()["progress"], **work.task.settings}
        try:
            if self._writer is None:
                self._writer = services.open_writer(group)
                if self._writer is None:
                    return
                self._writer.beat = lambda: services.beat(progress.step, "checkpoint")
            with services.span("checkpoint"):
                score_or_none = score if math.isfinite(score) else None
                self._writer.submit(progress.step, work.named(), meta, score_or_none, to_disk=to_disk)
        except LeaseLost as error:
            self.lose_lease(error)
        except OSError as error:  # the run folder cannot be claimed
            self._problem = CheckpointError(f"a checkpoint was not written: {error}")
            services.log.warn(str(self._problem))
