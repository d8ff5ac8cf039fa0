"""Create transforms from their names in a job. transforms.py implements them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ddl.data.source import Field
from ddl.data.transforms import TRANSFORMS, Transform
from ddl.errors import ConfigError
from ddl.registry import QUALIFIED, adapt, instantiate, resolve


def make_transforms(
    specs: Sequence[str | Mapping[str, Any] | Transform], fields: Mapping[str, Field]
) -> list[Transform]:
    """Transforms from a job's list: "flip", "shift:2" (values in the order of its settings, by commas),
    {"name": "shift", "pixels": 2}, "package.module:Name", or one that has been made; each as it suits ``fields``."""
    made = []
    for spec in specs:
        transform: Any = spec
        if isinstance(spec, str | Mapping):
            name, values, options = _parse(spec)
            builder = resolve(name, TRANSFORMS, "data.augment")
            transform = instantiate(builder, options, f"augmentation {name!r}", *values)
        made.append(adapt(transform, Transform).for_fields(fields))
    return made


def _parse(spec: str | Mapping[str, Any]) -> tuple[str, list[float], dict[str, Any]]:
    """(name, values by order, options by name)."""
    if not isinstance(spec, str):
        options = dict(spec)
        if "name" not in options:
            raise ConfigError(f"an augmentation needs a name: {options}")
        return str(options.pop("name")), [], options
    name, _, values = spec.partition(":")
    if not values or (name not in TRANSFORMS and QUALIFIED.fullmatch(spec)):
        return spec, [], {}
    try:
        return name, [int(v) if v.strip().isdigit() else float(v) for v in values.split(",")], {}
    except ValueError:
        raise ConfigError(f"augmentation {spec!r}: {values!r} must be numbers, with commas between") from None
