"""What one rank trains, and what it trains with in its generation: all that a recovery has to save or to make anew.

When a step is made of it, and what comes after a failure, is loop.py's."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl.arrays import Device, host
from ddl.comm import Group
from ddl.data import Loader, Normalise, Plan, assign, combine, moments
from ddl.errors import ConfigError, DdlError, UserCodeError, UserError
from ddl.fault.decision import Death
from ddl.models.model import gradient_layout
from ddl.parallel import GradientSum
from ddl.train.state import Progress, State
from ddl.train.step import FIXED, LOSS, WEIGHT, Outcome, Span, Step, no_span
from ddl.train.task import Task

if TYPE_CHECKING:  # the run log is handed in: this room does not know where it is kept
    from ddl.run.log import Journal

# From so many bytes of parameters and so many ranks on a node on they update one replica together. 2 ranks on 2 cores
# were as fast with a replica each; on 4 ranks it took 7 to 10 % off the step of an MLP of 2 MiB, and a fifth off that
# of a text classifier, whose update is most of its step.
SHARDED_BYTES, SHARDED_RANKS = 1 << 20, 3


class Work:
    """A task with its state on this rank, bound to a generation: its group, plan, shards and sums (what
    ``fault.recover.Recoverable`` asks for).

    state: fresh or restored, equal on all workers. journal: goes with the state, so that any rank can take it up.
    beat: told (step, phase) whenever this rank gets somewhere. last: what the newest committed step came to."""

    def __init__(
        self,
        task: Task,
        group: Group,
        device: Device,
        state: State,
        journal: Journal,
        *,
        beat: Callable[[int, str], None] = lambda step, phase: None,
        span: Span = no_span,
    ):
        self.task, self.group, self.device, self.state, self.journal = task, group, device, state, journal
        self.beat, self.span = beat, span
        self.plan = assign(task.order.shards, group.size)
        self.step: Step | None = None
        self.loader: Loader | None = None
        self.total: GradientSum | None = None
        self.last: Outcome | None = None

    def position(self) -> tuple[int, int]:
        return self.state.progress.position

    def flat_arrays(self) -> list[np.ndarray]:
        return [host(flat) for flat in self.state.flat_arrays()]

    def meta(self) -> dict[str, Any]:
        return {"progress": self.state.progress.to_json(), "journal": self.journal.to_json(), "last": self.last}

    def take_over(self, arrays: list[np.ndarray], meta: dict[str, Any]) -> None:
        self.state.assign(arrays)
        self.state.progress.become(Progress.from_json(meta["progress"]))
        self.journal.become(meta["journal"])
        self.last = meta["last"]

    def attach(self, group: Group, plan: Plan) -> DdlError | None:
        """Bind to a generation. The error of a shard that some rank cannot open is returned on every rank."""
        self.detach()
        task, shards = self.task, plan.shards_of(group.rank)
        if task.model.synchronised and group.size > task.order.shards:
            return ConfigError(
                f"synchronised batch norm needs work on every rank: {group.size} ranks share {task.order.shards} shards"
            )
        problem = tried(lambda: task.train.hold([task.order.shard_range(shard) for shard in shards]))
        unknown = task.normalise != "none" and self.state.progress.normalise is None
        told = group.gather_objects((problem, unknown))
        for found, _ in told:
            if found is not None:
                return found
        if any(lacks for _, lacks in told):
            parts = group.gather_objects(moments(task.train, task.order, shards))
            every = {shard: sums for part in parts for shard, sums in part.items()}
            self.state.progress.normalise = combine(every, task.normalise, task.dtype).to_json()
        self.group, self.plan = group, plan
        self.loader = Loader(
            task.train,
            task.order,
            shards,
            transforms=[*self.transforms, *task.augment],
            prefetch=task.prefetch,
            seed=task.seed,
            parts=task.parts,
        )
        self.total = GradientSum(
            group,
            gradient_layout(task.model, task.dtype),
            Step.header_length(task.model),
            device=self.device,
            algorithm=task.algorithm,
            bucket_mib=task.bucket_mib,
            overlap="off" if task.model.synchronised else task.overlap,
            tuning=task.tuning,
            # Sums of averages lie behind the gradients and come with those of the first layers as well as of the last.
            order=[*reversed(list(task.model.params)), *task.model.averages],
            by_rows=task.model.by_rows,
            gpu=task.gpu,
            replica=self.state.replica.flat_arrays() if self._updates_shares(group) else (),
            span=self.span,
        )
        self.step = Step(
            task.model,
            self.state,
            task.optimizer,
            task.lr,
            task.order,
            self.loader,
            shards,
            group,
            self.total,
            seed=task.seed,
            parts=task.parts,
            clip_norm=task.clip_norm,
            span=self.span,
            beat=self.beat,
        )
        return None

    def detach(self) -> None:
        for part in (self.loader, self.total):
            if part is not None:
                part.close()
        self.loader = self.total = self.step = None
        self.state.leave()

    def _updates_shares(self, group: Group) -> bool:
        """Whether the ranks of a node should update one replica together; the same on all ranks."""
        most = max(len(ranks) for ranks in group.nodes)
        if self.task.sharded == "off" or not self.task.optimizer.is_elementwise or most == 1:
            return False
        return self.task.sharded == "on" or (self.state.layout.nbytes >= SHARDED_BYTES and most >= SHARDED_RANKS)

    @property
    def transforms(self) -> list[Normalise]:
        """What evaluation, prediction and training all do to a batch."""
        known = self.state.progress.normalise
        return [] if known is None else [Normalise.from_json(known)]

    def epoch_means(self) -> dict[str, Any]:
        """Loss and metrics of the running epoch, as summed step by step."""
        sums = self.state.progress.epoch_sums
        if not sums or not sums[WEIGHT]:
            return {}
        metrics = dict(zip(self.task.model.step_metrics, sums[FIXED:], strict=True))
        return {"loss": sums[LOSS] / sums[WEIGHT], **self.task.model.metric_values(metrics, sums[WEIGHT])}

    def describe(self, error: Exception) -> Death:
        me, shards = self.group.me, frozenset(self.plan.shards_of(self.group.rank))
        return Death(me.identity, me.host, "exception", self.state.progress.step, shards, repr(error))


def tried(action: Callable[[], None]) -> DdlError | None:
    """What an action failed with, which may be code of the user's or this machine's alone; None when it did not."""
    try:
        action()
    except UserError as error:
        return error
    except Exception as error:
        return UserCodeError(f"the data could not be opened: {error!r}", "".join(traceback.format_exception(error)))
    return None
