"""What a user's own training loop works with: its state, which a commit saves, and the ranks of this generation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np

from ddl.collectives import Call, check_same_call, check_same_values, reduce_across_ranks
from ddl.collectives.contract import is_plain_array
from ddl.comm import Group
from ddl.data import Order, Plan
from ddl.errors import Diverged, UserError
from ddl.fault.work import EndJob
from ddl.wording import instead


def no_heartbeat(commits: int, phase: str) -> None:
    """The heartbeat of a state outside ``run``."""


def _is_trained_by_torch(value: Any) -> bool:
    """Whether it is a module, an optimizer or a scheduler of PyTorch, which refer to one another."""
    bases = {(base.__module__.partition(".")[0], base.__name__) for base in type(value).__mro__}
    return not bases.isdisjoint({("torch", "Module"), ("torch", "Optimizer"), ("torch", "LRScheduler")})


class State:
    """Named arrays and small picklable values, as attributes; ``commit`` saves their present values.

    Must be created equal on every rank. Arrays keep shape and dtype; assigning to one copies into it. Raises UserError
    for a name that the class itself needs, for a module, optimizer or scheduler of PyTorch, and where floats are
    assigned to an array of integers."""

    def __init__(self, **values: Any):
        taken = sorted(name for name in values if name.startswith("_") or name in dir(type(self)))
        if taken:
            raise UserError(f"a value of the state cannot be called {taken[0]!r}: State itself has that name")
        for name, value in values.items():
            if _is_trained_by_torch(value):
                raise UserError(
                    f"{name} is a {type(value).__name__} of PyTorch, of which a State would keep a copy: "
                    "use ddl.torch.State(module, optimizer, scheduler)"
                )
        # C order, because arrays that are sent must be contiguous.
        arrays = {name: np.array(v, order="C") for name, v in values.items() if is_plain_array(v)}
        small = {name: v for name, v in values.items() if name not in arrays}
        self.__dict__.update(_arrays=arrays, _values=small, _commits=0, _group=None, _check_every=0)
        self.__dict__["_beat"] = no_heartbeat
        self.__dict__.update(_kept_arrays=copy.deepcopy(arrays), _kept_values=copy.deepcopy(small))

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_arrays", ()):
            return self._arrays[name]
        if name in self.__dict__.get("_values", ()):
            return self._values[name]
        raise AttributeError(f"the state has no {name!r}; {instead(name, [*self._arrays, *self._values], 'it has')}")

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
            check_same_call(self._group, Call("commit"))
        self.save()
        self.__dict__["_commits"] += 1
        if self._group is not None and self._check_every and self._commits % self._check_every == 0:
            self._compare(self._group)
        self._beat(self._commits, "commit")
        self._beat(self._commits, "function")

    def _described(self) -> str:
        """The names of its arrays and values, with their shapes and types."""
        arrays = [f"{name} {x.shape} {x.dtype}" for name, x in sorted(self._arrays.items())]
        return ", ".join(["a state of", *arrays, *sorted(self._values)]).replace("of,", "of")

    def _compare(self, group: Group) -> None:
        """End the job where ranks have committed, or begin with, different arrays or plain values."""
        try:
            check_same_values(
                group, self.compared(), f"states at commit {self._commits}", "all ranks must have the same"
            )
        except ValueError as error:
            raise EndJob(Diverged(str(error))) from None

    def restore(self) -> None:
        """Return to the last commit."""
        for name, kept in self._kept_arrays.items():
            self._arrays[name][...] = kept
        self.__dict__["_values"] = copy.deepcopy(self._kept_values)

    # What a subclass with more than arrays and values extends.

    def compared(self) -> dict[str, Any]:
        """What the last commit saved, by name; it must be equal on all ranks."""
        return {**self._kept_arrays, **self._kept_values}

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
