"""Parameter groups: which optimizer, learning rate and weight decay each stretch of the flat buffer gets.

The update rules are in the optimizers; the Layout maps names to slices."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from ddl.arrays import Array, Layout
from ddl.errors import ConfigError
from ddl.kernels.sums import squares
from ddl.optim.elementwise import is_elementwise
from ddl.optim.optimizer import Optimizer, OwnState
from ddl.optim.prune import SLOT, Pruning


@dataclass(frozen=True)
class Rule:
    """Settings for the parameters whose names match ``match`` (``*``, ``?`` and ``[...]`` as in file names).

    optimizer: another than the job's; its lr counts in proportion to the job's, so the schedule holds for both.
    lr_factor: multiplies the learning rate. weight_decay: instead of the optimizer's. frozen: never changed."""

    match: str
    optimizer: Optimizer | None = None
    lr_factor: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False


@dataclass(frozen=True)
class FineTuning:
    """How a pretrained model is trained, in addition to the rules.

    factors: name -> what its learning rate is multiplied by; a name that is not there: 1. begins: pattern -> the
    number of updates during which the parameters that match it stay as they are."""

    factors: Mapping[str, float] = field(default_factory=dict)
    begins: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdateRange:
    """A range of the flat buffer that one optimizer updates from update ``begin`` on; ``optimizer`` is None if it is
    frozen."""

    place: slice
    names: tuple[str, ...]
    optimizer: Any
    lr_factor: float
    begin: int = 0

    def is_trained(self, step: int) -> bool:
        """Whether update number ``step`` changes it."""
        return self.optimizer is not None and step >= self.begin


class Groups:
    """An optimizer for a whole layout: adjacent parameters with equal treatment are updated in one pass.

    The first rule that matches a name applies, or else the job's optimizer. ``no_decay``: patterns of parameters
    without weight decay. ``freeze``: patterns of parameters that never change. ``pruning``: of weights that become
    zero. Raises ConfigError for a pattern that matches no parameter, and for pruning with an optimizer that looks at
    whole layers."""

    def __init__(
        self,
        layout: Layout,
        optimizer: Optimizer,
        rules: Sequence[Rule] = (),
        *,
        no_decay: Sequence[str] = (),
        freeze: Sequence[str] = (),
        fine_tuning: FineTuning = FineTuning(),
        pruning: Pruning | None = None,
    ):
        self.layout, self.optimizer, self.pruning = layout, optimizer, pruning
        for pattern in [*(rule.match for rule in rules), *no_decay, *freeze, *fine_tuning.begins]:
            if not any(fnmatchcase(name, pattern) for name in layout.shapes):
                raise ConfigError(f"no parameter matches {pattern!r}; there are {_listed(layout.shapes)}")
        self._treatments: dict[str, tuple[Optimizer | None, float, int]] = {}
        for name in layout.shapes:
            chosen, factor = self._treatment(name, rules, no_decay, freeze)
            begin = max((b for p, b in fine_tuning.begins.items() if fnmatchcase(name, p)), default=0)
            self._treatments[name] = chosen, factor * fine_tuning.factors.get(name, 1.0), begin
        self.ranges = self._ranges()
        whole = (part.optimizer for part in self.ranges if part.optimizer is not None and part.optimizer.layerwise)
        if pruning is not None and (one := next(whole, None)):
            raise ConfigError(f"pruning does not go with {type(one).__name__}, which scales by the norms of layers")

    def part(self, layout: Layout) -> Groups:
        """The same optimizers for some of the parameters, in another layout."""
        made = copy.copy(self)
        made.layout = layout
        made.ranges = made._ranges()
        return made

    def _ranges(self) -> list[UpdateRange]:
        ranges: list[UpdateRange] = []
        for name, place in self.layout.slices.items():
            chosen, factor, begin = self._treatments[name]
            last = ranges[-1] if ranges else None
            together = last is not None and (last.optimizer, last.lr_factor, last.begin) == (chosen, factor, begin)
            if last is not None and together and not (chosen is not None and chosen.layerwise):
                # The padding between two parameters is zero in all arrays and stays zero, so one pass may cross it.
                ranges[-1] = replace(last, place=slice(last.place.start, place.stop), names=(*last.names, name))
            else:
                ranges.append(UpdateRange(place, (name,), chosen, factor, begin))
        return ranges

    def _treatment(
        self, name: str, rules: Sequence[Rule], no_decay: Sequence[str], freeze: Sequence[str]
    ) -> tuple[Optimizer | None, float]:
        rule = next((r for r in rules if fnmatchcase(name, r.match)), Rule("*"))
        if rule.frozen or any(fnmatchcase(name, pattern) for pattern in freeze):
            return None, 0.0
        chosen = rule.optimizer or self.optimizer
        decay = 0.0 if any(fnmatchcase(name, pattern) for pattern in no_decay) else rule.weight_decay
        if decay is not None and decay != chosen.weight_decay:
            chosen = replace(chosen, weight_decay=decay)  # type: ignore[type-var]
        return chosen, rule.lr_factor * (chosen.lr / self.optimizer.lr)

    @property
    def lr(self) -> float:
        """The job's learning rate before any schedule."""
        return self.optimizer.lr

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the flat arrays that the optimizers keep, zero at the start."""
        names = [slot for part in self.ranges if part.optimizer is not None for slot in part.optimizer.slots]
        return tuple(dict.fromkeys([*names, *([] if self.pruning is None else [SLOT])]))

    @property
    def own_slots(self) -> tuple[str, ...]:
        """The slots in which ranks differ."""
        return ()

    @property
    def frozen(self) -> bool:
        """Whether some parameters are not changed, never or at first."""
        return any(not part.is_trained(0) for part in self.ranges)

    @property
    def own(self) -> OwnState | None:
        """State that the optimizer keeps beside the slots."""
        return None

    def validated(self, loss: float) -> None:
        """Called on every rank after each evaluation on the validation split, with its loss."""

    def squared_norm(self, grads: Array, step: int = 0) -> float:
        """Squared norm of the gradients of all parameters that update number ``step`` changes."""
        return sum(squares(grads[part.place]) for part in self.ranges if part.is_trained(step))

    @property
    def is_elementwise(self) -> bool:
        """Whether any slice of the parameters can be updated alone: no rule is layerwise or overrides ``update``."""
        return all(part.optimizer is None or is_elementwise(part.optimizer) for part in self.ranges)

    def update(
        self, params: Array, grads: Array, slots: Mapping[str, Array], lr: float, step: int, scale: float
    ) -> None:
        """One step over flat arrays of the layout's length, in place; ``grads`` stays as it is.

        lr: the rate of this step. step: updates so far. scale: turns the gradient of the sum into the mean's."""
        everything = [slice(0, len(params))]
        if self.pruning is not None:
            self.pruning.mark(slots[SLOT], slots[SLOT], params, step, everything)
        for part in self.ranges:
            if part.is_trained(step):
                kept = {name: slots[name][part.place] for name in part.optimizer.slots}
                rate, own_step = lr * part.lr_factor, step - part.begin
                part.optimizer.update(params[part.place], grads[part.place], kept, rate, own_step, scale)
        if self.pruning is not None:
            self.pruning.clear(params, slots[SLOT], everything)

    def update_into(
        self,
        new: tuple[Array, Mapping[str, Array]],
        old: tuple[Array, Mapping[str, Array]],
        grads: Array,
        lr: float,
        step: int,
        scale: float,
        within: slice,
    ) -> None:
        """The same step from ``old`` parameters and slots to ``new`` ones, as far as they lie ``within``; only where
        ``is_elementwise``. What is frozen, of no name or no optimizer's slot is not written: it is equal in both.
        ``prune_into`` follows."""
        for part in self.ranges:
            place = slice(max(part.place.start, within.start), min(part.place.stop, within.stop))
            if not part.is_trained(step) or place.start >= place.stop:
                continue
            arrays = [[params[place], *(slots[n][place] for n in part.optimizer.slots)] for params, slots in (new, old)]
            part.optimizer.update_into(*arrays, grads[place], lr * part.lr_factor, step - part.begin, scale)

    def prune_into(
        self,
        new: tuple[Array, Mapping[str, Array]],
        old: tuple[Array, Mapping[str, Array]],
        step: int,
        within: Sequence[slice],
    ) -> None:
        """Set the pruned weights of ``new`` to zero, as far as they lie ``within``, after ``update_into``."""
        if self.pruning is not None:
            self.pruning.mark(new[1][SLOT], old[1][SLOT], old[0], step, within)
            self.pruning.clear(new[0], new[1][SLOT], within)

    def __repr__(self) -> str:
        return "\n".join(
            f"{', '.join(r.names)}: " + ("frozen" if r.optimizer is None else f"{r.optimizer} x {r.lr_factor}")
            for r in self.ranges
        )


def _listed(names: Mapping[str, object], most: int = 12) -> str:
    """Some names for an error message."""
    first = list(names)[:most]
    return ", ".join(first) + (f" and {len(names) - most} more" if len(names) > most else "")
