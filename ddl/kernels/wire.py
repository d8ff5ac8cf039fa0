"""Short forms of float32 arrays for slow links; the caller gets the rounding error.

NaN and infinity arrive as such. Value and error add up to the original exactly, within the range of the short form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddl.kernels.backend import kernel

BLOCK = 32  # elements that share a scale in "int8"
LARGEST = 127
NOT_FINITE = 255  # the scale byte of a block with NaN or infinity
LOWEST = -133  # the exponent of scale byte 0; that of byte 254, the highest, is 121


@kernel
def encode_bfloat16(error: np.ndarray, message: np.ndarray) -> None:
    """Write error (n,) float32 to message (2n,) uint8 as bfloat16, rounded to nearest; ``error`` becomes what is left.

    Finite values beyond the largest bfloat16 become that, and the rest is left."""
    bits, short = error.view(np.uint32), message.view(np.uint16)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded -= (rounded & 0x7F80) == 0x7F80
    not_finite = (bits & 0x7F800000) == 0x7F800000
    as_is = (bits >> 16) | (((bits & 0x7FFFFF) != 0) << 6)
    short[...] = np.where(not_finite, as_is, rounded)
    with np.errstate(invalid="ignore"):
        error -= (short.astype(np.uint32) << 16).view(np.float32)


@kernel
def decode_bfloat16(out: np.ndarray, message: np.ndarray, adds: bool) -> None:
    """out (n,) float32 = the values of message (2n,) uint8, or increased by them if ``adds``."""
    values = (message.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        np.add(out, values, out=out) if adds else np.copyto(out, values)


def encode_float16(error: np.ndarray, message: np.ndarray) -> None:
    """The same as ``encode_bfloat16`` in float16, whose largest value is 65504."""
    half, limit = message.view(np.float16), np.finfo(np.float16).max
    with np.errstate(invalid="ignore", over="ignore"):
        half[...] = np.where(np.isfinite(error), np.clip(error, -limit, limit), error)
        error -= half


def decode_float16(out: np.ndarray, message: np.ndarray, adds: bool) -> None:
    values = message.view(np.float16)
    with np.errstate(invalid="ignore", over="ignore"):
        np.add(out, values, out=out) if adds else np.copyto(out, values)


@kernel
def encode_int8(error: np.ndarray, message: np.ndarray) -> None:
    """Write error (n,) float32 to message uint8: n signed bytes, then one scale byte for each 32 of them.

    The scale is the lowest power of two with which the block's largest value fits: value = byte * 2**(scale - 133).
    ``error`` becomes what is left. Blocks of 32 with a shared power of two are those of MXINT8 (OCP Microscaling
    Formats, 2023); a block with NaN or infinity is received as NaN."""
    count = error.size
    blocks = -(-count // BLOCK)
    padded = np.zeros((blocks, BLOCK), np.float32)
    padded.reshape(-1)[:count] = error
    largest = np.abs(padded).max(axis=1)
    finite = np.isfinite(largest)
    padded[~finite] = largest[~finite] = 0
    exponent = np.frexp(largest)[1] - 7
    exponent += largest > np.ldexp(float(LARGEST), exponent)
    exponent = np.where(largest > 0, exponent, LOWEST).clip(LOWEST, LOWEST + NOT_FINITE - 1)
    message[count:] = np.where(finite, exponent - LOWEST, NOT_FINITE)
    scaled = np.rint(np.ldexp(padded.astype(np.float64), -exponent[:, None]))
    whole = scaled.clip(-LARGEST, LARGEST).astype(np.int8)
    message[:count] = whole.reshape(-1)[:count].view(np.uint8)
    left = padded - np.ldexp(whole.astype(np.float32), exponent[:, None])
    left[~finite] = np.nan
    error[...] = left.reshape(-1)[:count]


@kernel
def decode_int8(out: np.ndarray, message: np.ndarray, adds: bool) -> None:
    """The values of ``encode_int8``; see ``decode_bfloat16``."""
    count = out.size
    scale = np.ldexp(np.float32(1), message[count:].astype(np.int32) + LOWEST)
    scale[message[count:] == NOT_FINITE] = np.nan
    values = message[:count].view(np.int8) * np.repeat(scale, BLOCK)[:count]
    with np.errstate(invalid="ignore", over="ignore"):
        np.add(out, values, out=out) if adds else np.copyto(out, values)


@dataclass(frozen=True)
class Wire:
    """A form in which float32 arrays travel. encode, decode: as ``encode_bfloat16`` and ``decode_bfloat16``."""

    name: str
    encode: Callable[[np.ndarray, np.ndarray], None]
    decode: Callable[[np.ndarray, np.ndarray, bool], None]
    bits: int  # of an element
    scale_bits: int = 0  # of a block of 32 elements

    def nbytes(self, count: int) -> int:
        """Bytes of a message of ``count`` elements."""
        return count * self.bits // 8 + -(-count // BLOCK) * self.scale_bits // 8


WIRES = {
    wire.name: wire
    for wire in (
        Wire("bfloat16", encode_bfloat16, decode_bfloat16, 16),
        Wire("float16", encode_float16, decode_float16, 16),
        Wire("int8", encode_int8, decode_int8, 8, 8),
    )
}
