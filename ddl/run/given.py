"""The data that a script gives to a Trainer, as sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddl.data import Arrays, Source, as_known, as_source, split_by
from ddl.errors import UserError


def parts_of(data: Any, others: Mapping[str, Any], seed: int) -> dict[str, Source | None]:
    """The parts of the data by name. A number among ``others`` is a fraction of the samples of ``data``."""
    train = source_of(data)
    if train is None:
        raise UserError("a Trainer needs data")
    numbers = {name: float(value) for name, value in others.items() if isinstance(value, int | float)}
    given = {name: None if name in numbers else source_of(value) for name, value in others.items()}
    fractions = {name: value for name, value in numbers.items() if value}
    return {"train": train, **given, **(split_by(as_source(train), fractions, seed) if fractions else {})}


def source_of(data: Source | tuple[Any, Any] | None) -> Source | None:
    """The source that ``data`` is, or that a pair of arrays makes. Raises UserError for anything else."""
    if isinstance(data, tuple | list):
        if len(data) not in (1, 2):
            raise UserError(
                f"data is a source, or a pair of arrays (x, y), and not {len(data)} things: "
                "ddl.torch.Dataset(data) takes a list of samples"
            )
        return Arrays(*data)
    return as_known(data)
