"""Recovery around a loop of your own: give a function and its state, and the death of a rank costs neither.

    state = ddl.elastic.State(w=np.zeros(10), step=0)

    def train(state, world):
        while state.step < 100:
            gradient = sum(gradient_of(shard, state.w) for shard in world.shards)
            state.w -= 0.1 * world.allreduce(gradient)
            state.step += 1
            state.commit()

    ddl.elastic.run(train, state, shards=12)

After a failure the survivors go back to the newest commit, take over the dead rank's shards and call the
function again. How they do it is fault's; a model with data and an optimizer is ``ddl.Trainer``'s."""

from __future__ import annotations

import atexit
import copy
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ddl.comm import Group
from ddl.data import Plan, assign
from ddl.errors import DdlError, PeerLost
from ddl.fault.recover import Recovery, Report, Settings

T = TypeVar("T")


class State:
    """Named arrays and small picklable values, as attributes; ``commit`` makes what they are now the state to keep.

    Begins equal on every rank. Arrays keep shape and dtype; setting one copies into it."""

    def __init__(self, **values: Any):
        arrays = {name: np.array(v) for name, v in values.items() if isinstance(v, np.ndarray)}
        small = {name: v for name, v in values.items() if not isinstance(v, np.ndarray)}
        self.__dict__.update(_arrays=arrays, _values=small, _commits=0, _barrier=lambda: None)
        self.__dict__["_beat"] = lambda commits, phase: None
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
        """The sum of ``x`` over all ranks, as a new array of its shape; equal bits on every rank. Raises PeerLost."""
        from ddl.collectives import allreduce

        total = np.array(x, order="C", copy=True)
        allreduce(total.reshape(-1), self.group)
        return total

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
    Raises Stop when fewer than ``min_ranks`` are left, QuorumLost on the smaller side of a partition. Other
    exceptions of the function end this rank alone where failures are survived, and the job where they are not."""
    settings = Settings(min_ranks=min_ranks)
    if group is None:
        from ddl.comm import mpi
        from ddl.fault.watchdog import start_companion
        from ddl.launched import launched_rank

        # Before MPI: a process that MPI has set up should not fork.
        heartbeat = start_companion(launched_rank(), hang_timeout_s=hang_timeout_s)
        group = mpi.start()
        group.waits = heartbeat.wait
        state.__dict__["_beat"] = heartbeat.beat
        settings = Settings(
            min_ranks=min_ranks,
            beat=lambda phase: heartbeat.beat(state.commits, f"recover {phase}"),
            recovering=heartbeat.recovering,
        )
        # All part together at the interpreter's end, so that nobody takes the first to leave for dead.
        atexit.register(lambda: mpi.finish(newest[0], 0))
    newest = [group]
    work, plan = _Work(state), assign(shards, group.size)
    recovery = Recovery(work, plan, group, settings)
    attached = False
    while True:
        agreed = False
        try:
            if not attached:
                work.attach(group, plan)
                attached = True
            state.restore()
            value = function(state, World(group, work.shards))
            group.barrier()
            agreed = True
            if group.agree(1):
                return value
            raise PeerLost([], group.generation, "the agreement on the end")
        except PeerLost as lost:
            group, report = recovery.recover(group, lost, agreed)
            newest[0] = group
            attached = True
            on_failure(report)
            if report.refusal is not None:
                raise report.refusal from lost
