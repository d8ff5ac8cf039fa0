"""Optimizers that update all parameters by themselves and keep their own state, as those of another framework do.

State of the parameters' length that ddl's rules keep lies in slots (optimizer.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ddl.arrays import Layout
from ddl.optim.groups import Groups, Rule


@runtime_checkable
class Whole(Protocol):
    """What makes such an optimizer's Groups. lr: the learning rate before any schedule.
    needs_validation: its rate depends on the loss on the validation split."""

    lr: float

    @property
    def needs_validation(self) -> bool: ...

    def over(self, layout: Layout, rules: Sequence[Rule], freeze: Sequence[str]) -> Groups:
        """For parameters with this layout; see ``Groups``."""
        ...

    def unscheduled(self) -> Whole:
        """The same without its schedulers: it takes the learning rates that it is given."""
        ...
