"""What a rank trains, bound to a generation: its task, state, shards, loader and gradient sums.

Recovery saves and rebinds it (``Recoverable`` in fault/work.py); loop.py orders steps, evaluations and
checkpoints."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ddl.arrays import Device, host
from ddl.comm import Group
from ddl.data import Loader, Normalise, Plan, Source, assign, combine, moments
from ddl.errors import ConfigError, DdlError, UserCodeError, UserError
from ddl.fault.work import EndJob, Recoverable, received
from ddl.models.model import gradient_layout
from ddl.optim.local import Local
from ddl.parallel import Backward, GradientSum, SumOptions
from ddl.train.balance import Balancer
from ddl.train.evaluate import evaluate
from ddl.train.local import LocalStep
from ddl.train.mixed import MixedStep
from ddl.train.replicas import compare, hardware
from ddl.train.services import Services
from ddl.train.state import TrainingState
from ddl.train.step import FIXED, LOSS, WEIGHT, Outcome, Step
from ddl.train.task import Task
from ddl.wording import counted

QUIET_S = 2.0  # a communication thread may need so long to leave MPI after this rank's own code has raised
# Ranks of a node share one replica from this size and number of ranks on. 2 ranks on 2 cores were as fast without
# sharing; with 4 ranks sharing made the step of an MLP of 2 MiB 7 to 10 % faster, and that of a text classifier, whose
# update is most of its step, by a fifth.
SHARDED_BYTES, SHARDED_RANKS = 1 << 20, 3


class Work(Recoverable):
    """A task with its state on this rank, bound to a generation: its group, plan, loader, gradient sums and step.

    state: initial or restored, equal on all workers. last: the outcome of the newest committed step."""

    def __init__(self, task: Task, group: Group, device: Device, state: TrainingState, services: Services):
        self.task, self.device, self.state, self.services = task, device, state, services
        self.step: Step | None = None
        self.loader: Loader | None = None
        self.total: GradientSum | None = None
        self.last: Outcome | None = None
        self.balancer: Balancer | None = None
        self.waited_s = 0.0  # in the sums of the epoch's steps, over all generations
        self.begin(group)

    def begin(self, group: Group) -> None:
        """Use the group that training begins with, and its first plan."""
        self.group, self.plan = group, assign(self.task.order.shards, group.size)

    def position(self) -> tuple[int, int]:
        return self.state.progress.position

    def flat_arrays(self) -> list[np.ndarray]:
        return [host(flat) for flat in self.state.flat_arrays()]

    def meta(self) -> dict[str, Any]:
        return {"state": self.state.meta(), "log": self.services.log.to_json(), "last": self.last}

    def take_over(self, arrays: list[np.ndarray], meta: dict[str, Any]) -> None:
        self.state.take_over(arrays, meta["state"])
        self._take_notes(meta)

    def _take_notes(self, meta: dict[str, Any]) -> None:
        self.services.log.become(meta["log"])
        self.last = meta["last"]

    # Before the first step, and for checkpoints.

    def whole_state(self, is_leader: bool) -> TrainingState:
        """Where the leader loads the state that training begins with."""
        return self.state

    def distribute(self, group: Group, whole: TrainingState) -> DdlError | None:
        """Give all ranks the leader's state; returns on every rank why that is not possible. Raises PeerLost."""
        meta, arrays = received(group, self, 0)
        self.take_over(arrays, meta)
        return None

    def gather(self, group: Group, writers: Collection[int]) -> None:
        """Before ``named``: the whole state is wanted on these ranks."""

    def named(self) -> dict[str, np.ndarray]:
        """The whole state, as ``TrainingState.to_named`` gives it; on ranks for which it was gathered."""
        return self.state.to_named()

    def taken_from(self, named: Mapping[str, np.ndarray]) -> Callable[[int], list[np.ndarray]]:
        """For ``replace``, on the leader: a part's arrays, as ``flat_arrays`` orders them, from those of a checkpoint,
        without those that the optimizer keeps for its next step. Raises ValueError if they do not fit."""
        task = self.task
        state = TrainingState(task.model, task.optimizer.slots, task.dtype, task.seed, Device())
        known = state.to_named()
        state.load_named({name: array for name, array in named.items() if name in known})
        return lambda part: state.flat_arrays()

    def replace(self, group: Group, found: Callable[[int], list[np.ndarray]] | None, then: Callable[[], None]) -> None:
        """Replace the state of all ranks with the leader's ``found``, then call ``then``. Raises PeerLost, which
        changes nothing."""
        common = len(self.state.flat_arrays()) - len(self.state.meta()["arrays"])
        received = found(0) if found is not None else [np.array(flat) for flat in self.flat_arrays()[:common]]
        for flat in received:
            group.broadcast(flat, 0)
        # Into private memory: ranks that share a replica, and did not receive all, still need the newest state.
        self.state.leave()
        self.state.assign(received)
        then()

    def digest(self) -> str:
        """Of the whole model's parameters; "" if it is not known."""
        return self.state.parameters_digest()

    def attach(self, group: Group, plan: Plan) -> DdlError | None:
        """Bind to a generation. If a rank cannot open one of its shards, every rank returns its error."""
        self.detach()
        shards = plan.shards_of(group.rank)
        problem = self._open(group, plan, shards, group.size)
        if problem is None:
            self._bind(group, shards)
        return problem

    def _open(self, group: Group, plan: Plan, shards: Sequence[int], computing: int) -> DdlError | None:
        """Open the shards that this rank reads. computing: how many ranks share all shards."""
        task = self.task
        if task.model.synchronised and computing > task.order.shards:
            return ConfigError(
                f"synchronised batch norm needs work on every rank, and {computing} ranks share "
                f"{counted(task.order.shards, 'shard')}: start fewer ranks, or set a larger train.global_batch"
            )
        problem = tried(lambda: task.train.hold([task.order.shard_range(shard) for shard in shards]))
        unknown = task.normalise != "none" and self.state.progress.normalise is None
        answers = group.gather_objects((problem, unknown))
        for error, _ in answers:
            if error is not None:
                return error
        if any(lacks for _, lacks in answers):
            parts = group.gather_objects(moments(task.train, task.order, shards))
            every = {shard: sums for part in parts for shard, sums in part.items()}
            self.state.progress.normalise = combine(every, task.normalise, task.dtype).to_json()
        self.group, self.plan = group, plan
        taught = [] if task.teacher is None else [task.teacher.after(self.transforms)]
        self.loader = Loader(
            task.train,
            task.order,
            shards,
            transforms=[*self.transforms, *task.augment, *taught],
            prefetch=task.prefetch,
            seed=task.seed,
            parts=task.parts,
        )
        return None

    def _bind(self, group: Group, shards: Sequence[int]) -> None:
        """Make what sums and commits the steps."""
        task, loader = self.task, self.loader
        assert loader is not None
        layout = gradient_layout(task.model, task.dtype)
        self.balancer = Balancer(group.size) if task.balance and group.size > 1 else None
        trained = [name for name in layout.shapes if name not in task.model.averages]
        self.total = GradientSum(
            group,
            layout,
            Step.header_length(task.model) + (group.size if self.balancer else 0),
            SumOptions(
                task.algorithm,
                task.bucket_mib,
                "off" if task.model.synchronised else task.overlap,
                task.tuning,
                task.gpu,
                task.wire,
            ),
            # Backward yields gradients from the last layer to the first; sums of averages lie behind the gradients.
            Backward([*reversed(trained), *task.model.averages], task.model.by_rows, tuple(task.model.averages)),
            device=self.device,
            replica=self.state.replica.flat_arrays() if self._updates_shares(group) else (),
            span=self.services.span,
        )
        kind = LocalStep if isinstance(task.optimizer, Local) else MixedStep if task.mixed else Step
        self.step = kind(task, self.state, loader, shards, group, self.total, self.services)

    def rebalance(self) -> list[float]:
        """After a step: change ``plan`` so that shards move to faster ranks, if that pays. Returns the seconds of each
        rank for one of its shards, because of which they moved; empty if they did not. The same on all ranks, as is
        EndJob if a rank cannot open its shards."""
        step, order = self.step, self.task.order
        if self.balancer is None or step is None:
            return []
        samples = order.step_samples((self.state.progress.step - 1) % order.steps_per_epoch)
        if samples < min(order.global_batch, order.samples):
            return []  # the last step of an epoch may be a few samples
        plan = self.balancer.next(self.plan, step.seconds)
        if plan is None:
            return []
        assert self.loader is not None
        shards = plan.shards_of(self.group.rank)
        self.loader.close()
        problem = self._open(self.group, plan, shards, self.group.size)
        if problem is not None:
            raise EndJob(problem)
        step.loader, step.shards = self.loader, shards
        seconds: list[float] = self.balancer.seconds.tolist()
        return seconds

    def evaluate(self, source: Source, beat: Callable[[], None]) -> dict[str, Any]:
        """Loss and metrics over all of ``source``, on every rank; see ``evaluate``."""
        task = self.task
        return evaluate(
            task.model,
            self.state,
            source,
            self.group,
            rows=task.evaluate_rows,
            transforms=self.transforms,
            beat=beat,
        )

    def compare(self) -> list[int] | None:
        """The identities of ranks whose state differed; see ``replicas.compare``."""
        replica = (
            self.group.me.node
            if self.total is not None and self.total.replicas
            else f"of rank {self.group.me.identity}"
        )
        digest = self.state.digest(without=self.task.optimizer.own_slots)
        return compare(self.group, self, hardware(self.device), digest, replica)

    def count_waits(self) -> float:
        """``waited_s`` including the newest steps."""
        if self.step is not None:
            self.waited_s, self.step.waited_s = self.waited_s + self.step.waited_s, 0.0
        return self.waited_s

    def detach(self) -> None:
        self.count_waits()
        for part in (self.loader, self.total):
            if part is not None:
                part.close()
        self.loader = self.total = self.step = None
        self.state.leave()

    def _updates_shares(self, group: Group) -> bool:
        """Whether the ranks of a node should share one replica; the same on all ranks."""
        most = max(len(ranks) for ranks in group.nodes)
        if self.task.sharded == "off" or not self.task.optimizer.is_elementwise or most == 1:
            return False
        return self.task.sharded == "on" or (self.state.layout.nbytes >= SHARDED_BYTES and most >= SHARDED_RANKS)

    def substitutes(self) -> list[str]:
        """Why gradients are not summed where or how it would be fastest, or how the job asks for; one line each."""
        total, task, group = self.total, self.task, self.group
        problems: list[str] = []
        if total is None:
            return problems
        if task.gpu == "direct" and total.staged_because:
            problems.append(f"comm.gpu is direct, but gradients go through the host's memory: {total.staged_because}")
        if total.substitute:
            problems.append(f"comm.algorithm is {task.algorithm}, but gradients are summed by {total.substitute}")
        if task.wire != total.wire and group.size > 1:
            why = "all ranks are on one node" if len(group.nodes) == 1 else "the ranks of a node cannot share memory"
            problems.append(f"comm.wire is {task.wire}, but gradients travel as float32: {why}")
        if task.sharded == "on" and not total.replicas and group.size > 1:
            problems.append(
                "optim.sharded is on, but each rank has its own replica: sharing one takes ranks of one node that "
                "compute on its CPUs and sum in its memory"
            )
        if group.why_not_shared:
            problems.append(
                "the ranks of a node cannot share memory, so gradients are summed by messages, which is slower "
                f"({group.why_not_shared})"
            )
        return problems

    @property
    def transforms(self) -> list[Normalise]:
        """What training, evaluation and prediction all do to a batch."""
        known = self.state.progress.normalise
        return [] if known is None else [Normalise.from_json(known)]

    def epoch_means(self) -> dict[str, Any]:
        """Loss and metrics of the current epoch, from the sums of its steps."""
        sums = self.state.progress.epoch_sums
        if not sums or not sums[WEIGHT]:
            return {}
        metrics = dict(zip(self.task.model.step_metrics, sums[FIXED:], strict=True))
        return {"loss": sums[LOSS] / sums[WEIGHT], **self.task.model.metric_values(metrics, sums[WEIGHT])}

    def is_quiet(self) -> bool:
        """Waits for the communication thread. If all ranks raised, on at least one of them it soon becomes quiet."""
        return self.total is None or self.total.is_quiet(QUIET_S)


def tried(action: Callable[[], None]) -> DdlError | None:
    """Run ``action`` and return its error, wrapped in UserCodeError if it is not a UserError; None if it succeeded."""
    try:
        action()
    except UserError as error:
        return error
    except Exception as error:
        return UserCodeError(f"the data could not be opened: {error!r}", "".join(traceback.format_exception(error)))
    return None
