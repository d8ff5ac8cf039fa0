"""For your own training loop: rank and size, sums and broadcasts of arrays, an optimizer that averages gradients.

The names follow Horovod. To survive failures too, use ``ddl.elastic``; to train a given model on data, use
``ddl.Trainer``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ddl.arrays import FlatBuffer, Layout, aligned, host
from ddl.collectives import Call, check_same_call, check_same_values, end_script, reduce_across_ranks, shadow_the_rest
from ddl.collectives import allreduce as sum_in_place
from ddl.comm import Group
from ddl.errors import DdlError
from ddl.fault import session, startup
from ddl.fault.call_watch import CallWatch
from ddl.optim import Groups, Optimizer, Rule, slot_dtype
from ddl.wording import listed


def init(timeout_s: float = 600.0) -> Group:
    """Join the ranks that mpirun or srun started; one rank without them. Called again, or after a Trainer, it changes
    nothing. A Trainer that comes after it works in the same group, in which no death is survived.

    timeout_s: if a rank waits so long in a call of this module for the others, one line says which rank is where, and
    all end with status 1; 0: never."""
    joined = session.current()
    if joined is None:
        from ddl.comm import mpi

        with startup.meeting(startup.OF_SCRIPTS_S):
            group = mpi.start(tolerant="off")
        joined = session.hold(group)
        if timeout_s and group.size > 1:
            group.kept["watch_call"] = CallWatch(group, timeout_s).waiting
    joined.before_leaving = end_script
    return joined.group


def group() -> Group:
    """The group that ``init``, or a Trainer, joined; raises DdlError before that."""
    joined = session.current()
    if joined is None:
        raise DdlError("call ddl.init() first")
    return joined.group


def rank() -> int:
    """This process's rank, 0 .. size()-1."""
    return group().rank


def size() -> int:
    """How many ranks there are."""
    return group().size


def local_rank() -> int:
    """This process's rank on its node, for example to choose a GPU."""
    return group().local_ranks.index(group().rank)


def allreduce(x: Any, average: bool = True) -> np.ndarray:
    """The mean (or sum) of ``x`` over all ranks, as a new host array of the same shape; equal bits on every rank.

    The mean of integers or booleans is float64, the sum of booleans int64; any other result has the dtype of ``x``.
    Raises, on every rank, ValueError if the ranks' shapes, dtypes or operations differ, and TypeError for a dtype
    that cannot be summed. Details: ``ddl.collectives.reduce_across_ranks``."""
    return reduce_across_ranks(x, group(), average)


def broadcast(arrays: Mapping[str, np.ndarray], root: int = 0) -> None:
    """Overwrite named host arrays with those of rank ``root``, in place.

    Raises ValueError, on every rank and before anything is written, unless all ranks pass the same names, shapes,
    dtypes and ``root``. Raises TypeError where ``arrays`` is not a mapping of host arrays."""
    if not isinstance(arrays, Mapping) or not all(isinstance(x, np.ndarray) for x in arrays.values()):
        raise TypeError(
            "ddl.broadcast takes NumPy arrays by name, as in ddl.broadcast({'weight': weight}); "
            "ddl.torch.broadcast_parameters takes a module or its tensors"
        )
    natives = {name: arrays[name].dtype.newbyteorder("=") for name in sorted(arrays)}
    parts = [(arrays[name].shape, dtype) for name, dtype in natives.items()]
    described = [f"{name}: {shape} {dtype}" for name, (shape, dtype) in zip(natives, parts, strict=True)]
    call = _Broadcast(f"broadcast(from {root}, {'; '.join(described)})", root, tuple(parts))
    check_same_call(group(), call)
    for name, dtype in natives.items():
        whole = np.ascontiguousarray(arrays[name], dtype)  # MPI knows no foreign byte order
        group().broadcast(whole, root)
        arrays[name][...] = whole


@contextlib.contextmanager
def join(*optimizers: Any) -> Iterator[None]:
    """Let ranks make different numbers of calls: ``with ddl.join(optimizer): for batch in my_batches: ...``.

    A rank that leaves the block waits until all have left it. Meanwhile it shadows their calls: it adds zeros to their
    sums, does not count in their means, and its ``optimizers`` make the same updates, so parameters stay equal. All
    ranks enter the block, with the same optimizers in the same order; it cannot be nested.
    Raises, on every rank, ValueError where a call is impossible without a rank that has left: a broadcast from that
    rank, or a step of an optimizer that was not given."""
    kept = group().kept
    if "join" in kept:
        raise DdlError("a ddl.join block is inside another")
    joinable: list[Any] = [one if isinstance(one, DistributedOptimizer) else JOINABLE.get(one) for one in optimizers]
    if None in joinable:
        kind = type(optimizers[joinable.index(None)]).__name__
        raise TypeError(f"ddl.join takes what DistributedOptimizer of ddl or ddl.torch returned, not a {kind}")
    check_same_call(group(), Call(f"join({len(optimizers)} optimizers)"))
    for optimizer in joinable:
        optimizer.check_start()
    kept["join"] = joinable
    try:
        yield
        shadow_the_rest(group())
    finally:
        del kept["join"]


@dataclass(frozen=True)
class _Broadcast(Call):
    """parts: shapes and dtypes of the arrays."""

    parts: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...] = ()

    def shadow(self, group: Group, contributors: int) -> None:
        assert self.root is not None
        for shape, dtype in self.parts:
            group.broadcast(np.empty(shape, dtype), self.root)


# Optimizers of other frameworks that average over the ranks -> what ``join`` calls for them.
JOINABLE: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def place_in_join(optimizer: Any) -> int:
    """The place of an optimizer in the ``join`` block, -1 if it is not there."""
    return next((i for i, other in enumerate(group().kept.get("join", ())) if other is optimizer), -1)


@dataclass(frozen=True)
class OptimizerStep(Call):
    """place: of the optimizer in the ``join`` block, -1 if it is not there."""

    place: int = -1
    lr: float = 0.0

    def why_not_shadowed(self) -> str:
        return "" if self.place >= 0 else "whose optimizer was not given to ddl.join"

    def shadow(self, group: Group, contributors: int) -> None:
        group.kept["join"][self.place].shadow(self.lr, contributors)


class DistributedOptimizer:
    """An optimizer for your own training loop: ``step`` averages the gradients over all ranks, then updates.

    params: named host arrays, updated in place; every rank must start from the same values (see ``broadcast``). ``lr``
    starts as the optimizer's and may be changed before each step, for example by a schedule. rules: other settings for
    parameters that match a pattern."""

    def __init__(self, optimizer: Optimizer, params: Mapping[str, np.ndarray], rules: Sequence[Rule] = ()):
        if not isinstance(optimizer, Optimizer) or not isinstance(params, Mapping):
            raise TypeError(
                "ddl.DistributedOptimizer takes an optimizer of ddl.optim and arrays by name; one of torch.optim goes "
                "into ddl.torch.DistributedOptimizer"
            )
        dtypes = {x.dtype for x in params.values()}
        if len(dtypes) != 1:
            raise ValueError(f"parameters must share one dtype, got {listed(sorted(map(str, dtypes)), 'and')}")
        self.params, self.lr, self.steps = dict(params), optimizer.lr, 0
        self._is_checked = False
        layout = Layout.of({name: x.shape for name, x in params.items()}, dtypes.pop())
        self.optimizer = Groups(layout, optimizer, rules)
        self._params, self._grads = FlatBuffer(layout), FlatBuffer(layout)
        self._slots = {name: aligned.zeros(layout.length, slot_dtype(layout.dtype)) for name in self.optimizer.slots}

    def step(self, grads: Mapping[str, Any]) -> None:
        """One update with the mean over ranks of ``grads``, given by the parameters' names.

        Raises ValueError, on every rank, if the ranks' gradients differ in names or shapes, their parameters in dtype,
        their learning rates, or before the first step their parameters."""
        given = {name: np.asarray(host(g)) for name, g in grads.items()}
        described = "; ".join(f"{name}: {given[name].shape}" for name in sorted(given))
        text = f"DistributedOptimizer.step({described}, {self._grads.flat.dtype}, lr {self.lr:g})"
        contributors = check_same_call(group(), OptimizerStep(text, None, place_in_join(self), self.lr))
        self.check_start()
        self._grads.assign(given)
        self._update(contributors)

    def check_start(self) -> None:
        """Raises ValueError, on every rank, if the ranks' parameters differ before the first step."""
        if self._is_checked:
            return
        check_same_values(group(), self.params, "parameters before the first step", "call ddl.broadcast(params) first")
        self._is_checked = True

    def shadow(self, lr: float, contributors: int) -> None:
        """Take part in a step of the other ranks without gradients."""
        self.lr = lr
        self._grads.flat[...] = 0
        self._update(contributors)

    def _update(self, contributors: int) -> None:
        sum_in_place(self._grads.flat, group())
        self._params.assign(self.params)
        self.optimizer.update(self._params.flat, self._grads.flat, self._slots, self.lr, self.steps, 1.0 / contributors)
        self.steps += 1
        for name, x in self.params.items():
            x[...] = self._params[name]
