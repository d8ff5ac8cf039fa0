"""Fault tolerance for your own training loop: a function and its state survive the death of ranks.

    state = ddl.elastic.State(w=np.zeros(10), step=0)

    def train(state, world):
        while state.step < 100:
            gradient = sum((gradient_of(shard, state.w) for shard in world.shards), np.zeros(10))
            state.w -= 0.1 * world.allreduce(gradient)
            state.step += 1
            state.commit()

    ddl.elastic.run(train, state, shards=12)

After a failure the survivors return to the newest commit, take over the dead rank's shards and call the function
again. For a model with data and an optimizer use ``ddl.Trainer``, which does this for you."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator, Sized
from functools import wraps
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np

from ddl.collectives import Call, check_same_call, check_same_values, end_script, reduce_across_ranks
from ddl.comm import Group, ending, mpi
from ddl.data import Order, Plan, assign
from ddl.errors import DdlError, Diverged, JobEnded, UserError
from ddl.fault.decision import RankDeath
from ddl.fault.driver import Driver
from ddl.fault.recover import Leaves, RecoverySettings, Report
from ddl.fault.session import current, hold, join
from ddl.fault.watchdog import Heartbeat
from ddl.fault.work import EndJob, Program, Recoverable
from ddl.metrics import Console, RankFailed, Recovered

T = TypeVar("T")
RECOVERY_TIMEOUT_S = 30.0


def _no_heartbeat(commits: int, phase: str) -> None:
    """The heartbeat of a state outside ``run``."""


class State:
    """Named arrays and small picklable values, as attributes; ``commit`` saves their present values.

    Must be created equal on every rank. Arrays keep shape and dtype; assigning to one copies into it. Raises UserError
    for a name that the class itself needs, and where floats are assigned to an array of integers."""

    def __init__(self, **values: Any):
        taken = sorted(name for name in values if name.startswith("_") or name in dir(type(self)))
        if taken:
            raise UserError(f"a value of the state cannot be called {taken[0]!r}: State itself has that name")
        # C order, because arrays that are sent must be contiguous.
        arrays = {name: np.array(v, order="C") for name, v in values.items() if _is_array(v)}
        small = {name: v for name, v in values.items() if name not in arrays}
        self.__dict__.update(_arrays=arrays, _values=small, _commits=0, _group=None, _check_every=0)
        self.__dict__["_beat"] = _no_heartbeat
        self.__dict__.update(_kept_arrays=copy.deepcopy(arrays), _kept_values=copy.deepcopy(small))

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_arrays", ()):
            return self._arrays[name]
        if name in self.__dict__.get("_values", ()):
            return self._values[name]
        raise AttributeError(f"the state has no {name!r}; it has {sorted([*self._arrays, *self._values])}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._arrays:
            if value is not (array := self._arrays[name]):
                if array.dtype.kind in "biu" and (given := np.asarray(value).dtype).kind in "fc":
                    raise UserError(f"state.{name} holds {array.dtype}, not {given}: create it as floats")
                array[...] = value
        elif name in self._values:
            self._values[name] = value
        else:
            raise AttributeError(f"the state has no {name!r}: all names are given when the state is created")

    @property
    def commits(self) -> int:
        """The number of calls of ``commit``, over all generations."""
        return int(self._commits)

    def commit(self) -> None:
        """Save the present values, so that they survive a failure. Called by all ranks together.

        Raises PeerLost before anything is saved; ValueError, on every rank, if others call something else."""
        if self._group is not None:
            self._meet(self._group)
        self.save()
        self.__dict__["_commits"] += 1
        self._beat(self._commits, "commit")
        self._beat(self._commits, "function")

    def _meet(self, group: Group) -> None:
        """Wait for all ranks, and every so often compare what they are about to commit."""
        number = self._commits + 1
        if not self._check_every or (number > 1 and number % self._check_every):
            check_same_call(group, Call("commit"))
            return
        values = {name: x.data for name, x in self._arrays.items()}
        values |= {name: text.encode() for name, value in self._values.items() if (text := _as_text(value)) is not None}
        try:
            check_same_values(group, values, f"states at commit {number}", "only equal changes may be committed")
        except ValueError as error:
            raise EndJob(Diverged(str(error))) from None

    def restore(self) -> None:
        """Return to the last commit."""
        for name, kept in self._kept_arrays.items():
            self._arrays[name][...] = kept
        self.__dict__["_values"] = copy.deepcopy(self._kept_values)

    # What a subclass with more than arrays and values extends.

    def save(self) -> None:
        """Copy the present values to the saved ones."""
        for name, kept in self._kept_arrays.items():
            kept[...] = self._arrays[name]
        self.__dict__["_kept_values"] = copy.deepcopy(self._values)

    def saved_arrays(self) -> list[np.ndarray]:
        """The arrays that the last commit saved, not copied: the same number and lengths on every rank."""
        return [self._kept_arrays[name] for name in sorted(self._kept_arrays)]

    def saved_values(self) -> Any:
        """The other values that it saved; they can be pickled."""
        return self._kept_values

    def become(self, values: Any) -> None:
        """Take over another rank's ``saved_values``; the arrays have been copied into ``saved_arrays``."""
        self.__dict__["_kept_values"] = values

    def join(self, group: Group) -> None:
        """Called in every generation, before the function: commits wait for this group."""
        self.__dict__["_group"] = group


def _is_array(value: Any) -> bool:
    """Whether a value is sent as its memory; arrays of texts, dates or objects, and masked ones, are sent as values."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and not isinstance(value, np.ma.MaskedArray)


def _as_text(value: Any) -> str | None:
    """A text that equal values share; None if there may be none, as for the user's own objects."""
    try:
        return json.dumps(value.item() if isinstance(value, np.generic) else value, sort_keys=True)
    except (TypeError, ValueError):
        return None


class World:
    """The ranks of this generation, and the shards of the work that belong to this rank."""

    def __init__(self, group: Group, plan: Plan, state: State):
        self.group, self.shards = group, plan.shards_of(group.rank)
        self._shards_of_all, self._state = len(plan.owners), state

    @property
    def rank(self) -> int:
        return self.group.rank

    @property
    def size(self) -> int:
        return self.group.size

    @property
    def generation(self) -> int:
        """0 at the start, one more after each failure."""
        return self.group.generation

    def allreduce(self, x: Any) -> np.ndarray:
        """The sum of ``x`` over all ranks, as a new array of its shape; equal bits on every rank. Raises PeerLost.

        Raises ValueError on every rank if their shapes or dtypes differ. A rank may have no shards: start the sum with
        zeros of the right shape, because Python's ``sum`` of nothing is the integer 0."""
        return reduce_across_ranks(x, self.group, average=False)

    def batches(
        self, samples: int | Sized, *, global_batch: int, epochs: int = 1, seed: int = 0, shuffle: bool = True
    ) -> Iterator[np.ndarray]:
        """For each step that is left: the numbers (n,) of the samples that this rank computes, which may be none.

        samples: how many there are, or something that long. The state counts committed steps in ``steps``, from which
        this continues; in all steps of an epoch each sample is used once, in an order that depends on ``seed``.
        Raises UserError if a step was not counted before the next one is asked for."""
        order = Order(
            samples if isinstance(samples, int) else len(samples), self._shards_of_all, global_batch, seed, shuffle
        )
        while (step := self._state.steps) < epochs * order.steps_per_epoch:
            epoch, step_in_epoch = divmod(step, order.steps_per_epoch)
            yield order.indices(epoch, step_in_epoch, self.shards)[0].copy()
            if self._state.steps == step:
                raise UserError(f"step {step} was not counted: update the state (steps, commit) before the next batch")

    def gather(self, value: Any) -> list[Any]:
        """Every rank's small picklable value, by rank. Raises PeerLost."""
        return self.group.gather_objects(value)


class _Work(Recoverable):
    """A user's state, as the recovery sees it."""

    def __init__(self, state: State):
        self.state, self.plan, self.shards = state, Plan((0,)), [0]

    def position(self) -> tuple[int, int]:
        return self.state.commits, 0

    def flat_arrays(self) -> list[np.ndarray]:
        return self.state.saved_arrays()

    def meta(self) -> Any:
        return self.state.saved_values(), self.state.commits

    def take_over(self, arrays: list[np.ndarray], meta: Any) -> None:
        for kept, received in zip(self.flat_arrays(), arrays, strict=True):
            kept[...] = received
        values, self.state.__dict__["_commits"] = meta
        self.state.become(values)

    def attach(self, group: Group, plan: Plan) -> DdlError | None:
        self.plan, self.shards = plan, plan.shards_of(group.rank)
        self.state.join(group)
        check_same_call(group, Call("ddl.elastic.run"))
        return None


class _Script:
    """The calls of ``run`` in this script, and every way out of the script.

    Outside ``run`` no rank needs another: all leave together at the interpreter's end, so that the first to end is not
    taken for dead, and each ends with the status that its script chose."""

    def __init__(self, hang_timeout_s: float):
        session = current()
        if session is None:
            session = join(hang_timeout_s)
        session.before_leaving = end_script
        self._session = session
        self._function: _Function[Any] | None = None
        self.heartbeat = session.heartbeat or Heartbeat(session.group.me.identity)
        ending.on_uncaught(self._uncaught)

    @property
    def group(self) -> Group:
        """The newest generation."""
        return self._session.group if self._function is None else self._function.driver.group

    def begin(self, function: _Function[Any], hang_timeout_s: float) -> None:
        self._function = function
        self.heartbeat.limits(hang_timeout_s, RECOVERY_TIMEOUT_S)
        self.heartbeat.wait(False)

    def end(self, refusal: DdlError | None = None) -> None:
        """All ranks have come to the same end. The rest of the script has no time limit."""
        hold(self.group)
        self._function = None  # a Trainer in this script may move on to a newer generation
        self.heartbeat.wait(True)
        self._session.refusal = refusal

    def die(self, error: BaseException) -> NoReturn:
        """Handle an exception that only this rank raised: the others continue once it is gone."""
        ending.show(error)
        ending.die()

    def exit(self, request: SystemExit) -> None:
        """The function has called ``sys.exit``, which ends the job. Returns if the interpreter's own end is enough."""
        status = request.code if isinstance(request.code, int) else int(request.code is not None)
        if self.group.tolerant or status:
            if not isinstance(request.code, int | None):
                print(request.code, file=sys.stderr)
            self.heartbeat.end()
            mpi.fail(self.group, status & 0xFF)

    def _uncaught(self, error: BaseException) -> None:
        self._session.end_if_refused(error)
        ending.show(error)
        if self._function is not None:
            self.heartbeat.end()
            mpi.fail(self.group, 1)
        else:
            self.heartbeat.part()  # limits how long the others, possibly in another ``run``, are waited for


_script: _Script | None = None


class _Function(Program, Generic[T]):
    """One call of ``run``: the function's calls, one in each generation. value: what it returned."""

    value: T

    work: _Work

    def __init__(
        self,
        function: Callable[[State, World], T],
        state: State,
        plan: Plan,
        group: Group,
        heartbeat: Heartbeat,
        on_failure: Callable[[Report], None],
        min_ranks: int,
    ):
        self.function, self.state, self.heartbeat, self.on_failure = function, state, heartbeat, on_failure
        self.work = _Work(state)
        state.__dict__["_beat"] = heartbeat.beat
        settings = RecoverySettings(
            min_ranks=min_ranks,
            beat=lambda phase: heartbeat.beat(state.commits, f"recover {phase}"),
            recovering=heartbeat.recovering,
        )
        self.driver = Driver(self, group, plan, settings)

    def run(self) -> None:
        group = self.driver.group
        self.state.restore()
        self.heartbeat.beat(self.state.commits, "function")
        self.value = self.function(self.state, World(group, self.work.plan, self.state))
        check_same_call(group, Call("returned from the function given to ddl.elastic.run"))

    def recovered(self, report: Report, failed: int, owners: tuple[int, ...]) -> None:
        if self.driver.group.is_leader:
            self._print(report)
        self.on_failure(report)

    @staticmethod
    def _print(report: Report) -> None:
        """Print the lines that training prints, on stderr: stdout is the script's. A refusal is printed at its end."""
        console, step = Console(0, sys.stderr, live=False), report.step
        for death in report.deaths:
            if death.identity in report.survivors:  # all ranks raised the same, and all end
                continue
            console.write(RankFailed(step, death.identity, death.host, death.kind, death.error, death.phase))
        phases = {"detect": max(report.detect_s.values(), default=0.0), **report.phases}
        if report.refusal is None:
            console.write(Recovered(step, report.generation, report.survivors, report.seconds, phases, report.moved))

    def describe(self, error: Exception) -> RankDeath:
        me, step = self.driver.group.me, self.state.commits
        shards = frozenset(self.work.shards)
        note = self.heartbeat.note_exception(error, step, shards)
        return RankDeath(me.identity, me.host, "exception", step, shards, note["error"], note["traceback"])


def run(
    function: Callable[[State, World], T],
    state: State,
    *,
    shards: int = 60,
    min_ranks: int = 1,
    hang_timeout_s: float = 120.0,
    on_failure: Callable[[Report], None] = lambda report: None,
    check_every: int = 200,
    group: Group | None = None,
) -> T:
    """Call ``function(state, world)`` on all ranks until it has returned on all of them; returns its value.

    shards: the number of pieces of the work; ``world.shards`` are this rank's. After a failure the state is reset to
    the newest commit and the function is called again. on_failure: called on every rank after each recovery.
    check_every: commits between comparisons of the ranks' states, of arrays and plain values, the first of which is at
    the first commit (0: never; choose it where hosts compute with different processors, which round differently).
    hang_timeout_s: a rank that neither commits nor waits for others for so many seconds counts as hung and is killed;
    one that is stopped (SIGSTOP) is killed after 2.
    Raises on every rank alike: Diverged if ranks are about to commit different states, Stop if fewer than ``min_ranks``
    are left, QuorumLost on the smaller side of a partition, UserCodeError if the function raised on all ranks, a second
    time, or before the first commit, CommError if communication failed twice in a row at the same commit with all ranks
    alive. If the script does not catch it, one rank prints it and all end with its status. Any other exception of the
    function ends this rank if the others can survive that, and the job otherwise."""
    global _script
    if not isinstance(state, State):
        raise UserError(f"ddl.elastic.run takes a ddl.elastic.State, not a {type(state).__name__}")
    if shards < 1:
        raise UserError(f"shards = {shards}: the work is cut into at least 1")
    script = None
    if group is None:
        script = _script = _script or _Script(hang_timeout_s)
    members = script.group if script is not None else group
    assert members is not None
    heartbeat = script.heartbeat if script is not None else Heartbeat(members.me.identity)
    job = _Function(function, state, assign(shards, members.size), members, heartbeat, on_failure, min_ranks)
    state.__dict__["_check_every"] = check_every
    if script is not None:
        script.begin(job, hang_timeout_s)
    refusal = None
    try:
        refusal = job.driver.run()
    except Leaves as leaves:
        if script is not None:
            script.die(leaves.error)
        raise leaves.error from None
    except JobEnded as ended:
        if script is not None:
            ending.leave(ended.exit_status)
        raise
    except SystemExit as request:
        if script is not None:
            script.exit(request)
        raise
    finally:
        state.__dict__.update(_beat=_no_heartbeat, _group=None)
        if script is not None:
            hold(script.group)
        else:
            heartbeat.close()
    if script is not None:
        script.end(refusal)
    if refusal is not None:
        raise refusal
    return job.value


def resilient(state: State, **settings: Any) -> Callable[[Callable[[State, World], T]], Callable[[], T]]:
    """Decorates a function of state and world: calling it without arguments is ``run(function, state, **settings)``."""

    def decorate(function: Callable[[State, World], T]) -> Callable[[], T]:
        @wraps(function)
        def survive() -> T:
            return run(function, state, **settings)

        return survive

    return decorate
