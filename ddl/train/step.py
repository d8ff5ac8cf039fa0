"""One training step: compute this rank's shards, sum the gradients over all ranks, commit.

The loop around it is in loop.py; a failure propagates as PeerLost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ddl.arrays import Arena, Array, FlatBuffer, Views, host
from ddl.comm import Group
from ddl.data import Loader
from ddl.kernels.cache_flush import flush
from ddl.kernels.sparse_rows import TouchedRows
from ddl.models.model import Model, gradient_layout
from ddl.nn.context import Context
from ddl.optim import gradient_scale
from ddl.parallel import GradientSum, Total
from ddl.train.signals import Due
from ddl.train.state import TrainingState
from ddl.train.task import Task
from ddl.wording import numbered

if TYPE_CHECKING:
    from ddl.train.services import Services

# The float64 header that travels with the gradients; step metrics follow.
WEIGHT, LOSS, SAMPLES, STOP, CHECKPOINT, LEASE_LOST, FIXED = range(7)


@dataclass(frozen=True)
class Outcome:
    """The result of a committed step: the same on every rank.

    loss and metrics are means over the step's weight; they are NaN if the step was skipped.
    bad_shards: of a step that was skipped. bad_value: the value among their data that is not finite, if there is
    one, or the reason if there are no bad shards.
    checkpoint: which one the leader asked for. lease_lost: whether any rank lost the right to write the run folder."""

    step: int
    epoch: int
    loss: float
    metrics: dict[str, float]
    weight: float
    samples: int
    lr: float
    gradient_norm: float
    skipped: bool
    bad_shards: tuple[int, ...]
    checkpoint: Due
    lease_lost: bool = False
    bad_value: str = ""

    @property
    def why_skipped(self) -> str:
        """Why the step was skipped, for the user."""
        if not self.bad_shards:
            return self.bad_value or "the sum of the gradients is not finite"
        value = f" ({self.bad_value})" if self.bad_value else ""
        return f"values of {numbered('shard', self.bad_shards)} are not finite{value}"


class Step:
    """The step of one rank in one generation: bound to a group, a plan's shards and the state it commits to.

    shards: the shards that this rank computes. meets_in_layers: synchronised layers take their sums over all ranks."""

    meets_in_layers = True

    def __init__(
        self,
        task: Task,
        state: TrainingState,
        loader: Loader,
        shards: Sequence[int],
        group: Group,
        total: GradientSum,
        services: Services,
    ):
        model = task.model
        self.model, self.state, self.optimizer = model, state, task.optimizer
        self.lr = task.lr_over(state.progress.schedule_span)
        self.order, self.loader, self.shards, self.group, self.total = task.order, loader, list(shards), group, total
        self.parts, self.clip_norm, self.early_steps = task.parts, task.clip_norm, task.early_steps
        self.span, self.beat = services.span, services.beat
        self.context = Context(training=True, seed=task.seed, arena=Arena(state.device.xp), span=services.span)
        self.metrics = list(model.step_metrics)
        self.by_rows = model.by_rows
        self.synchronised = model.synchronised and self.meets_in_layers
        if self.synchronised and group.size > 1:
            self.context.sum_over_ranks = self._sum_over_ranks
        self.layout = gradient_layout(model, state.layout.dtype)
        self._scratch: FlatBuffer | None = None
        # In which each rank computed the newest step; they travel behind the header. Empty without ``train.balance``.
        self.seconds = np.zeros(group.size if task.balance and group.size > 1 else 0)
        self.waited_s = 0.0  # in the sums of the steps: for other ranks, for messages and for the additions
        # The sum also contains averages, which are not gradients, and gradients of frozen parameters.
        self._averages = dict(model.averages)
        self._counters = [name for name, kept in model.kept.items() if kept.counts]
        self._norm_differs = bool(self._averages) or task.optimizer.frozen
        self._shares = bool(total.replicas)  # the ranks of a node update one replica
        if self._shares:
            state.lodge(*total.replicas)
        else:
            state.own()

    @staticmethod
    def header_length(model: Model) -> int:
        return FIXED + len(model.step_metrics)

    def run(self, stop: bool = False, checkpoint: Due = Due.NO, lease_lost: bool = False) -> Outcome:
        """Compute, sum and commit the next step. Raises PeerLost with the state untouched.

        stop: this rank's request. checkpoint: the leader's; other ranks have none. lease_lost: this rank may no longer
        write the run folder. They are summed in the header, so that all ranks act on them after the same step."""
        progress = self.state.progress
        step = progress.step
        epoch, step_in_epoch = divmod(step, self.order.steps_per_epoch)
        header = self.total.header
        header[:] = 0
        header[STOP], header[CHECKPOINT], header[LEASE_LOST] = stop, checkpoint, lease_lost
        began = time.perf_counter()
        self._compute(step, epoch, step_in_epoch, header)
        self.beat(step, "sum")
        self.group.probe("step.sum")
        computed, began = time.perf_counter() - began, time.perf_counter()
        common = len(header) - len(self.seconds)
        if len(self.seconds):
            header[common + self.group.rank] = computed
        with self.span("sum"):
            summed = self._sum()
        self.waited_s += time.perf_counter() - began
        finite = math.isfinite(summed.squared_norm) and bool(np.isfinite(summed.header).all())
        bad = {} if finite else self._find_bad_shards(step, epoch, step_in_epoch)
        self.beat(step, "update")
        self.group.probe("step.commit")
        sums = summed.header[:common]
        self.seconds[:] = summed.header[common:]
        with self.span("update"):
            return self._conclude(
                partial(self._commit, step, epoch, summed.gradient, sums, summed.squared_norm, bad, not finite)
            )

    def _conclude(self, commit: Callable[[], Outcome]) -> Outcome:
        """The sum's closing barrier has returned: every rank can commit."""
        return commit()

    def _sum(self) -> Total:
        """The sums over all ranks; where a replica is shared, its next version is prepared meanwhile."""
        return self.total.finish(self._prepare, self.clip_norm > 0) if self._shares else self.total.finish()

    def _prepare(self, places: Sequence[slice], summed: Total) -> None:
        """Compute this rank's share of the replica that the commit will switch to, unless the step is skipped."""
        weight, progress = float(summed.header[WEIGHT]), self.state.progress
        if not 0 < weight < math.inf:
            return
        scale = 1 / weight
        if self.clip_norm:
            if not math.isfinite(summed.squared_norm):
                return
            scale, _ = gradient_scale(self._norm_of(summed.gradient, summed.squared_norm), weight, self.clip_norm)
        lr, updates = self.lr(progress.step), progress.step - progress.skipped
        length = self.state.layout.length
        new, old = ((it.params.flat, it.slots) for it in (self.state.coming, self.state.replica))
        with np.errstate(all="ignore"):  # the commit skips a sum that is not finite; here only a share of it is known
            for place in places:
                self.group.probe("step.prepare")
                if self.total.flushes:  # until the last commit all ranks of the node read this replica: it is in caches
                    flush(new[0], min(place.start, length), min(place.stop, length))
                self.optimizer.update_into(new, old, summed.gradient, lr, updates, scale, place)
            self.optimizer.prune_into(new, old, updates, places)

    def _norm_of(self, gradient: Array, squared_norm: float) -> float:
        """The squared norm of the gradients of trained parameters. squared_norm: of everything that was summed."""
        if not self._norm_differs:
            return squared_norm
        progress = self.state.progress
        return self.optimizer.squared_norm(gradient[: self.state.layout.length], progress.step - progress.skipped)

    def _compute(self, step: int, epoch: int, step_in_epoch: int, header: np.ndarray) -> None:
        """Write the summed gradients of this rank's shards to ``total.local``, and the sums of its header."""
        local = self.total.local
        if not self.shards:  # more ranks than shards: this one only takes part in the sum
            self._clear(local)
            return
        announce = self.total.announce if self.parts == 1 else None
        for part in range(self.parts):
            target = local if part == 0 else self._scratch_buffer()
            self._micro_batch(step, epoch, step_in_epoch, part, header, target, announce=announce)
            if part > 0:
                local.flat += target.flat
                written, more = local.views.zero_outside, target.views.zero_outside
                for name in list(written):
                    if name in more:
                        written[name] = np.concatenate([host(written[name]), host(more[name])])
                    else:
                        del written[name]

    def _micro_batch(
        self,
        step: int,
        epoch: int,
        step_in_epoch: int,
        part: int,
        header: np.ndarray,
        target: FlatBuffer,
        params: FlatBuffer | None = None,
        announce=None,
    ) -> None:
        """Write the summed gradients of one micro-batch to ``target`` and add to the sums of ``header``.

        params: default: the committed parameters."""
        self.beat(step, "load")
        self.group.probe("step.load")
        with self.span("load"):
            batch, segments = self.loader.batch(epoch, step_in_epoch, part)
        rows = segments[-1].stop if segments else 0
        if rows == 0 and not self.synchronised:
            self._clear(target)
            return
        self.beat(step, "compute")
        self.group.probe("step.compute")
        with self.span("compute"):
            loss, weight, sums = self._gradients(
                batch, segments, self.shards, step, part, target.views, params, announce
            )
        header[WEIGHT] += weight
        header[LOSS] += loss
        header[SAMPLES] += rows
        for place, name in enumerate(self.metrics, FIXED):
            header[place] += float(sums[name])

    def _clear(self, target: FlatBuffer) -> None:
        """Zero all gradients."""
        target.flat[...] = 0
        target.views.zero_outside.update({name: np.empty(0, np.int64) for name in self.by_rows})

    def _sum_over_ranks(self, x: Array) -> Array:
        """The sum that synchronised layers use in forward and backward; nothing else uses the group meanwhile."""
        total = np.ascontiguousarray(host(x))
        self.group.native_allreduce(total)
        return self.state.device.array(total)

    def _gradients(self, batch, segments, shards, step: int, part: int, grads: Views, params=None, announce=None):
        params = params or self.state.params
        ctx, written, announced = self.context, grads.zero_outside, set()

        def on_complete(names: Sequence[str | TouchedRows]) -> None:
            for name in names:
                if isinstance(name, TouchedRows) and name.name in self.by_rows:
                    # A copy: the rows may be the batch's own tokens, whose memory the next batch reuses.
                    written[name.name] = name.rows.astype(np.int64).reshape(-1)
                    announced.add(name.name)
            if announce is not None:
                announce([str(name) for name in names])

        ctx.begin(segments, shards, step, part, on_complete)
        if self.state.device.is_gpu:
            batch = {name: self.state.device.array(value) for name, value in batch.items()}
        result = self.model.loss_and_gradients(params.views, self.state.buffers, batch, grads, ctx)
        for name in written.keys() - announced:  # their rows are unknown in this step, so they travel as a whole
            del written[name]
        return result

    def _scratch_buffer(self) -> FlatBuffer:
        if self._scratch is None:
            with self.state.device.activate():
                self._scratch = FlatBuffer(self.layout, xp=self.state.device.xp)
        return self._scratch

    def _find_bad_shards(self, step: int, epoch: int, step_in_epoch: int) -> dict[int, str]:
        """The shards whose gradients are not finite, and the value of their data that is not finite ("": none is).

        Every rank computes its own one by one, and all exchange them.
        Costs a step, and runs only after a sum that is not finite, which every rank sees."""
        scratch, bad = self._scratch_buffer(), list[int]()
        if self.synchronised:
            # Synchronised layers need all ranks, so shards cannot be computed alone; each rank checks its own sum.
            finite = bool(np.isfinite(self.total.local.flat).all())
            bad = [] if finite else list(self.shards)
        for shard in [] if self.synchronised else self.shards:
            for part in range(self.parts):
                batch, segments = self.loader.direct(epoch, step_in_epoch, part, [shard])
                if segments[-1].stop == 0:
                    continue
                loss, weight, _ = self._gradients(batch, segments, [shard], step, part, scratch.views)
                if not (math.isfinite(loss) and math.isfinite(weight) and bool(np.isfinite(scratch.flat).all())):
                    bad.append(shard)
                    break
        own = [(shard, self.loader.not_finite(epoch, step_in_epoch, [shard])) for shard in bad]
        return dict(sorted(pair for pairs in self.group.gather_objects(own) for pair in pairs))

    def _commit(
        self,
        step: int,
        epoch: int,
        gradient: Array,
        header: np.ndarray,
        squared_norm: float,
        bad: Mapping[int, str],
        skipped: bool,
    ) -> Outcome:
        """Change parameters, slots, averages and counters together. Nothing here communicates, so it cannot be torn."""
        progress, state = self.state.progress, self.state
        weight, samples, lr = float(header[WEIGHT]), int(header[SAMPLES]) if not skipped else 0, self.lr(step)
        norm = math.nan
        if not skipped and weight > 0:
            scale, norm = gradient_scale(self._norm_of(gradient, squared_norm), weight, self.clip_norm)
            updates = step - progress.skipped
            if self._shares:
                state.advance()
            else:
                own = gradient[: state.layout.length]
                self.optimizer.update(state.params.flat, own, state.slots, lr, updates, scale)
            for name, average in self._averages.items():
                average.advance(state.buffers[name], gradient[self.layout.slices[name]], header[SAMPLES], updates)
            for counter in self._counters:
                count = state.buffers[counter]
                count += 1
        if step % self.order.steps_per_epoch == 0 or not progress.epoch_sums:
            progress.epoch_sums = [0.0] * len(header)
        if skipped:
            progress.skipped += 1
            progress.skipped_in_row += 1
        else:
            progress.epoch_sums = [a + float(b) for a, b in zip(progress.epoch_sums, header, strict=True)]
            if step < self.early_steps:
                loss, early = progress.early_sums
                progress.early_sums = [loss + float(header[LOSS]), early + weight]
            progress.skipped_in_row = 0
            progress.samples += samples
        progress.stopping = bool(header[STOP])
        progress.step = step + 1
        return Outcome(
            step=step + 1,
            epoch=epoch,
            loss=float(header[LOSS]) / weight if not skipped and weight else math.nan,
            metrics=self.model.metric_values(dict(zip(self.metrics, map(float, header[FIXED:]))), weight)
            if not skipped and weight
            else {},
            weight=weight,
            samples=samples,
            lr=lr,
            gradient_norm=norm,
            skipped=skipped,
            bad_shards=tuple(bad),
            bad_value=next(filter(None, bad.values()), ""),
            checkpoint=Due(int(header[CHECKPOINT])),
            lease_lost=bool(header[LEASE_LOST]),
        )
