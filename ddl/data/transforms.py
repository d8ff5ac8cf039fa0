"""Transforms of batches: augmentation, and the contract that your own follow.

normalise.py normalises by training statistics; loader.py calls the transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddl.data.source import Field
from ddl.errors import ConfigError, DataError

Rows = dict[str, np.ndarray]
Segments = Sequence[slice]
Generators = Sequence[np.random.Generator]


class Transform:
    """What changes each batch; only the call has no default. A class need not inherit from Transform.

    A job's augmentations apply in training only, the normalisation in evaluation as well."""

    is_cheap = False  # True: it takes only a few microseconds

    def __call__(self, batch: Rows, segments: Segments, generators: Generators) -> Rows:
        """Returns the batch. batch: field -> (rows, ...), arrays that it may overwrite. segments: the rows of each
        shard. generators: one per segment, keyed by (seed, epoch, step, part, shard); every draw uses its segment's,
        so that it does not depend on ranks."""
        raise NotImplementedError

    def for_fields(self, fields: Mapping[str, Field]) -> Transform:
        """The transform that suits the fields of the data; default: this one. Raises ConfigError if none does."""
        return self


def _draw(
    segments: Segments, generators: Generators, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> np.ndarray:
    """One array over all rows, each segment's piece drawn from its own generator."""
    pieces = [draw(generators[i], s.stop - s.start) for i, s in enumerate(segments) if s.stop > s.start]
    return np.concatenate(pieces)


def _images(batch: Rows, who: str) -> np.ndarray:
    x = batch["x"]
    if x.ndim not in (3, 4):
        raise DataError(f"{who} needs images (height, width) or (height, width, channels), x has shape {x.shape[1:]}")
    return x


def _need(holds: bool, who: str, setting: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{who}: {setting} = {value!r} must be {wanted}")


def _windows(x: np.ndarray, top: np.ndarray, left: np.ndarray, margin: int) -> np.ndarray:
    """Shift each image within a margin of zeros: cut a window of its size at (top, left) of the padded image."""
    rows, height, width = x.shape[:3]
    padded = np.zeros((rows, height + 2 * margin, width + 2 * margin, *x.shape[3:]), x.dtype)
    padded[:, margin : margin + height, margin : margin + width] = x
    i = top[:, None] + np.arange(height)
    j = left[:, None] + np.arange(width)
    return padded[np.arange(rows)[:, None, None], i[:, :, None], j[:, None, :]]


@dataclass(frozen=True)
class Shift(Transform):
    """Move each image by up to ``pixels`` up, down, left and right; zeros come in."""

    pixels: int = 1

    def __post_init__(self) -> None:
        _need(self.pixels >= 0, "shift", "pixels", self.pixels, "at least 0")

    def for_fields(self, fields: Mapping[str, Field]) -> Shift:
        """The same transform; raises ConfigError if it would push images out of sight."""
        if "x" in fields and len(fields["x"].shape) > 1:
            least = min(fields["x"].shape[:2])
            _need(self.pixels < least, "shift", "pixels", self.pixels, f"below the {least} of the images' shorter side")
        return self

    def __call__(self, batch: Rows, segments: Segments, generators: Generators) -> Rows:
        x = _images(batch, "shift")
        if len(x):
            place = _draw(segments, generators, lambda g, n: g.integers(0, 2 * self.pixels + 1, (n, 2)))
            batch["x"] = _windows(x, place[:, 0], place[:, 1], self.pixels)
        return batch


@dataclass(frozen=True)
class Flip(Transform):
    """Mirror each image left to right with ``probability``."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _need(0 <= self.probability <= 1, "flip", "probability", self.probability, "from 0 to 1")

    def __call__(self, batch: Rows, segments: Segments, generators: Generators) -> Rows:
        x = _images(batch, "flip")
        if len(x):
            turn = _draw(segments, generators, lambda g, n: g.random(n)) < self.probability
            x[turn] = x[turn][:, :, ::-1]
        return batch


@dataclass(frozen=True)
class Crop(Transform):
    """Cut a random window out of each image with ``padding`` zeros around it, of ``size`` (height, width).

    size: None keeps the image's own."""

    padding: int = 4
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _need(self.padding >= 0, "crop", "padding", self.padding, "at least 0")
        _need(self.size is None or min(self.size) > 0, "crop", "size", self.size, "at least one pixel each way")

    def __call__(self, batch: Rows, segments: Segments, generators: Generators) -> Rows:
        x = _images(batch, "crop")
        rows, height, width = x.shape[:3]
        out_height, out_width = self.size or (height, width)
        most_top, most_left = height + 2 * self.padding - out_height, width + 2 * self.padding - out_width
        if most_top < 0 or most_left < 0:
            raise DataError(
                f"crop of {out_height}x{out_width} from images of {height}x{width} padded by {self.padding}"
            )
        padded = np.pad(
            x, [(0, 0), (self.padding, self.padding), (self.padding, self.padding)] + [(0, 0)] * (x.ndim - 3)
        )
        if not rows:
            batch["x"] = padded[:, :out_height, :out_width]
            return batch
        top = _draw(segments, generators, lambda g, n: g.integers(0, most_top + 1, n))
        left = _draw(segments, generators, lambda g, n: g.integers(0, most_left + 1, n))
        i, j = top[:, None] + np.arange(out_height), left[:, None] + np.arange(out_width)
        batch["x"] = padded[np.arange(rows)[:, None, None], i[:, :, None], j[:, None, :]]
        return batch


@dataclass(frozen=True)
class Noise(Transform):
    """Add normal noise of standard deviation ``scale`` to x."""

    scale: float = 0.1

    def __post_init__(self) -> None:
        _need(0 <= self.scale < np.inf, "noise", "scale", self.scale, "at least 0")

    def __call__(self, batch: Rows, segments: Segments, generators: Generators) -> Rows:
        x = batch["x"]
        if x.dtype.kind != "f":
            raise DataError(f"noise needs x of a floating type, it is {x.dtype}")
        if len(x):
            noise = _draw(segments, generators, lambda g, n: g.standard_normal((n, *x.shape[1:]), np.float32))
            x += (self.scale * noise).astype(x.dtype, copy=False)
        return batch


@dataclass(frozen=True)
class Mixup(Transform):
    """Blend each sample with another of its shard: x and targets by the same weight, from Beta(alpha, alpha).

    Class numbers become soft targets (rows, classes), which the cross-entropy takes; targets that are
    values are blended as they are, and data without targets have none to blend. classes: how many there are; the
    source's knowledge fills it in. as_values: blend class numbers 0 and 1 as values, for binary cross-entropy."""

    alpha: float = 0.2
    classes: int | None = None
    as_values: bool = False

    def __post_init__(self) -> None:
        _need(self.alpha > 0, "mixup", "alpha", self.alpha, "above 0")

    def for_fields(self, fields: Mapping[str, Field]) -> Mixup:
        """Raises ConfigError for a table whose categories are embedded: two of them have no blend."""
        if "categories" in fields:
            raise ConfigError(
                "mixup cannot blend embedded categories: set data.max_categories to their number, which makes them "
                "one-hot, or leave mixup out"
            )
        return self if self.classes else replace(self, classes=fields["y"].size if "y" in fields else None)

    def __call__(self, batch: Rows, segments: Segments, generators: Generators) -> Rows:
        x, y = batch["x"], batch.get("y")
        if x.dtype.kind != "f":
            raise DataError(f"mixup needs x of a floating type, it is {x.dtype}")
        if y is not None and y.dtype.kind in "iu":
            y = y.astype(x.dtype) if self.as_values else self._soft(y, x.dtype)
        if len(x):
            weight = _draw(segments, generators, lambda g, n: g.beta(self.alpha, self.alpha, n)).astype(x.dtype)
            other = np.concatenate(
                [s.start + generators[i].permutation(s.stop - s.start) for i, s in enumerate(segments)]
            )
            x = _blend(x, other, weight)
            y = None if y is None else _blend(y, other, weight)
        batch["x"] = x
        if y is not None:
            batch["y"] = y
        return batch

    def _soft(self, y: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if not self.classes:
            raise DataError("mixup needs to know the number of classes")
        return (y[:, None] == np.arange(self.classes)).astype(dtype)


@dataclass(frozen=True)
class Blank(Transform):
    """Replace each token of x by ``unknown`` with ``probability``; padding (0) stays.

    unknown: a token's number; that of text classification is 1."""

    probability: float = 0.2
    unknown: int = 1

    def __post_init__(self) -> None:
        _need(0 <= self.probability <= 1, "blank", "probability", self.probability, "from 0 to 1")

    def __call__(self, batch: Rows, segments: Segments, generators: Generators) -> Rows:
        x = batch["x"]
        if x.dtype.kind not in "iu":
            raise DataError(f"blank needs x of whole-number tokens, it is {x.dtype}")
        if len(x):
            hit = _draw(segments, generators, lambda g, n: g.random((n, *x.shape[1:]), np.float32)) < self.probability
            x[hit & (x != 0)] = self.unknown
        return batch


def _blend(values: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    weight = weight.reshape(-1, *[1] * (values.ndim - 1))
    return (weight * values + (1 - weight) * values[other]).astype(values.dtype, copy=False)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "shift": Shift,
    "flip": Flip,
    "crop": Crop,
    "noise": Noise,
    "mixup": Mixup,
    "blank": Blank,
}
