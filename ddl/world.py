"""For your own training loop: rank and size, sums and broadcasts of arrays, an optimizer that averages gradients.

The names follow Horovod. To survive failures too, use ``ddl.elastic``; to train a given model on data, use
``ddl.Trainer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddl.arrays import host
from ddl.comm import Group
from ddl.errors import DdlError
from ddl.fault import session
from ddl.optim import Groups, Optimizer, Rule, slot_dtype


def init() -> Group:
    """Join the ranks that mpirun or srun started; one rank without them. Called again, or after a Trainer, it changes
    nothing. A Trainer that comes after it works in the same group, in which no death is survived."""
    joined = session.current()
    if joined is None:
        from ddl.comm import mpi

        joined = session.hold(mpi.start(tolerant="off"))
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
    from ddl.collectives import reduce_across_ranks

    return reduce_across_ranks(x, group(), average)


def broadcast(arrays: Mapping[str, np.ndarray], root: int = 0) -> None:
    """Overwrite named host arrays with those of rank ``root``, in place.

    Raises ValueError, on every rank and before anything is written, unless all ranks pass the same names, shapes,
    dtypes and ``root``."""
    from ddl.collectives import check_same_call

    natives = {name: arrays[name].dtype.newbyteorder("=") for name in sorted(arrays)}
    described = [f"{name}: {arrays[name].shape} {dtype}" for name, dtype in natives.items()]
    check_same_call(group(), f"broadcast(from {root}, {'; '.join(described)})")
    for name, dtype in natives.items():
        whole = np.ascontiguousarray(arrays[name], dtype)  # MPI knows no foreign byte order
        group().broadcast(whole, root)
        arrays[name][...] = whole


class DistributedOptimizer:
    """An optimizer for your own training loop: ``step`` averages the gradients over all ranks, then updates.

    params: named host arrays, updated in place; every rank must start from the same values (see ``broadcast``). ``lr``
    starts as the optimizer's and may be changed before each step, for example by a schedule. rules: other settings for
    parameters that match a pattern."""

    def __init__(self, optimizer: Optimizer, params: Mapping[str, np.ndarray], rules: Sequence[Rule] = ()):
        from ddl.arrays import FlatBuffer, Layout, aligned

        dtypes = {x.dtype for x in params.values()}
        if len(dtypes) != 1:
            raise ValueError(f"parameters must share one dtype, got {sorted(map(str, dtypes))}")
        self.params, self.lr, self.steps = dict(params), optimizer.lr, 0
        layout = Layout.of({name: x.shape for name, x in params.items()}, dtypes.pop())
        self.optimizer = Groups(layout, optimizer, rules)
        self._params, self._grads = FlatBuffer(layout), FlatBuffer(layout)
        self._slots = {name: aligned.zeros(layout.length, slot_dtype(layout.dtype)) for name in self.optimizer.slots}

    def step(self, grads: Mapping[str, Any]) -> None:
        """One update with the mean over ranks of ``grads``, given by the parameters' names.

        Raises ValueError, on every rank, if the ranks' gradients differ in names or shapes or their parameters in
        dtype."""
        from ddl.collectives import allreduce as sum_in_place
        from ddl.collectives import check_same_call

        given = {name: np.asarray(host(g)) for name, g in grads.items()}
        described = "; ".join(f"{name}: {given[name].shape}" for name in sorted(given))
        check_same_call(group(), f"DistributedOptimizer.step({described}, {self._grads.flat.dtype})")
        self._grads.assign(given)
        sum_in_place(self._grads.flat, group())
        self._params.assign(self.params)
        self.optimizer.update(self._params.flat, self._grads.flat, self._slots, self.lr, self.steps, 1.0 / size())
        self.steps += 1
        for name, x in self.params.items():
            x[...] = self._params[name]
