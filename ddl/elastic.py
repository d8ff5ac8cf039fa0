"""Recovery around a loop of your own: give a function and its state, and the death of a rank costs neither.

    state = ddl.elastic.State(w=np.zeros(10), step=0)

    def train(state, world):
        while state.step < 100:
            gradient = sum((gradient_of(shard, state.w) for shard in world.shards), np.zeros(10))
            state.w -= 0.1 * world.allreduce(gradient)
            state.step += 1
            state.commit()

    ddl.elastic.run(train, state, shards=12)

After a failure the survivors go back to the newest commit, take over the dead rank's shards and call the
function again. How they do it is fault's; a model with data and an optimizer is ``ddl.Trainer``'s."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np

from ddl.comm import Group, ending, mpi
from ddl.data import Plan, assign
from ddl.environment import launched_rank
from ddl.errors import DdlError, JobEnded, PeerLost
from ddl.fault.decision import Death
from ddl.fault.recover import Leaves, Recovery, Report, Settings
from ddl.fault.session import current, hold
from ddl.fault.watchdog import Heartbeat, start_companion

T = TypeVar("T")
RECOVERY_TIMEOUT_S = 30.0


def _nobody_watches(commits: int, phase: str) -> None:
    """No heartbeat: the state is not in a run."""


class State:
    """Named arrays and small picklable values, as attributes; ``commit`` makes what they are now the state to keep.

    Begins equal on every rank. Arrays keep shape and dtype; setting one copies into it."""

    def __init__(self, **values: Any):
        # Whatever their order was: what travels must be contiguous.
        arrays = {name: np.array(v, order="C") for name, v in values.items() if isinstance(v, np.ndarray)}
        small = {name: v for name, v in values.items() if not isinstance(v, np.ndarray)}
        self.__dict__.update(_arrays=arrays, _values=small, _commits=0, _barrier=lambda: None)
        self.__dict__["_beat"] = _nobody_watches
        self.__dict__.update(_kept_arrays=copy.deepcopy(arrays), _kept_values=copy.deepcopy(small))

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_arrays", ()):
            return self._arrays[name]
        if name in self.__dict__.get("_values", ()):
            return self._values[name]
        raise AttributeError(f"the state has no {name!r}; it has {sorted([*self._arrays, *self._values])}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._arrays:
            if value is not self._arrays[name]:
                self._arrays[name][...] = value
        elif name in self._values:
            self._values[name] = value
        else:
            raise AttributeError(f"the state has no {name!r}: name everything when it is made")

    @property
    def commits(self) -> int:
        """How often ``commit`` was called, over all generations."""
        return int(self._commits)

    def commit(self) -> None:
        """All ranks together: what the state is now survives a failure. Raises PeerLost before anything is kept."""
        self._barrier()
        for name, kept in self._kept_arrays.items():
            kept[...] = self._arrays[name]
        self.__dict__["_kept_values"] = copy.deepcopy(self._values)
        self.__dict__["_commits"] += 1
        self._beat(self._commits, "commit")
        self._beat(self._commits, "function")

    def restore(self) -> None:
        """Back to the last commit."""
        for name, kept in self._kept_arrays.items():
            self._arrays[name][...] = kept
        self.__dict__["_values"] = copy.deepcopy(self._kept_values)


class World:
    """Where the function runs: this generation's ranks, and the shards of the work that are this rank's."""

    def __init__(self, group: Group, shards: list[int]):
        self.group, self.shards = group, shards

    @property
    def rank(self) -> int:
        return self.group.rank

    @property
    def size(self) -> int:
        return self.group.size

    @property
    def generation(self) -> int:
        """0 at first, one more after each failure."""
        return self.group.generation

    def allreduce(self, x: Any) -> np.ndarray:
        """The sum of ``x`` over all ranks, as a new array of its shape; equal bits on every rank. Raises PeerLost.

        Raises ValueError on every rank if their shapes or dtypes differ. A rank may have no shards: start the sum with
        zeros of the right shape, because Python's ``sum`` of nothing is the integer 0."""
        from ddl.collectives import reduce_across_ranks

        return reduce_across_ranks(x, self.group, average=False)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's small picklable value, by rank. Raises PeerLost."""
        return self.group.gather_objects(value)


class _Work:
    """A user's state as recovery wants to see it."""

    def __init__(self, state: State):
        self.state, self.shards = state, [0]

    def position(self) -> tuple[int, int]:
        return self.state.commits, 0

    def flat_arrays(self) -> list[np.ndarray]:
        return [self.state._kept_arrays[name] for name in sorted(self.state._kept_arrays)]

    def meta(self) -> Any:
        return self.state._kept_values, self.state.commits

    def take_over(self, arrays: list[np.ndarray], meta: Any) -> None:
        for kept, received in zip(self.flat_arrays(), arrays, strict=True):
            kept[...] = received
        self.state.__dict__["_kept_values"], self.state.__dict__["_commits"] = meta

    def attach(self, group: Group, plan: Plan) -> DdlError | None:
        self.shards = plan.shards_of(group.rank)
        self.state.__dict__["_barrier"] = group.barrier
        group.barrier()
        return None


class _Launch:
    """This script's calls of ``run``, in the ranks that it has joined: looks after every way out of the script.

    Outside ``run`` no rank needs another: all part at the interpreter's end, so that nobody takes the first to leave
    for dead, and each ends with the status that its script chose."""

    def __init__(self, hang_timeout_s: float):
        self._show = sys.excepthook
        known = current()
        if known is None:
            # Before MPI: a process that MPI has set up should not fork.
            heartbeat = start_companion(launched_rank(), hang_timeout_s=hang_timeout_s)
            heartbeat.wait(True)
            group = mpi.start()
            group.waits = heartbeat.wait
            known = hold(group, heartbeat)
        else:
            self._show = sys.__excepthook__  # the present one makes a death of every exception
        self._session = known
        self._job: _Run | None = None
        self.heartbeat = known.heartbeat or Heartbeat(known.group.me.identity)
        self.is_running = False
        sys.excepthook = self._uncaught

    @property
    def group(self) -> Group:
        """The newest generation."""
        return self._session.group if self._job is None else self._job.group

    def begin(self, state: State, plan: Plan, min_ranks: int, hang_timeout_s: float) -> _Run:
        self._job = _Run(state, plan, self.group, min_ranks, self.heartbeat)
        self.heartbeat.limits(hang_timeout_s, RECOVERY_TIMEOUT_S)
        self.heartbeat.wait(False)
        self.is_running = True
        return self._job

    def end(self, refusal: DdlError | None = None) -> None:
        """All ranks have come to the same end. What the script does next may take as long as it takes."""
        hold(self.group)
        self._job = None  # others in this script may move on to a newer generation
        self.heartbeat.wait(True)
        self.is_running, self._session.refusal = False, refusal

    def die(self, error: BaseException) -> NoReturn:
        """An exception of this rank alone: the others go on once it is gone."""
        self._show(type(error), error, error.__traceback__)
        ending.die()

    def exit(self, wish: SystemExit) -> None:
        """The function has called ``sys.exit``, which ends the whole job. Returns where the interpreter's own end will
        do."""
        status = wish.code if isinstance(wish.code, int) else int(wish.code is not None)
        if self.group.tolerant or status:
            if not isinstance(wish.code, int | None):
                print(wish.code, file=sys.stderr)
            self.heartbeat.end()
            mpi.fail(self.group, status & 0xFF)

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        refusal = self._session.refusal
        if error is refusal and self.group.tolerant:
            self._session.end_with(refusal)
        self._show(kind, error, trace)
        if self.is_running:
            self.heartbeat.end()
            mpi.fail(self.group, 1)
        else:
            self.heartbeat.part()  # the others may have begun another run, which does not wait for this rank for ever


_launch: _Launch | None = None


class _Run:
    """One call of ``run``: that of the function in each generation.

    group: the newest. refusal: why the survivors, all of them, may not go on."""

    def __init__(self, state: State, plan: Plan, group: Group, min_ranks: int, heartbeat: Heartbeat):
        self.state, self.plan, self.group, self.heartbeat = state, plan, group, heartbeat
        self.work = _Work(state)
        self.refusal: DdlError | None = None
        state.__dict__["_beat"] = heartbeat.beat
        self.recovery = Recovery(
            self.work,
            plan,
            group,
            Settings(
                min_ranks=min_ranks,
                beat=lambda phase: heartbeat.beat(state.commits, f"recover {phase}"),
                recovering=heartbeat.recovering,
            ),
        )

    def through(self, function: Callable[[State, World], T], on_failure: Callable[[Report], None]) -> T:
        """What ``run`` promises. Raises Leaves, from the exception, on a rank whose function alone raised."""
        is_attached = False
        while True:
            agreed = False
            try:
                if not is_attached:
                    self.work.attach(self.group, self.plan)
                    is_attached = True
                self.state.restore()
                self.heartbeat.beat(self.state.commits, "function")
                value = function(self.state, World(self.group, self.work.shards))
                self.group.barrier()
                agreed = True
                if self.group.agree(1):
                    return value
                lost = PeerLost([], self.group.generation, "the agreement on the end")
            except PeerLost as error:
                lost = error
            except JobEnded:
                raise
            except Exception as error:
                # Other ranks may have raised the same: they all tell each other before anybody ends.
                if not self.group.tolerant or len(self.group.members) == 1:
                    raise
                self.recovery.raised = self._describe(error)
                lost = PeerLost([], self.group.generation, "an exception")
                lost.__cause__ = error
            try:
                self.group, report = self.recovery.recover(self.group, lost, agreed)
            except Leaves as leaves:
                raise leaves from lost.__cause__
            is_attached = True
            on_failure(report)
            self.refusal = report.refusal
            if self.refusal is not None:
                raise self.refusal from None

    def _describe(self, error: Exception) -> Death:
        me, step = self.group.me, self.state.commits
        shards = frozenset(self.work.shards)
        note = self.heartbeat.note_exception(error, step, shards)
        return Death(me.identity, me.host, "exception", step, shards, note["error"], note["traceback"])


def run(
    function: Callable[[State, World], T],
    state: State,
    *,
    shards: int = 60,
    min_ranks: int = 1,
    hang_timeout_s: float = 120.0,
    on_failure: Callable[[Report], None] = lambda report: None,
    group: Group | None = None,
) -> T:
    """Call ``function(state, world)`` on all ranks until it has returned on all of them; its value on each.

    shards: how many pieces the work is cut into; ``world.shards`` are this rank's. After a failure the state is
    that of the newest commit and the function is called again. on_failure: told of each, on every rank.
    hang_timeout_s: seconds without a commit after which a rank that waits for nobody counts as hung, and is killed;
    one that is stopped is killed after 2.
    Raises on every rank alike: Stop when fewer than ``min_ranks`` are left, QuorumLost on the smaller side of a
    partition, UserCodeError when the function raised on all ranks, a second time, or before the first commit. Where
    the script does not catch it, one rank tells of it and all end with its status. Any other exception of the
    function ends this rank alone where failures are survived, and the job where they are not."""
    global _launch
    if group is not None:
        heartbeat = Heartbeat(group.me.identity)
        try:
            return _Run(state, assign(shards, group.size), group, min_ranks, heartbeat).through(function, on_failure)
        except Leaves as leaves:
            assert leaves.__cause__ is not None
            raise leaves.__cause__ from None
        finally:
            state.__dict__["_beat"] = _nobody_watches
            heartbeat.close()
    if _launch is None:
        _launch = _Launch(hang_timeout_s)
    launch = _launch
    job = launch.begin(state, assign(shards, launch.group.size), min_ranks, hang_timeout_s)
    try:
        value = job.through(function, on_failure)
    except Leaves as leaves:
        assert leaves.__cause__ is not None
        launch.die(leaves.__cause__)
    except JobEnded as ended:
        ending.leave(ended.exit_status)
    except SystemExit as wish:
        launch.exit(wish)
        raise
    except DdlError as error:
        if error is job.refusal:
            launch.end(error)
        raise
    else:
        launch.end()
        return value
    finally:
        hold(launch.group)
