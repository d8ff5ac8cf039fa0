# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""Numba kernels of table_cells.py."""

from __future__ import annotations

import numpy as np
from numba import njit

from ddl.kernels import table_cells
from ddl.kernels.table_cells import DECIMAL, EMPTY, INTEGER, LEAST_POWER, MOST_POWER, OTHER

_options = {"cache": True, "nogil": True, "error_model": "numpy"}
_LOW = np.uint64(0xFFFFFFFF)
_ONE, _TOP = np.uint64(1), np.uint64(63)

split_cells = njit(**_options)(table_cells.split_cells.plain)


@njit(**_options)
def _hashed(data, start, end):
    found = np.uint64(14695981039346656037)  # FNV-1a
    for at in range(start, end):
        found = (found ^ np.uint64(data[at])) * np.uint64(1099511628211)
    return found ^ (found >> np.uint64(29))


@njit(**_options)
def different_cells(data, starts, ends, codes, where):
    size = 16
    while size < 2 * len(starts):
        size *= 2
    table, hashes = np.full(size, -1, np.int32), np.empty(len(starts), np.uint64)
    count = 0
    for cell in range(len(starts)):
        start, end = starts[cell], ends[cell]
        stop = end if end >= 0 else -1 - end
        mine = _hashed(data, start, stop)
        slot = np.int64(mine & np.uint64(size - 1))
        while True:
            code = table[slot]
            if code < 0:
                table[slot] = count
                hashes[count], where[count], codes[cell] = mine, cell, count
                count += 1
                break
            if hashes[code] == mine:
                other = starts[where[code]]
                is_same = ends[where[code]] - other == end - start if end >= 0 else False
                if end < 0:
                    is_same = ends[where[code]] + other == end + start
                for at in range(stop - start if is_same else 0):
                    if data[start + at] != data[other + at]:
                        is_same = False
                        break
                if is_same:
                    codes[cell] = code
                    break
            slot = (slot + 1) & (size - 1)
    return count


@njit(**_options)
def _product(a, b):
    """(high, low) 64 bits of the product of two words."""
    shift = np.uint64(32)
    ah, al, bh, bl = a >> shift, a & _LOW, b >> shift, b & _LOW
    low, mid, cross = al * bl, ah * bl, al * bh
    carry = (low >> shift) + (mid & _LOW) + (cross & _LOW)
    return ah * bh + (mid >> shift) + (cross >> shift) + (carry >> shift), (carry << shift) | (low & _LOW)


@njit(**_options)
def _exact(digits, power, powers, bits):
    """The float64 nearest to digits * 10**power, by the algorithm of Lemire (2021); NaN if it does not decide.

    bits: (1,) uint64, as room for the result."""
    if digits == 0:
        return 0.0
    if digits < np.uint64(1 << 53) and -22 <= power <= 22:  # both exact, so that one rounding is right
        scale = 1.0
        for _ in range(abs(power)):
            scale *= 10.0
        return np.float64(digits) / scale if power < 0 else np.float64(digits) * scale
    if power < LEAST_POWER or power > MOST_POWER:
        return np.nan
    zeros = 0
    shifted = digits
    for step in (32, 16, 8, 4, 2, 1):
        if not shifted >> np.uint64(64 - step):
            shifted <<= np.uint64(step)
            zeros += step
    high, low = _product(shifted, powers[power - LEAST_POWER, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = _product(shifted, powers[power - LEAST_POWER, 1])
        low += more
        if low < more:
            high += _ONE
        if low == np.uint64(0xFFFFFFFFFFFFFFFF):
            return np.nan
    upper = high >> _TOP
    drop = upper + np.uint64(64 - 52 - 3)
    mantissa = high >> drop
    exponent = ((217706 * power) >> 16) + 63 + np.int64(upper) - zeros + 1023
    if exponent <= 0 or exponent >= 2046:
        return np.nan
    if low <= _ONE and -4 <= power <= 23 and mantissa & np.uint64(3) == _ONE and mantissa << drop == high:
        mantissa &= ~_ONE  # halfway: to the even neighbour
    mantissa = (mantissa + (mantissa & _ONE)) >> _ONE
    if mantissa >= np.uint64(1 << 53):
        mantissa, exponent = np.uint64(1 << 52), exponent + 1
    bits[0] = (mantissa & ~np.uint64(1 << 52)) | (np.uint64(exponent) << np.uint64(52))
    return bits.view(np.float64)[0]


@njit(**_options)
def parse_numbers(values, written, data, starts, ends, decimal, powers):
    bits = np.empty(1, np.uint64)
    for cell in range(len(starts)):
        at, end = starts[cell], ends[cell]
        values[cell], written[cell] = np.nan, OTHER
        if at == end:
            written[cell] = EMPTY
            continue
        while end > at and data[end - 1] == 32:
            end -= 1
        is_negative = at < end and data[at] == 45
        if at < end and (is_negative or data[at] == 43):
            at += 1
        digits, count, behind, power, begin = np.uint64(0), 0, 0, 0, at
        is_whole = True
        while at < end:
            byte = data[at]
            if 48 <= byte <= 57:
                if digits or byte != 48:
                    count += 1
                digits = digits * np.uint64(10) + np.uint64(byte - 48)
                behind += not is_whole
            elif byte == decimal and is_whole:
                is_whole = False
            else:
                break
            at += 1
        if at - begin - (not is_whole) == 0 or count > 19 or (not is_whole and behind == 0):
            continue
        how = INTEGER if is_whole else DECIMAL
        if at + 1 < end and (data[at] == 101 or data[at] == 69):
            how, at = DECIMAL, at + 1
            minus = data[at] == 45
            if minus or data[at] == 43:
                at += 1
            start = at
            while at < end and at - start < 5 and 48 <= data[at] <= 57:
                power = power * 10 + data[at] - 48
                at += 1
            if at == start:
                continue
            power = -power if minus else power
        if at < end:
            continue
        value = _exact(digits, power - behind, powers, bits)
        if not np.isnan(value):
            values[cell], written[cell] = -value if is_negative else value, how
