"""Which columns of a table are inputs and which are targets: by the settings, or as in the training part.

source.py opens the table with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddl.data.tables.cells import is_integer
from ddl.data.tables.columns import check_types
from ddl.data.tables.convert import Problems
from ddl.data.tables.records import Reader
from ddl.errors import ConfigError, DataError
from ddl.wording import instead, listed

MAX_CATEGORIES = 20
MOST_NAMED = 50  # columns that an error lists
UNUSED = ("drop", "text")  # types of columns that are no input


@dataclass(frozen=True)
class Settings:
    """How a table is read. columns: those of x, () for all others; drop: columns left out. types: name -> one of KINDS,
    or "date:dmy". max_categories: of a column, that are one-hot. encoding: of text files. missing: further marks of
    missing cells. skips_missing_targets: leave such rows out. embeds: the model takes embedded categories."""

    columns: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    max_categories: int = MAX_CATEGORIES
    encoding: str = ""
    missing: tuple[str, ...] = ()
    skips_missing_targets: bool = False
    embeds: bool = False


@dataclass(frozen=True)
class Roles:
    """Places of the columns in a file. left_out: a line for each reason."""

    features: list[int]
    targets: list[int]
    left_out: list[str] = field(default_factory=list)


def place_of(reader: Reader, column: str | int) -> int:
    """The place of a column by its name or number. Raises DataError if there is none, or more than one."""
    if isinstance(column, str) and column in reader.names and reader.is_named:
        if reader.names.count(column) > 1:
            message = f"{reader.names.count(column)} columns are called {column!r}: name one by its number, from 0"
            raise DataError(message, reader.path, 1, reader.unit)
        return reader.names.index(column)
    if is_integer(column) and -len(reader.names) <= int(column) < len(reader.names):
        return int(column) % len(reader.names)
    hint = instead(str(column), reader.names, "there are")
    raise DataError(f"no column {column!r}; {hint}", reader.path, 1, reader.unit)


def _places(reader: Reader, columns: Sequence[str | int]) -> list[int]:
    """``place_of`` each; an error names all that are wrong."""
    found, wrong = [], []
    for column in columns:
        try:
            found.append(place_of(reader, column))
        except DataError as error:
            wrong.append(str(error).partition(": ")[2])
    if wrong:
        raise DataError("; ".join(wrong), reader.path, 1, reader.unit)
    return found


def roles(
    reader: Reader, settings: Settings, targets: Sequence[str | int] | None, features: Sequence[str | int] | None
) -> Roles:
    """targets: None is the last column, [] none. features: as ``settings.columns``, whose place they take."""
    check_types(settings.types, reader.names)
    wanted: Sequence[str | int] = features if features is not None else settings.columns
    last = [reader.names[-1]] if reader.is_named else [-1]
    places = _places(reader, [*(last if targets is None else targets), *wanted, *settings.drop])
    ends = len(places) - len(settings.drop) - len(wanted), len(places) - len(settings.drop)
    own, chosen, dropped = places[: ends[0]], places[ends[0] : ends[1]], places[ends[1] :]
    if both := sorted({reader.names[at] for at in own} & {reader.names[at] for at in (*chosen, *dropped)}):
        raise ConfigError(f"data.columns and data.drop name the target {listed(map(repr, both))}")
    kinds = {reader.names.index(name): kind for name, kind in settings.types.items() if name in reader.names}
    refused = {at: what for at, what in reader.refused.items() if at not in own and kinds.get(at) not in UNUSED}
    if asked := [f"column {reader.names[at]!r} holds {what}" for at, what in refused.items() if at in chosen]:
        raise DataError(f"{'; '.join(asked)}: no values", reader.path, 1, reader.unit)
    if bad := [at for at in own if at in reader.refused]:
        what = f"the target {reader.names[bad[0]]!r} holds {reader.refused[bad[0]]}"
        raise DataError(f"{what}: no values", reader.path, 1, reader.unit)
    others = [
        at for at in range(len(reader.names)) if at not in (*own, *dropped, *refused) and kinds.get(at) not in UNUSED
    ]
    measured = [at for at in others if at not in reader.row_numbers or at in kinds] or others
    lines = []
    if not wanted:
        numbering = [repr(reader.names[at]) for at in reader.row_numbers if at not in (*measured, *own, *dropped)]
        if numbering:
            lines.append(f"column {', '.join(numbering)} only numbers the rows: left out (data.columns)")
        lines += [f"column {reader.names[at]!r} holds {what}: left out" for at, what in refused.items()]
    used = [at for at in chosen if at not in dropped] if wanted else measured
    if not used:
        if len(reader.names) == 1 and targets != [] and reader.unit == "line":
            known = "none of , ; | and tab divides its first lines: set data.options.delimiter"
            raise DataError(f"a single column, with the target: {known}", reader.path, 1, reader.unit)
        raise DataError("no column is left for x", reader.path, 1, reader.unit)
    return Roles(used, own, lines)


def matched(reader: Reader, like: Mapping[str, Any], needed: Sequence[int], is_labelled: bool, problems: Problems):
    """(features, targets) of this file, as places: by name if both files name their columns, else by position; None
    where a column is not there, which becomes a problem.

    If a name occurs twice, names cannot identify columns: both files must have the same names in the same order. A file
    without targets that has as many columns as there are features holds just these. needed: the places in ``like`` of
    the features that are not left out."""
    columns, features = like["columns"], list(like["features"])
    targets = list(like["targets"]) if is_labelled else []
    is_named = reader.is_named and not isinstance(columns, int)
    own = reader.names
    twice = sorted(name for names in (own, columns) if is_named for name in set(names) if names.count(name) > 1)
    if twice and own not in (columns, [columns[at] for at in features]):
        raise DataError(
            f"several columns are called {twice[0]!r}, so they cannot be matched with those of the training part, "
            f"{listed(columns, 'and')}: rename them, or bring the columns in the same order",
            reader.path,
            1,
            reader.unit,
        )
    if is_named and not twice:
        places = {name: at for at, name in enumerate(own)}
        absent = [columns[at] for at in (*needed, *targets) if columns[at] not in places]
        if absent:
            there = f": there are {listed(own[:MOST_NAMED], 'and')}{', ...' * (len(own) > MOST_NAMED)}"
            what = f"no column {listed(map(repr, absent))}, which the training part has{there}"
            problems.add(reader, 1, what)
        return [places.get(columns[at]) for at in features], [places.get(columns[at]) for at in targets]
    count = columns if isinstance(columns, int) else len(columns)
    if len(own) == count:
        return features, targets
    if targets or len(own) != len(features):
        wanted = f"{count} of the training part" + ("" if targets else f" or its {len(features)} features")
        raise DataError(f"{len(own)} columns instead of the {wanted}", reader.path, 1, reader.unit)
    return list(range(len(features))), []
