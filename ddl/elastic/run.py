"""Calls a user's own training loop in one generation after another. What the loop works with is in state.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np

from ddl.collectives import Call, check_same_call, end_script
from ddl.comm import Group, ending, mpi
from ddl.data import Plan, assign
from ddl.elastic.state import State, World, no_heartbeat
from ddl.errors import DdlError, JobEnded, UserError
from ddl.fault.decision import RankDeath
from ddl.fault.driver import Driver
from ddl.fault.recover import Leaves, RecoverySettings, Report
from ddl.fault.session import current, hold, join
from ddl.fault.watchdog import Heartbeat
from ddl.fault.work import Program, Recoverable
from ddl.metrics import Console, RankFailed, Recovered

T = TypeVar("T")
RECOVERY_TIMEOUT_S = 30.0


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
        check_same_call(group, Call(f"ddl.elastic.run({len(plan.owners)} shards, {self.state._described()})"))
        self.state.join(group)
        if not self.state.commits:
            self.state._compare(group)
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
        state.__dict__.update(_beat=no_heartbeat, _group=None)
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
