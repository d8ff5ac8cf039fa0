"""A setting: a field of a section with its meaning and its limits.

The settings themselves are in sections.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """The numbers that a setting may have; None: no limit on that side."""

    least: float | None = None
    above: float | None = None
    below: float | None = None


def setting(default: T, meaning: str, **limits: float) -> T:
    """A field with its default, the meaning that ``--help`` shows, and the Limits that check.py enforces."""
    start: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    made: T = field(metadata={"meaning": meaning, "limits": Limits(**limits)}, **start)
    return made
