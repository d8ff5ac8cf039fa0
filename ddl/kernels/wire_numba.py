# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""Numba kernels of wire.py."""

from __future__ import annotations

import numpy as np
from numba import njit

from ddl.kernels.wire import BLOCK, LARGEST, LOWEST, NOT_FINITE

_options = {"cache": True, "nogil": True, "error_model": "numpy"}
_ZERO, _MANTISSA = np.uint32(0), np.uint32(0x7FFFFF)
_EXPONENT, _HALF = np.uint32(0x7F800000), np.uint32(0x7FFF)


@njit(**_options)
def encode_bfloat16(error, message):
    bits, short = error.view(np.uint32), message.view(np.uint16)
    sent = np.empty(1024, np.uint32)
    values = sent.view(np.float32)
    for low in range(0, error.size, 1024):
        count = min(1024, error.size - low)
        for i in range(count):
            b = bits[low + i]
            kept = b >> np.uint32(16)
            rounded = (b + _HALF + (kept & np.uint32(1))) >> np.uint32(16)
            if rounded & np.uint32(0x7F80) == np.uint32(0x7F80):
                rounded -= np.uint32(1)
            if b & _EXPONENT == _EXPONENT:
                rounded = kept | (np.uint32(0x40) if b & _MANTISSA != _ZERO else _ZERO)
            short[low + i] = np.uint16(rounded)
            sent[i] = rounded << np.uint32(16)
        for i in range(count):
            error[low + i] -= values[i]


@njit(**_options)
def decode_bfloat16(out, message, adds):
    short = message.view(np.uint16)
    received = np.empty(1024, np.uint32)
    values = received.view(np.float32)
    for low in range(0, out.size, 1024):
        count = min(1024, out.size - low)
        for i in range(count):
            received[i] = np.uint32(short[low + i]) << np.uint32(16)
        if adds:
            for i in range(count):
                out[low + i] += values[i]
        else:
            for i in range(count):
                out[low + i] = values[i]


@njit(**_options)
def _power(exponent):
    """2**exponent as float64, for exponents of float64's normal numbers."""
    bits = np.empty(1, np.int64)
    bits[0] = np.int64(exponent + 1023) << np.int64(52)
    return bits.view(np.float64)[0]


@njit(**_options)
def encode_int8(error, message):
    count = error.size
    signed = message[:count].view(np.int8)
    bits = error.view(np.uint32)
    # Integers compare as the magnitudes of floats do, NaN and infinity on top; 127 * 2**k as a table of such integers.
    limits = np.empty(254, np.float32)
    for byte in range(254):
        limits[byte] = np.float32(float(LARGEST) * _power(byte + LOWEST))
    limit_bits = limits.view(np.uint32)
    for block in range(-(-count // BLOCK)):
        low = block * BLOCK
        high = min(low + BLOCK, count)
        largest = _ZERO
        for i in range(low, high):
            largest = max(largest, bits[i] & np.uint32(0x7FFFFFFF))
        if largest >= _EXPONENT:
            message[count + block] = NOT_FINITE
            for i in range(low, high):
                signed[i] = 0
                error[i] = np.nan
            continue
        # The exponent of the largest value gives the scale, or the one below the scale.
        byte = max(np.int64(largest >> np.uint32(23)) - 127 - 6 - LOWEST, 0)
        if byte < 254 and largest > limit_bits[byte]:
            byte += 1
        message[count + block] = byte
        scale, inverse = np.float32(_power(byte + LOWEST)), _power(-(byte + LOWEST))
        for i in range(low, high):
            whole = min(max(np.rint(np.float64(error[i]) * inverse), -float(LARGEST)), float(LARGEST))
            signed[i] = np.int8(whole)
            error[i] -= np.float32(signed[i]) * scale


@njit(**_options)
def decode_int8(out, message, adds):
    count = out.size
    signed = message[:count].view(np.int8)
    for block in range(-(-count // BLOCK)):
        byte = message[count + block]
        scale = np.float32(np.nan) if byte == NOT_FINITE else np.float32(_power(np.int64(byte) + LOWEST))
        low = block * BLOCK
        for i in range(low, min(low + BLOCK, count)):
            value = np.float32(signed[i]) * scale
            out[i] = out[i] + value if adds else value
