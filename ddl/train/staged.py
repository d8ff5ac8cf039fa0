"""What a rank trains of a model that is cut into stages: its stage, bound to a generation and a grid of ranks.

work.py has what all work has in common, staged_step.py the step, ddl/pipeline cuts, grids and messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ddl.arrays import Array, Device, Layout, Views, host, partition
from ddl.comm import Group
from ddl.data import Plan, Source, assign, reassign
from ddl.errors import DdlError, Stop, UserError
from ddl.models.model import gradient_layout
from ddl.nn.context import Context
from ddl.parallel import Backward, GradientSum, SumOptions
from ddl.pipeline import Column, Cut, Flow, Grid, Pipeline, Stage, first_grid, regrid
from ddl.pipeline.grid import IDLE
from ddl.train.evaluate import EvaluationSums, batches, rows_of
from ddl.train.replicas import compare, hardware
from ddl.train.services import Services
from ddl.train.staged_step import StagedStep
from ddl.train.state import Progress, TrainingState, digest_of
from ddl.train.step import Step
from ddl.train.task import Task
from ddl.train.work import Work, tried
from ddl.wording import counted

T = TypeVar("T")


def work_of(task: Task) -> type[Work]:
    return Work if task.pipeline is None else StagedWork


def first_state(task: Task, device: Device) -> TrainingState:
    """The state of a rank before set-up: the initial one, or where there are stages none yet."""
    model = task.model if task.pipeline is None else task.pipeline.stage(task.pipeline.first_cut(), IDLE)
    return TrainingState(model, task.optimizer.slots, task.dtype, task.seed, device, task.optimizer.own)


class StagedWork(Work):
    """One stage of a task. The parts of its state are the stages.

    grid: which rank has which stage. cut: the parts of each stage, chosen by the leader before the first step."""

    pipeline: Pipeline
    column: Group  # the ranks of this rank's stage
    stage_task: Task

    def __init__(self, task: Task, group: Group, device: Device, state: TrainingState, services: Services):
        assert task.pipeline is not None
        self.pipeline, self.parts = task.pipeline, task.pipeline.stages
        self.cut: Cut | None = None
        self.stage = self.pipeline.stage(self.pipeline.first_cut(), IDLE)
        self.grid = Grid(())
        self._whole: dict[str, np.ndarray] = {}
        self._pending: Callable[[], Any] | None = None
        super().__init__(task, group, device, state, services)

    @property
    def part(self) -> int:
        return self.stage.number

    @property
    def chain(self) -> Sequence[int]:
        """The ranks of this rank's replica, by stage; empty on a standby."""
        replica, _ = self.grid.place(self.group.rank)
        return self.grid.ranks[replica] if replica != IDLE else ()

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "cut": self.cut}

    def begin(self, group: Group) -> None:
        self.group, self.grid = group, first_grid(group.size, self.parts)
        self.plan = self._plan(assign(self.task.order.shards, max(self.grid.replicas, 1)), self.grid)

    @staticmethod
    def _plan(by_replica: Plan, grid: Grid) -> Plan:
        """A plan for replicas, as one for ranks: the first rank of a replica has its shards."""
        return Plan(tuple(grid.heads[replica] for replica in by_replica.owners)) if grid.ranks else by_replica

    # Before the first step.

    def whole_state(self, is_leader: bool) -> TrainingState:
        """On the leader a state of the whole model, in memory only until it has been distributed."""
        task = self.task
        return (
            TrainingState(task.model, task.optimizer.slots, task.dtype, task.seed, Device())
            if is_leader
            else self.state
        )

    def distribute(self, group: Group, whole: TrainingState) -> DdlError | None:
        if group.size < self.parts:
            return Stop(f"{counted(group.size, 'rank')} cannot hold {counted(self.parts, 'stage')}")
        chosen: tuple[Cut | None, DdlError | None] = self.cut, None
        if group.is_leader and self.cut is None:
            chosen = self._measured_cut()
        meta = {**self.meta(), "state": whole.meta()} if group.is_leader else None
        (self.cut, problem), meta = group.gather_objects((chosen, meta))[0]
        if problem is not None:
            return problem
        assert self.cut is not None and meta is not None
        self.begin(group)
        named = whole.to_named() if group.is_leader else {}
        found = (lambda number: self._flat(self._stage(number), named)) if group.is_leader else None
        self._hold(self.grid.place(group.rank)[1], self._dealt(group, found))
        self._take_progress(meta["state"])
        self._take_notes(meta)
        return None

    def _measured_cut(self) -> tuple[Cut | None, DdlError | None]:
        task, found = self.task, list[Cut]()
        rows = max(
            task.order.global_batch // (task.parts * max(first_grid(self.group.size, self.parts).replicas, 1)), 1
        )

        def measure() -> None:
            own = range(min(rows, len(task.train)))
            task.train.hold([own])
            found.append(self.pipeline.cut(task.train.gather(np.arange(len(own))), task.seed))

        problem = tried(measure)
        return (found[0] if found else None), problem

    def _dealt(self, group: Group, found: Callable[[int], list[np.ndarray]] | None) -> list[np.ndarray]:
        """This rank's stage's arrays, from the leader. found: a stage's, on the leader."""
        mine: list[np.ndarray] = []
        for number in range(self.parts):
            arrays = [] if found is None else found(number)
            for rank in self.grid.column(number):
                if rank == 0:
                    mine = arrays if found is not None else mine
                elif found is not None:
                    _send(group, arrays, rank)
                elif rank == group.rank:
                    mine = _receive(group, self._empty(self._stage(number)), 0)
        return mine

    def taken_from(self, named: Mapping[str, np.ndarray]) -> Callable[[int], list[np.ndarray]]:
        for number in range(self.parts):
            for kind, layout in self._layouts(self._stage(number)):
                for name, shape in layout.shapes.items():
                    if f"{kind}/{name}" not in named or named[f"{kind}/{name}"].shape != shape:
                        raise ValueError(f"it has no {kind}/{name} of shape {shape}")
        self._whole = dict(named)
        return lambda number: self._flat(self._stage(number), named)

    def replace(self, group: Group, found: Callable[[int], list[np.ndarray]] | None, then: Callable[[], None]) -> None:
        mine = self._dealt(group, found)

        def assign() -> None:
            self.state.assign(mine)
            then()

        self.commit(assign)

    def _stage(self, number: int) -> Stage:
        return self.pipeline.stage(self.cut or self.pipeline.first_cut(), number)

    def _hold(self, number: int, arrays: Sequence[np.ndarray]) -> None:
        """Hold this stage from now on, with these arrays; it must not communicate, like ``take_over``."""
        self.stage = self._stage(number)
        self.state.hold(self.stage, self.task.dtype)
        self.state.assign(arrays)

    def _take_progress(self, meta: Mapping[str, Any]) -> None:
        self.state.progress.become(Progress.from_json(meta["progress"]))

    # A stage's arrays, in the order of ``TrainingState.flat_arrays``.

    def _layouts(self, stage: Stage) -> list[tuple[str, Layout]]:
        """(what precedes the names in a checkpoint, layout) of each flat array."""
        params = Layout.of({name: shape for name, (shape, _) in stage.params.items()}, self.task.dtype)
        averages = Layout.of({name: one.shape for name, one in stage.averages.items()}, self.task.dtype)
        slots = [(slot, params) for slot in self.task.optimizer.slots]
        return [("params", params), ("averages", averages), *slots]

    def _empty(self, stage: Stage) -> list[np.ndarray]:
        return [np.zeros(layout.length, layout.dtype) for _, layout in self._layouts(stage)]

    def _flat(self, stage: Stage, named: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arrays = self._empty(stage)
        for (kind, layout), flat in zip(self._layouts(stage), arrays, strict=True):
            for name, view in layout.views(flat).items():
                view[...] = host(named[f"{kind}/{name}"])
        return arrays

    # Checkpoints.

    def gather(self, group: Group, writers: Collection[int]) -> None:
        """Collect the stages of the first replica on ``writers``, which hold the whole model until the next call."""
        self._whole = {}
        found: dict[str, np.ndarray] = {}
        for number, owner in enumerate(self.grid.ranks[0]):
            stage = self._stage(number)
            for writer in sorted(writers):
                arrays: list[np.ndarray] = []
                if writer == owner == group.rank:
                    arrays = [np.array(flat) for flat in self.flat_arrays()]
                elif owner == group.rank:
                    _send(group, self.flat_arrays(), writer)
                elif writer == group.rank:
                    arrays = _receive(group, self._empty(stage), owner)
                for (kind, layout), flat in zip(self._layouts(stage) if arrays else (), arrays, strict=True):
                    found |= {f"{kind}/{name}": view for name, view in layout.views(flat).items()}
        self._whole = found

    def named(self) -> dict[str, np.ndarray]:
        return self._whole

    def digest(self) -> str:
        params = {name[len("params/") :]: one for name, one in self._whole.items() if name.startswith("params/")}
        return digest_of(params) if params else ""

    # Failures.

    def commit(self, commit: Callable[[], T]) -> T:
        """Change the state in a way that every rank can, once this barrier has returned on one of them. If it has on
        another rank when this one loses a peer, this one changes its state as well, in ``level``."""
        self._pending = commit
        self.group.barrier()
        result, self._pending = commit(), None
        return result

    def level(self, group: Group, is_newest: Sequence[bool], root: int) -> None:
        """Every rank that is behind commits what it has summed; then ranks without a stage, or with one that too many
        hold, receive another from a rank that holds it."""
        pending, self._pending = self._pending, None
        if pending is not None and not is_newest[group.rank]:
            pending()
        meta = group.gather_objects(self.meta() if group.rank == root else None)[root]
        self.cut = meta["cut"]
        held = group.gather_objects((self.part, self.state.progress.step))
        assert all(number == IDLE or step == meta["state"]["progress"]["step"] for number, step in held), held
        before = [number for number, _ in held]
        grid, arrays = regrid(before, self.parts), None
        for rank in range(group.size):
            number = grid.place(rank)[1]
            if number == before[rank]:
                continue
            source = before.index(number)
            if group.rank == source:
                _send(group, self.flat_arrays(), rank)
            elif group.rank == rank:
                arrays = _receive(group, self._empty(self._stage(number)), source)
        mine = grid.place(group.rank)[1]
        if mine != self.part:
            self._hold(mine, arrays or [])
        self.group, self.grid = group, grid
        self._take_progress(meta["state"])
        self._take_notes(meta)

    def reassign(self, plan: Plan, new_rank: Mapping[int, int], group: Group) -> Plan:
        replicas = {old: self.grid.heads.index(new) for old, new in new_rank.items() if new in self.grid.heads}
        return self._plan(reassign(plan, replicas, self.grid.replicas), self.grid)

    # A generation.

    def attach(self, group: Group, plan: Plan) -> DdlError | None:
        self.detach()
        self.group, stage = group, self.stage
        shards = plan.shards_of(self.chain[0]) if self.chain else []
        reads = shards if stage.is_first or stage.is_last else []
        problem = self._open(group, plan, reads, self.grid.replicas)
        if problem is None:
            self._bind(group, shards)
        return problem

    def _bind(self, group: Group, shards: Sequence[int]) -> None:
        task = self.task
        self.column = Column(group, self.grid.column(self.stage.number))
        layout = gradient_layout(self.stage, task.dtype)
        trained = [name for name in layout.shapes if name not in self.stage.averages]
        self.stage_task = replace(task, model=self.stage, optimizer=task.optimizer.part(self.state.layout))
        self.total = GradientSum(
            self.column,
            layout,
            Step.header_length(task.model),
            SumOptions(task.algorithm, task.bucket_mib, "off", task.tuning, "staged"),
            Backward([*reversed(trained), *self.stage.averages]),
            device=self.device,
            span=self.services.span,
        )
        self.step = StagedStep(self, shards)

    def substitutes(self) -> list[str]:
        standbys, members = self.grid.standbys, self.group.members
        return [
            f"rank {members[rank].identity} computes nothing, since {counted(self.group.size, 'rank')} make "
            f"{counted(self.grid.replicas, 'replica')} of {counted(self.parts, 'stage')}; it stands by with stage "
            f"{stage + 1}"
            for rank, stage in standbys
        ]

    def compare(self) -> list[int] | None:
        found = compare(self.column, self, hardware(self.device), self.state.digest(), f"of rank {self.group.rank}")
        every = self.group.gather_objects(found)
        return None if any(one is None for one in every) else sorted({one for found in every for one in found})

    def evaluate(self, source: Source, beat: Callable[[], None]) -> dict[str, Any]:
        task, stage = self.task, self.stage
        micros, problem = _Evaluation(self, source, beat), None
        if self.chain:
            context = Context(seed=task.seed)
            flow = Flow(self.group, self.chain, stage, 1, self.device, lambda: context)
            params = stage.views(flow.borrow(self.state.params.views), self.state.buffers)
            for number in range(micros.count):
                try:
                    if problem is None:
                        flow.evaluate(params, micros, number)
                    else:
                        flow.skip(micros, number)
                except UserError as error:  # the other stages continue, and learn it at the end
                    problem = error
                    flow.skip(micros, number, is_received=True)
        return micros.found.over_ranks(self.group, task.model, len(source), problem)


class _Evaluation:
    """The batches of a split that this rank's replica evaluates (``ddl.pipeline.Micros``), and their sums."""

    def __init__(self, work: StagedWork, source: Source, beat: Callable[[], None]):
        self.work, self.beat = work, beat
        replica = max(work.grid.place(work.group.rank)[0], 0)
        part = partition(len(source), work.grid.replicas)[replica]
        rows = rows_of(source, work.task.evaluate_rows)
        self._counts = [min(rows, part.stop - at) for at in range(part.start, part.stop, rows)]
        self.count = len(self._counts)
        self.found = EvaluationSums()
        self._reads = bool(work.chain) and (work.stage.is_first or work.stage.is_last)
        if self._reads:
            own = range(part.start, part.stop)
            source.hold([own])
            self._batches = batches(source, own, rows, work.transforms)

    def rows(self, number: int) -> int:
        return self._counts[number]

    def segments(self, number: int) -> int:
        return 1

    def begin(self, number: int, ctx: Context) -> Mapping[str, Array]:
        self.beat()
        self.work.group.probe("evaluate.batch")
        ctx.begin([slice(0, self._counts[number])], [0], 0)
        device = self.work.device
        return {n: device.array(x) for n, x in next(self._batches).items()} if self._reads else {}

    def measured(self, number: int, loss: float, weight: float, sums: Mapping[str, Any]) -> None:
        self.found.add(loss, weight, sums)

    def gradients(self, number: int) -> Views:
        raise AssertionError("an evaluation has no gradients")

    def computed(self, number: int) -> None:
        raise AssertionError("an evaluation has no gradients")


def _send(group: Group, arrays: Sequence[np.ndarray], to: int) -> None:
    for array in arrays:
        group.send(array, to)


def _receive(group: Group, arrays: list[np.ndarray], source: int) -> list[np.ndarray]:
    for array in arrays:
        group.receive(array, source)
    return arrays
