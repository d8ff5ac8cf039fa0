"""A job's dataset: a source by name or from files, cut into training, validation and test parts.

The formats are in formats/, generated sources in generated.py; shards.py cuts the training part into shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ddl.data.balance import oversample as oversampled
from ddl.data.digits import digits
from ddl.data.formats.detect import Request, columns_of, open_files
from ddl.data.formats.pixels import ImageSettings
from ddl.data.generated import diabetes, linear, stdlib_lines, stdlib_text
from ddl.data.memory import Shared, Subset, as_dtype, labels_of
from ddl.data.source import Source, as_source
from ddl.data.split import random_split, sequential_split, stratified_split
from ddl.data.tables.roles import Settings
from ddl.data.target_moments import lost_in_cast
from ddl.data.targets import BINARY, CROSS_ENTROPY, KINDS, OF_VALUES, Target, decide
from ddl.errors import ConfigError, DataError
from ddl.registry import adapter_of, instantiate, resolve
from ddl.wording import listed

SOURCES: dict[str, Callable[..., Any]] = {
    "digits": digits,
    "linear": linear,
    "diabetes": diabetes,
    "stdlib_lines": stdlib_lines,
    "stdlib_text": stdlib_text,
}


# Datasets of other frameworks: base class -> what makes a source of one; and the same by the prefix of a source's name.
FOREIGN = {
    "torch.utils.data.dataset.Dataset": "ddl.torch:Dataset",
    "datasets.arrow_dataset.Dataset": "ddl.torch:Dataset",
    "datasets.iterable_dataset.IterableDataset": "ddl.torch:Dataset",
    "torch.utils.data.dataloader.DataLoader": "ddl.torch:Dataset",  # which says what to give instead
}
PREFIXES = {"torch": "ddl.torch:Dataset"}


def as_known(opened: Any) -> Any:
    """``opened``, where it is a dataset of another framework as a source."""
    adapter = adapter_of(opened, FOREIGN)
    return opened if adapter is None else adapter(opened)


@dataclass(frozen=True)
class Splits:
    """The parts of a dataset. All have the same fields. names: of the classes, if they have names.

    target: what "y" is, if ``open_dataset`` decided it."""

    train: Source
    validation: Source | None = None
    test: Source | None = None
    names: Sequence[str] = ()
    target: Target | None = None

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            part = getattr(self, name)
            object.__setattr__(self, name, None if part is None else as_source(part))


def open_dataset(
    source: str = "digits",
    *,
    path: str = "",
    targets: str = "",
    format: str = "auto",
    validation: float | str = 0.1,
    test: float | str = 0.2,
    stratify: bool = True,
    seed: int = 0,
    dtype: np.dtype | str = "float32",
    oversample: float = 0.0,
    options: Mapping[str, Any] | None = None,
    target_kind: str = "auto",
    loss: str = "auto",
    classes: int | None = None,
    normalize: str = "none",
    measured: bool = False,
    images: ImageSettings | None = None,
    table: Settings | None = None,
    scale_targets: bool = False,
) -> Splits:
    """Open a dataset; only headers (and for text files an index) are read before a source's ``hold`` is called.

    source: a name from SOURCES, "files" with ``path`` (a file, folder or pattern), or "package.module:Name": what it
    returns is a source, a dict of sources by part, or Splits. targets: a file of targets, or columns of a CSV file.
    validation, test: a fraction of the samples, drawn by ``seed``, or a file; where the data bring a part of their
    own, that one is used instead of a fraction. stratify: fractions keep the share of each class. dtype: of
    floating fields. oversample: see balance.py. options: further arguments of the source or format.
    target_kind, loss, classes: see targets.decide. normalize: unless "none", x stays in float64 if a cast before
    normalisation would lose it. measured: whole numbers in x are measurements, not tokens. table: settings of tables.
    images: how images become samples. scale_targets: the same for y, where it holds values.

    Raises ConfigError for an impossible request and DataError for an invalid file."""
    if target_kind not in KINDS:
        raise ConfigError(f"data.target_kind = {target_kind!r} must be one of {', '.join(KINDS)}")
    request = Request(
        targets,
        _kind_of_columns(target_kind, loss),
        np.dtype(dtype),
        options or {},
        table=table or Settings(),
        images=images or ImageSettings(),
    )
    opened = _open(source, path, format, request)
    if isinstance(opened, Splits):
        asked = [
            f"data.{name} = {value!r}"
            for name, value in (("validation", validation), ("test", test))
            if isinstance(value, str) and value
        ]
        if oversample:
            asked.append(f"data.oversample = {oversample}")
        if asked:
            raise ConfigError(
                f"data source {source!r} returns finished Splits, which {', '.join(asked)} would not change"
            )
        return opened
    parts: dict[str, Source] = dict(opened) if isinstance(opened, Mapping) else {"train": opened}
    parts = {name: as_source(part) for name, part in parts.items()}
    if "train" not in parts:
        raise DataError(f"the data have no training part, only {listed(sorted(parts), 'and')}", path or None)
    try:
        target = decide(parts["train"], loss, target_kind, classes, measured)
    except DataError as error:
        if error.path is not None:
            raise
        raise DataError(str(error), targets or path or None) from error
    kind = as_source(parts["train"]).learned().get("kind")
    if kind != "images" and request.images != ImageSettings():
        raise ConfigError("data.image_size, resize, channels and damaged belong to images, and the data are none")
    request = replace(request, like=columns_of(parts["train"]))
    if not parts["train"].names:
        # Class numbers of other files stay as they are: renumbering a short file, which lacks some classes, would shift
        # them.
        request = replace(request, target_kind="values")
    fractions: dict[str, float] = {}
    for name, wanted in (("validation", validation), ("test", test)):
        if isinstance(wanted, str) and wanted:
            parts[name] = _only(open_files(wanted, format, request), wanted)
        elif name not in parts:
            fractions[name] = float(wanted or 0)
    lost = partial(lost_in_cast, target=target, dtype=dtype, x=normalize != "none", y=scale_targets)
    cut = _Cut(fractions, stratify, seed, oversample)
    return _split(parts, target, cut, _Numbers(np.dtype(dtype), lost, measured))


def _open(source: str, path: str, format: str, request: Request) -> Any:
    if source == "files":
        if not path:
            raise ConfigError("data.source is 'files', but data.path names none")
        return open_files(path, format, request)
    options = dict(request.options)
    if path:
        if source in SOURCES:
            raise ConfigError(f"data.path is given, but data.source is {source!r}: it reads files when it is 'files'")
        options["path"] = path
    prefix, _, rest = source.partition(":")
    is_foreign = prefix in PREFIXES and ":" in rest
    builder = resolve(rest if is_foreign else source, SOURCES, "data.source", ["files"])
    opened = instantiate(builder, options, f"data source {source!r}")
    made = resolve(PREFIXES[prefix], {}, "data.source") if is_foreign else as_known
    parts = opened if isinstance(opened, Mapping) else {"train": opened}
    return {name: made(part) for name, part in parts.items()} if not isinstance(opened, Splits) else opened


def _kind_of_columns(wanted: str, loss: str) -> str:
    """``Request.target_kind`` for a setting and a loss."""
    if wanted == "auto":
        return {**dict.fromkeys(OF_VALUES, "values"), CROSS_ENTROPY: "whole", BINARY: "whole"}.get(loss, "auto")
    return wanted if wanted == "classes" else "values"


def _only(opened: Any, path: str) -> Source:
    if isinstance(opened, dict):
        raise DataError("holds several parts where one is wanted", path)
    return opened


@dataclass(frozen=True)
class _Cut:
    """How samples are divided. fractions: of them, by part; the rest is trained on, oversampled by ``strength``."""

    fractions: dict[str, float]
    stratify: bool
    seed: int
    strength: float


@dataclass(frozen=True)
class _Numbers:
    """What numbers become. dtype: of floating fields. lost: which fields a cast to it would spoil."""

    dtype: np.dtype
    lost: Callable[..., set[str]]
    measured: bool


def _split(parts: dict[str, Source], target: Target | None, cut: _Cut, numbers: _Numbers) -> Splits:
    whole, fractions = parts["train"] if target is None else target.apply(parts["train"]), cut.fractions
    rest = _rest(fractions, "data.")
    indices = _indices(whole, [rest, *fractions.values()], cut.stratify, cut.seed)
    if not len(indices[0]):
        raise DataError(f"of {len(whole)} samples none is left to train on")
    for (name, fraction), own in zip(fractions.items(), indices[1:], strict=True):
        if fraction and not len(own):
            raise ConfigError(f"data.{name} = {fraction:g} of {len(whole)} samples is none; 0 asks for no such part")
    whole.fit(indices[0])
    learned = whole.learned()
    for name, part in parts.items():
        if name != "train":
            if learned:
                part.recall(learned)
            parts[name] = part if target is None else target.apply(part)
    keep = numbers.lost(whole.exact(), measured=numbers.measured)
    if keep:
        whole, parts = whole.exact(), {name: part.exact() for name, part in parts.items() if name != "train"}
    if cut.strength:
        if not _has_classes(whole):
            raise ConfigError("data.oversample needs classes: the targets are none, or values")
        indices[0] = indices[0][oversampled(labels_of(whole)[indices[0]], cut.seed, cut.strength)]
    names = whole.names
    cast = partial(as_dtype, dtype=numbers.dtype, keep=keep, measured=numbers.measured)
    shared = Shared(cast(whole))
    made: dict[str, Source | None] = {name: cast(part) for name, part in parts.items() if name != "train"}
    for name, own in zip(fractions, indices[1:], strict=True):
        made[name] = Subset(shared, own) if len(own) else None
    is_all = len(indices[0]) == len(whole) and not cut.strength
    train = shared.source if is_all else Subset(shared, indices[0])
    for name, other in made.items():
        if other is not None:
            _check_alike(train, other, name)
    return Splits(train, made.get("validation"), made.get("test"), names, target)


def split_by(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, Source]:
    """Parts "train" and those of ``fractions``, of a source that a script gives; classes keep their shares.

    Raises ConfigError for fractions that leave a part without samples."""
    rest = _rest(fractions)
    indices = _indices(source, [rest, *fractions.values()], stratify=True, seed=seed)
    for (name, fraction), own in zip([("training", rest), *fractions.items()], indices, strict=True):
        if not len(own):
            raise ConfigError(f"{name}: {fraction:g} of {len(source)} samples is none")
    shared = Shared(source)
    return {name: Subset(shared, own) for name, own in zip(["train", *fractions], indices, strict=True)}


def _rest(fractions: Mapping[str, float], prefix: str = "") -> float:
    """The share of the samples that is left for training. Raises ConfigError if these are no fractions of them."""
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ConfigError(f"{prefix}{name} = {fraction} is not a fraction of the samples")
    rest = 1 - sum(fractions.values())
    if rest <= 0:
        raise ConfigError(f"validation and test take {1 - rest:.3g} of the samples: nothing is left to train on")
    return rest


def _indices(source: Source, fractions: Sequence[float], stratify: bool, seed: int) -> list[np.ndarray]:
    samples = len(source)
    if sum(fraction > 0 for fraction in fractions) == 1:
        return [np.arange(samples if fraction else 0) for fraction in fractions]
    if source.is_sequential:
        return sequential_split(samples, fractions)
    if stratify and _has_classes(source):
        return stratified_split(labels_of(source), fractions, seed)
    return random_split(samples, fractions, seed)


def _has_classes(source: Source) -> bool:
    """Whether each sample has one class number."""
    target = source.fields.get("y")
    return target is not None and target.shape == () and target.dtype.kind in "iu"


def _check_alike(train: Source, other: Source, name: str) -> None:
    for key, field in train.fields.items():
        found = other.fields.get(key)
        if found is None or found.shape != field.shape:
            shape = "nothing" if found is None else f"shape {found.shape}"
            raise DataError(f"{key} of the {name} part has {shape}, that of the training part {field.shape}")
        if field.size is not None and (found.size or 0) > field.size:
            raise DataError(f"{key} of the {name} part goes up to {found.size}, the training part has {field.size}")
