"""Cells of delimited text: where they are in a block of bytes, which different ones there are, and their numbers.

ddl/data/tables/csv_reader.py reads the blocks. Without Numba these are loops of Python over memory views."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ddl.kernels.backend import is_compiled

EMPTY, INTEGER, DECIMAL, OTHER = range(4)  # how a cell is written, as far as ``parse_numbers`` can read it
WHOLE, PARTIAL, AFTER_QUOTE, UNENDED, TOO_LONG, ZERO = range(6)  # how ``split_cells`` ended
MOST_CHARACTERS = 131_072  # of a cell, as in Python's csv module


def bytes_kernel(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Run the function of this name in table_cells_numba.py where kernels run compiled."""

    @wraps(plain)
    def call(*arguments: Any) -> Any:
        if is_compiled():
            return getattr(importlib.import_module("ddl.kernels.table_cells_numba"), plain.__name__)(*arguments)
        return plain(*(one.data if isinstance(one, np.ndarray) else one for one in arguments))

    call.plain = plain  # type: ignore[attr-defined]
    return call


@bytes_kernel
def split_cells(data, is_end, delimiter, starts, ends, first, lines):  # type: ignore[no-untyped-def]
    """Split bytes into records of cells, as Python's csv module does with ``skipinitialspace`` and ``strict``.

    data: bytes that begin with a record. is_end: nothing follows them. delimiter: its bytes. starts, ends: for the
    bytes of each cell, without quotes; an end is -1 - end where the cell holds doubled quotes. first: the number of
    each record's first cell, and behind the last record the number of cells. lines: where each record begins, from 0.
    Returns (records, bytes of these, lines of these, how it ended): WHOLE, or PARTIAL at a record that is not complete
    in ``data`` or for which the arrays are full, or what is wrong with the record that follows."""
    size, mark, more = len(data), delimiter[0], len(delimiter) - 1
    at = line = cells = records = 0
    while at < size:
        begin, line_of_record, cells_of_record, ending = at, line, cells, PARTIAL
        if records + 1 >= len(first):
            return records, begin, line_of_record, PARTIAL
        is_blank = data[at] == 10 or data[at] == 13
        while True:  # each turn reads a cell and what follows it
            doubled = 0
            if not is_blank:
                while at < size and data[at] == 32:
                    at += 1
            start = stop = at
            if is_blank:
                pass
            elif at < size and data[at] == 34:
                at += 1
                start, is_open = at, True
                while at < size:
                    byte = data[at]
                    at += 1
                    if byte == 34:
                        if at < size and data[at] == 34:
                            doubled += 1
                            at += 1
                        elif at < size or is_end:
                            is_open = False
                            break
                    elif byte == 10 or (byte == 13 and (at >= size or data[at] != 10)):
                        line += 1
                    elif byte == 0:
                        return records, begin, line_of_record, ZERO
                stop = at - 1
                if is_open:
                    characters = 0
                    for place in range(start, size):
                        characters += (data[place] & 0xC0) != 0x80
                    too_long = characters - doubled > MOST_CHARACTERS + 1  # the last may be the closing quote
                    if too_long or is_end:
                        return records, begin, line_of_record, TOO_LONG if too_long else UNENDED
                    break
            else:
                while at < size:
                    byte = data[at]
                    if byte == 10 or byte == 13 or byte == 0:
                        break
                    if byte == mark:
                        is_mark = at + more < size
                        for place in range(1, more + 1 if is_mark else 0):
                            is_mark = is_mark and data[at + place] == delimiter[place]
                        if is_mark:
                            break
                    at += 1
                stop = at
            if stop - start > MOST_CHARACTERS:
                characters = 0
                for place in range(start, stop):
                    characters += (data[place] & 0xC0) != 0x80
                if characters - doubled > MOST_CHARACTERS:
                    return records, begin, line_of_record, TOO_LONG
            if at + more >= size and not is_end:
                break
            if not is_blank:
                if cells >= len(starts):
                    break
                starts[cells], ends[cells] = start, stop if doubled == 0 else -1 - stop
                cells += 1
            if at >= size:
                ending = WHOLE
                break
            byte = data[at]
            if byte == 10 or byte == 13:
                if byte == 13 and at + 1 >= size and not is_end:
                    break
                at += 2 if byte == 13 and at + 1 < size and data[at + 1] == 10 else 1
                line += 1
                ending = WHOLE
                break
            if byte == 0:
                return records, begin, line_of_record, ZERO
            is_mark = byte == mark and at + more < size
            for place in range(1, more + 1 if is_mark else 0):
                is_mark = is_mark and data[at + place] == delimiter[place]
            if not is_mark:
                return records, begin, line_of_record, AFTER_QUOTE
            at += more + 1
        if ending == PARTIAL:
            return records, begin, line_of_record, PARTIAL
        first[records], lines[records] = cells_of_record, line_of_record
        records += 1
        first[records] = cells
    return records, at, line, WHOLE


@bytes_kernel
def different_cells(data, starts, ends, codes, where):  # type: ignore[no-untyped-def]
    """Number the different cells by their first occurrence; returns how many there are.

    starts, ends: as ``split_cells`` gives them. codes: (cells,) of each cell its number; where: (cells,), of each
    number its first cell."""
    content, known = bytes(data), {}  # type: ignore[var-annotated]
    for cell, (start, end) in enumerate(zip(starts, ends, strict=True)):
        key = content[start:end] if end >= 0 else (content[start : -1 - end],)
        before = len(known)
        codes[cell] = known.setdefault(key, before)
        if len(known) > before:
            where[before] = cell
    return len(known)


@bytes_kernel
def parse_numbers(values, written, data, starts, ends, decimal, powers):  # type: ignore[no-untyped-def]
    """values: (cells,) the number in each cell, to the bit what Python's ``float`` returns; NaN where there is none.

    written: (cells,) how the cell is written: EMPTY, INTEGER (digits and perhaps a sign), DECIMAL, or OTHER, which
    leaves the cell to the caller: not a plain number, or one that needs exact arithmetic. decimal: the byte of the
    decimal mark. powers: see ``powers_of_five``."""
    for cell in range(len(starts)):
        values[cell], written[cell] = np.nan, EMPTY if starts[cell] == ends[cell] else OTHER


LEAST_POWER, MOST_POWER = -300, 300


def powers_of_five() -> np.ndarray:
    """(601, 2) uint64: the first 128 bits of 5**q for q from -300 to 300, high and low word, as ``parse_numbers``
    needs them (Lemire, "Number parsing at a gigabyte per second", 2021)."""
    found = []
    for q in range(LEAST_POWER, MOST_POWER + 1):
        power = 5 ** abs(q)
        bits = (power - 1).bit_length()
        whole = power << 128 if q >= 0 else 2 ** (bits + 127 if q >= -27 else 2 * bits + 128) // power + 1
        whole >>= whole.bit_length() - 128
        found.append((whole >> 64, whole & (2**64 - 1)))
    return np.array(found, np.uint64)
