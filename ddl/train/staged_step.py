"""A step of a model that is cut into stages: micro-batches flow through them, then each stage commits its own share.

ddl/pipeline has the flow; step.py what all steps have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl.arrays import Array, FlatBuffer, Views
from ddl.nn.context import Context
from ddl.parallel import Total
from ddl.pipeline import Column, Flow
from ddl.train.step import FIXED, LOSS, SAMPLES, WEIGHT, Outcome, Step

if TYPE_CHECKING:
    from ddl.train.staged import StagedWork

NO_VIEWS = Views({})


class StagedStep(Step):
    """The step of one rank of ``work``'s grid. shards: those of its replica.

    The sum over the ranks of a stage is followed by one of headers and norms over all ranks. A rank that has that can
    commit: if some have when a rank dies in the barrier behind it, the others follow them (``StagedWork.commit``)."""

    def __init__(self, work: StagedWork, shards: Sequence[int]):
        assert work.loader is not None and work.total is not None
        super().__init__(work.stage_task, work.state, work.loader, shards, work.group, work.total, work.services)
        self.work, self.stage, self.column = work, work.stage, work.column
        self.seed = work.task.seed
        self.twins = Column(work.group, work.grid.computing(self.stage.number)) if work.chain else None
        self.flow = Flow(work.group, work.chain, self.stage, self.parts, work.device, self._context) if shards else None
        self._trained_norm = math.nan
        borrowed = self.stage.of_borrowed
        self.borrowed, self._more_borrowed = FlatBuffer(borrowed), FlatBuffer(borrowed)
        self._now: tuple[int, int, int] = (0, 0, 0)  # step, epoch, step in the epoch

    def _context(self) -> Context:
        made = Context(training=True, seed=self.seed, span=self.span)
        made.sum_over_ranks = self._sum_over_ranks
        return made

    def _sum_over_ranks(self, x: Array) -> Array:
        total = np.ascontiguousarray(x)
        assert self.twins is not None
        self.twins.native_allreduce(total)
        return total

    def _compute(self, step: int, epoch: int, step_in_epoch: int, header: np.ndarray) -> None:
        self._now = step, epoch, step_in_epoch
        if self.flow is None:
            self._clear(self.total.local)
            return
        self.group.probe("step.compute")
        self.beat(step, "compute")
        before = self.flow.waited_s
        self._flow(self, self.parts)
        with self.span("messages"):
            self.flow.give_back(self.borrowed.views, self.total.local.views)
        self.waited_s += self.flow.waited_s - before

    def _flow(self, micros: Any, count: int) -> None:
        assert self.flow is not None
        params = self.flow.borrow(self.state.params.views)
        self.flow.train(self.stage.views(params, self.state.buffers), micros, count)

    # The micro-batches of a step (``ddl.pipeline.Micros``).

    def rows(self, number: int) -> int:
        return self._segments(number)[-1].stop

    def segments(self, number: int) -> int:
        return len(self.shards)

    def _segments(self, number: int) -> list[slice]:
        _, epoch, step_in_epoch = self._now
        return self.order.indices(epoch, step_in_epoch, self.shards, number, self.parts)[1]

    def begin(self, number: int, ctx: Context) -> Mapping[str, Array]:
        step, epoch, step_in_epoch = self._now
        self.beat(step, "compute")
        ctx.begin(self._segments(number), self.shards, step, number)
        if not self.loader.shards:
            return {}
        with self.span("load"):
            batch, _ = self.loader.batch(epoch, step_in_epoch, number)
        assert self.flow is not None
        # The loader reuses the arrays of a batch after two more, and a stage may still compute with it then.
        copied = self.flow.kept > 2
        return {name: self.state.device.array(np.array(x) if copied else x) for name, x in batch.items()}

    def measured(self, number: int, loss: float, weight: float, sums: Mapping[str, Any]) -> None:
        header = self.total.header
        header[WEIGHT] += weight
        header[LOSS] += loss
        header[SAMPLES] += self.rows(number)
        for place, name in enumerate(self.metrics, FIXED):
            header[place] += float(sums[name])

    def gradients(self, number: int) -> Views:
        own = self.total.local if number == 0 else self._scratch_buffer()
        others = self.borrowed if number == 0 else self._more_borrowed
        return self.stage.views(own.views, others.views)

    def computed(self, number: int) -> None:
        if number > 0:
            self.total.local.flat += self._scratch_buffer().flat
            self.borrowed.flat += self._more_borrowed.flat

    # Sum and commit.

    def _sum(self) -> Total:
        """The stage's gradient, with the header and the norm of all stages."""
        found = self.total.finish()
        word = np.zeros(len(found.header) + 2)
        if self.column.rank == 0:
            word[:-2] = found.header
            word[-2] = found.squared_norm
            progress, gradient = self.state.progress, found.gradient[: self.state.layout.length]
            word[-1] = self.optimizer.squared_norm(gradient, progress.step - progress.skipped)
        self.group.native_allreduce(word)
        self._trained_norm = float(word[-1])
        return Total(found.gradient, word[:-2], float(word[-2]))

    def _norm_of(self, gradient: Array, squared_norm: float) -> float:
        return self._trained_norm

    def _conclude(self, commit: Callable[[], Outcome]) -> Outcome:
        outcome: Outcome = self.work.commit(commit)
        return outcome

    def _find_bad_shards(self, step: int, epoch: int, step_in_epoch: int) -> dict[int, str]:
        scratch, bad = self._scratch_buffer(), set[int]()
        if self.synchronised:
            bad = set() if np.isfinite(self.total.local.flat).all() else set(self.shards)
        for shard in [] if self.synchronised else self.shards:
            for part in range(self.parts):
                one = _OneShard(self, shard, part)
                if one.rows(0):
                    self._flow(one, 1)
                    if not (one.finite and np.isfinite(scratch.flat).all()):
                        bad.add(shard)
        own = [(shard, self.loader.not_finite(epoch, step_in_epoch, [shard])) for shard in sorted(bad)]
        if not self.loader.shards:
            own = [(shard, "") for shard, _ in own]
        # Ranks of several stages find the same shard; the first of them to know a value names it.
        found: dict[int, str] = {}
        for shard, value in (pair for pairs in self.group.gather_objects(own) for pair in pairs):
            found[shard] = found.get(shard) or value
        return dict(sorted(found.items()))


class _OneShard:
    """One shard's rows of a micro-batch, computed alone (``ddl.pipeline.Micros``). finite: whether its loss is."""

    def __init__(self, step: StagedStep, shard: int, part: int):
        self.step, self.shard, self.part, self.finite = step, shard, part, True
        _, self.epoch, self.step_in_epoch = step._now
        self._segments = step.order.indices(self.epoch, self.step_in_epoch, [shard], part, step.parts)[1]

    def rows(self, number: int) -> int:
        return self._segments[-1].stop

    def segments(self, number: int) -> int:
        return 1

    def begin(self, number: int, ctx: Context) -> Mapping[str, Array]:
        ctx.begin(self._segments, [self.shard], self.step._now[0], self.part)
        loader = self.step.loader
        if not loader.shards:
            return {}
        batch, _ = loader.direct(self.epoch, self.step_in_epoch, self.part, [self.shard])
        return {name: self.step.state.device.array(x) for name, x in batch.items()}

    def measured(self, number: int, loss: float, weight: float, sums: Mapping[str, Any]) -> None:
        self.finite = math.isfinite(loss) and math.isfinite(weight)

    def gradients(self, number: int) -> Views:
        return self.step.gradients(1)

    def computed(self, number: int) -> None:
        """They stay in the scratch buffer."""
