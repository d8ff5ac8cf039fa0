"""Things named in a job: an entry of a table, or a user's own as "package.module:Name".

What the things do is their own file's."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddl.data.source import Field
from ddl.data.transforms import TRANSFORMS
from ddl.errors import ConfigError


def find(name: str, table: Mapping[str, Callable[..., Any]], kind: str) -> Callable[..., Any]:
    """The entry ``name`` of ``table``, or the object that "package.module:Name" names.

    Raises ConfigError when there is neither."""
    if ":" not in name:
        if name not in table:
            raise ConfigError(
                f"no {kind} is called {name!r}; there are {sorted(table)}, or name yours 'package.module:Name'"
            )
        return table[name]
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be found: {error}") from error


def build(make: Callable[..., Any], options: Mapping[str, Any], what: str, values: Sequence[Any] = ()) -> Any:
    """``make(*values, **options)``; arguments that it does not take are a ConfigError."""
    try:
        inspect.signature(make).bind(*values, **options)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from error
    return make(*values, **options)


def make_transforms(specs: Sequence[str | Mapping[str, Any]], fields: Mapping[str, Field]) -> list[Any]:
    """Transforms from a job's list: "flip", "shift:2" (values in the order of its settings, by commas),
    {"name": "shift", "pixels": 2} or "package.module:Name".

    A transform with a method ``for_fields`` is asked for one that suits the source's fields."""
    made = []
    for spec in specs:
        name, values, options = _parse(spec)
        transform = build(find(name, TRANSFORMS, "augmentation"), options, f"augmentation {name!r}", values)
        made.append(transform.for_fields(fields) if hasattr(transform, "for_fields") else transform)
    return made


def _parse(spec: str | Mapping[str, Any]) -> tuple[str, list[float], dict[str, Any]]:
    """(name, values by order, options by name)."""
    if not isinstance(spec, str):
        options = dict(spec)
        if "name" not in options:
            raise ConfigError(f"an augmentation needs a name: {options}")
        return str(options.pop("name")), [], options
    name, _, values = spec.partition(":")
    if not values or name not in TRANSFORMS:
        return spec, [], {}
    try:
        return name, [int(v) if v.strip().isdigit() else float(v) for v in values.split(",")], {}
    except ValueError:
        raise ConfigError(f"augmentation {spec!r}: {values!r} are not numbers") from None
