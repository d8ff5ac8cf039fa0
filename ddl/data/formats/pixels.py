"""Decode images with Pillow: orientation, colours and size, to arrays of one shape.

image_files.py finds the images, image_source.py makes samples of them. Pillow is imported here only (extra: images)."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

from ddl.errors import ConfigError, DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
RESIZES = ("crop", "stretch", "pad")
LARGEST_OWN = 128  # pixels: images of one size up to this keep it
SIDE = 64  # pixels: the shorter side of others
TURNED = (5, 6, 7, 8)  # values of the EXIF tag that exchange height and width
ORIENTATION = 0x0112  # its number
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")


def is_image(head: bytes) -> bool:
    """Whether a file with these first 16 bytes is an image of a common format."""
    return head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


@dataclass(frozen=True)
class ImageSettings:
    """How images become samples. size: "auto", one number, or "HEIGHTxWIDTH". channels: "auto", 1, 3 or 4.

    damaged: "error", or "skip" to leave out images that cannot be decoded."""

    size: int | str = "auto"
    resize: str = "crop"
    channels: int | str = "auto"
    damaged: str = "error"

    def shape(self) -> tuple[int, int] | None:
        """(height, width); None if the images decide. Raises ConfigError for a size that is none."""
        if self.size == "auto":
            return None
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(self.size))
        height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if height < 1 or width < 1:
            raise ConfigError(f'data.image_size = {self.size!r} must be auto, a number of pixels or "HEIGHTxWIDTH"')
        return height, width


@dataclass(frozen=True)
class Form:
    """The shape of every sample, and how an image of another size becomes one.

    resize: "crop" scales the image to cover the shape and cuts off what is beyond, "pad" scales it to fit inside and
    fills up with black, "stretch" changes its proportions."""

    height: int
    width: int
    channels: int
    resize: str = "crop"

    def __post_init__(self) -> None:
        if self.resize not in RESIZES or self.channels not in MODES:
            raise ConfigError(
                f"data.resize = {self.resize!r} is one of {', '.join(RESIZES)}, and data.channels = {self.channels!r} "
                f"one of {', '.join(map(str, MODES))}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    def to_json(self) -> dict[str, Any]:
        return {"size": [self.height, self.width], "channels": self.channels, "resize": self.resize}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Form:
        height, width = values["size"]
        return cls(int(height), int(width), int(values["channels"]), str(values["resize"]))


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded: height and width as it is shown, and whether it is grey."""

    height: int
    width: int
    is_grey: bool


@cache
def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError("reading images needs Pillow: pip install 'ddl-mpi[images]'") from error
    # Pillow's warnings do not name the file. What matters raises.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image, ImageOps


def _errors() -> tuple[type[Exception], ...]:
    """What Pillow raises for a damaged image."""
    image, _ = _pillow()
    return (
        *(OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, MemoryError, struct.error),
        image.DecompressionBombError,
    )


def _reason(error: Exception, data: bytes) -> str:
    image, _ = _pillow()
    if not data:
        return "the file is empty"
    if isinstance(error, image.UnidentifiedImageError) and is_image(data[:16]):
        return "cannot be decoded: it begins as an image, but the rest is none"
    if isinstance(error, image.UnidentifiedImageError):
        return f"not an image: it begins with {data[:8]!r}"
    return f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"


def read_header(stream: BinaryIO, name: str) -> Header:
    """The header of an encoded image. Raises DataError if it is damaged, or if the file ends too early."""
    image, _ = _pillow()
    try:
        with image.open(stream) as opened:
            # Of a PNG file, getexif would decode all of it, to find what may follow the pixels.
            knows = opened.format != "PNG" or "exif" in opened.info
            turned = knows and opened.getexif().get(ORIENTATION) in TURNED
            width, height = opened.size[::-1] if turned else opened.size
            is_grey = opened.mode in ("1", "L", "LA", "I") or opened.mode.startswith("I;16")
            if not _is_whole(opened.format, stream):
                opened.load()  # bytes after the end are harmless, a missing end is not
            return Header(height, width, is_grey)
    except _errors() as error:
        stream.seek(0)
        raise DataError(_reason(error, stream.read(16)), name) from error


def _is_whole(format: str | None, stream: BinaryIO) -> bool:
    """Whether a file ends as one of this format does; False where that is not known from its last bytes."""
    place = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(max(size - 8, 0))
    end = stream.read()
    stream.seek(4)
    length = stream.read(4)
    stream.seek(place)
    if format == "WEBP":
        return size == 8 + struct.unpack("<I", length)[0]
    return format in ENDS and end.endswith(ENDS[format])


def decode(data: bytes, form: Form, name: str) -> np.ndarray:
    """The first frame of an encoded image as (height, width, channels) uint8. Raises DataError if it is damaged."""
    image, _ = _pillow()
    try:
        with image.open(BytesIO(data)) as opened:
            if opened.format == "JPEG":  # decoding a half, a quarter or an eighth of the size is much faster
                opened.draft(None, _draft_size(opened, form))
            return _shaped(opened, form)
    except _errors() as error:
        raise DataError(_reason(error, data), name) from error


def _shaped(opened: Any, form: Form) -> np.ndarray:
    _, operations = _pillow()
    is_turned = opened.getexif().get(ORIENTATION, 1) != 1
    shown = operations.exif_transpose(opened) if is_turned else opened
    return np.asarray(_resized(_coloured(shown, form.channels), form), np.uint8).reshape(form.shape)


def shaped(opened: Any, form: Form) -> np.ndarray:
    """An image of Pillow as ``decode`` returns it. Raises DataError if its pixels cannot be read."""
    try:
        return _shaped(opened, form)
    except _errors() as error:
        raise DataError(f"an image {_reason(error, b' ')}") from error


def _draft_size(opened: Any, form: Form) -> tuple[int, int]:
    """The least (width, height), before rotation, from which the image can be resized without loss."""
    side = max(form.height, form.width)
    if form.resize == "stretch":
        return side, side
    width, height = opened.size
    factor = side / min(width, height)
    return max(int(width * factor), side), max(int(height * factor), side)


def _coloured(opened: Any, channels: int) -> Any:
    """The image in the mode of so many channels. Unless there are four, what is transparent shows a white ground."""
    image, _ = _pillow()
    if opened.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is unknown")
    if opened.mode == "I" or opened.mode.startswith("I;16"):  # 16 bits of grey
        wide = np.asarray(opened).astype(np.int64)
        opened = image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    if channels != 4 and (opened.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in opened.info):
        above = opened.convert("RGBA")
        opened = image.alpha_composite(image.new("RGBA", above.size, "white"), above)
    mode = MODES[channels]
    return opened if opened.mode == mode else opened.convert(mode)


def _resized(opened: Any, form: Form) -> Any:
    image, operations = _pillow()
    size, method = (form.width, form.height), image.Resampling.BILINEAR
    if opened.size == size:
        return opened
    if form.resize == "pad":
        return operations.pad(opened, size, method)
    box = None
    if form.resize == "crop":
        factor = min(opened.width / form.width, opened.height / form.height)
        left, top = ((have - factor * wanted) / 2 for have, wanted in zip(opened.size, size, strict=True))
        box = (left, top, opened.width - left, opened.height - top)
    return opened.resize(size, method, box, reducing_gap=3.0)


def decide_form(headers: Sequence[Header], settings: ImageSettings) -> Form:
    """The shape of the samples, from settings and headers: equal on all ranks, which see the same headers."""
    size = settings.shape() or _own_size(headers)
    channels = settings.channels
    if channels == "auto":
        channels = 1 if all(header.is_grey for header in headers) else 3
    return Form(*size, int(channels), settings.resize)


def _own_size(headers: Sequence[Header]) -> tuple[int, int]:
    """Their own size if they share one that is small; else one shape of moderate size."""
    sizes = {(header.height, header.width) for header in headers}
    height, width = next(iter(sizes))
    if len(sizes) > 1:
        side = min(SIDE, int(np.median([min(header.height, header.width) for header in headers])))
        side -= side % 8 if side > 16 else 0  # it can be halved by pooling
        return side, side
    if max(height, width) <= LARGEST_OWN:
        return height, width
    factor = SIDE / min(height, width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def describe(headers: Sequence[Header], form: Form) -> str:
    """A line for the banner: the sizes found, and what the samples become."""
    sizes = {(header.height, header.width) for header in headers}
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    least, most = ordered[0], ordered[-1]
    found = f"{least[0]}x{least[1]}" if len(sizes) == 1 else f"{least[0]}x{least[1]} to {most[0]}x{most[1]}"
    colours = {1: "grey", 3: "colour", 4: "colour and alpha"}[form.channels]
    line = f"x: images of {found} pixels (height x width), {colours}"
    if sizes == {(form.height, form.width)}:
        return line
    return f"{line}, resized to {form.height}x{form.width} by {form.resize} (data.image_size, data.resize)"
