"""Cells of delimited text are split as Python's csv module does, and numbers read as ``float`` does, to the bit."""

import csv
import io

import numpy as np
import pytest

from ddl.kernels import table_cells
from ddl.kernels.table_cells import (
    AFTER_QUOTE,
    INTEGER,
    OTHER,
    PARTIAL,
    TOO_LONG,
    UNENDED,
    WHOLE,
    different_cells,
    parse_numbers,
    powers_of_five,
    split_cells,
)

KINDS = {"unexpected end of data": UNENDED, "expected after": AFTER_QUOTE, "field larger": TOO_LONG}


@pytest.fixture(params=["numba", "plain"])
def way(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(table_cells, "is_compiled", lambda: False)
    else:
        pytest.importorskip("numba")
    return request.param


def split(text, *, is_end=True, delimiter=","):
    """(records, bytes of them, lines where they begin, lines, how it ended)"""
    starts, ends, first, lines = (np.zeros(len(text) + 2, np.int32) for _ in range(4))
    mark = np.frombuffer(delimiter.encode(), np.uint8)
    count, used, passed, how = split_cells(np.frombuffer(text, np.uint8), is_end, mark, starts, ends, first, lines)

    def cell(at):
        end = ends[at]
        return text[starts[at] : end].decode() if end >= 0 else text[starts[at] : -1 - end].decode().replace('""', '"')

    records = [[cell(at) for at in range(first[row], first[row + 1])] for row in range(count)]
    return records, used, lines[:count].tolist(), passed, how


def by_csv(text, delimiter=","):
    lines = io.TextIOWrapper(io.BytesIO(text), "utf-8", newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    records, begins, begin = [], [], 0
    try:
        for record in reader:
            records.append(record)
            begins.append(begin)
            begin = reader.line_num
    except csv.Error as error:
        return records, begins, next(kind for words, kind in KINDS.items() if words in str(error))
    return records, begins, WHOLE


@pytest.mark.parametrize("delimiter", [",", " ", "§"])
def test_records_are_those_of_the_csv_module_wherever_the_text_is_cut(way, rng, delimiter):
    signs = ["a", '"', '""', delimiter, delimiter, "\n", "\r", "\r\n", " ", "é", '"b"', "1"]
    for _ in range(1000 if way == "numba" else 300):
        text = "".join(signs[at] for at in rng.integers(len(signs), size=rng.integers(14))).encode()
        wanted, begins, kind = by_csv(text, delimiter)
        records, _, lines, _, how = split(text, delimiter=delimiter)
        assert (records, lines, how) == (wanted, begins, kind)
        cut = rng.integers(len(text) + 1)
        records, used, lines, passed, how = split(text[:cut], is_end=False, delimiter=delimiter)
        if how in (WHOLE, PARTIAL):
            rest, _, later, _, how = split(text[used:], delimiter=delimiter)
            assert (records + rest, lines + [passed + line for line in later], how) == (wanted, begins, kind)


def test_a_cell_is_too_long_where_the_csv_module_says_so():
    pytest.importorskip("numba")
    for count in (131_072, 131_073):
        for text in ("é" * count, f'"{"x" * count}"', '"' + '""' * count + '"'):
            encoded = f"a,{text}\n".encode()
            assert split(encoded)[4] == by_csv(encoded)[2]
    assert split(b'a,"' + b"x" * 200_000, is_end=False)[4] == TOO_LONG


def joined(cells):
    encoded = [cell.encode() for cell in cells]
    starts = np.cumsum([0, *(len(cell) + 1 for cell in encoded)])[:-1].astype(np.int32)
    return np.frombuffer(b",".join(encoded), np.uint8), starts, starts + np.array(list(map(len, encoded)), np.int32)


def numbers(cells, decimal="."):
    values, written = np.empty(len(cells)), np.empty(len(cells), np.uint8)
    parse_numbers(values, written, *joined(cells), ord(decimal), powers_of_five())
    return values, written


def test_numbers_are_those_of_float_to_the_bit(rng):
    pytest.importorskip("numba")
    bits = rng.integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64)
    bits = bits[np.isfinite(bits)].tolist()
    cells = [
        repr(x) for x in [*bits, *rng.normal(size=20_000).tolist(), *rng.integers(-(2**62), 2**62, 9_000).tolist()]
    ]
    cells += [f"{x:.{digits}g}" for digits in (15, 17, 18, 19) for x in bits[:5000]]
    cells += [f"{2 * x + 1}" for x in rng.integers(2**53, 2**54, 5000).tolist()]  # halfway between two floats
    cells += [f"{x}.5" for x in rng.integers(2**52, 2**53, 5000).tolist()]
    values, written = numbers(cells)
    read, wanted = written != OTHER, np.array([float(cell) for cell in cells])
    assert np.array_equal(values[read].view(np.uint64), wanted[read].view(np.uint64)) and read.mean() > 0.9
    whole = np.array([cell.lstrip("-+").isdigit() for cell in cells])
    assert np.array_equal(whole[read], (written == INTEGER)[read])


def test_what_is_no_plain_number_is_left_to_the_caller():
    strange = [
        "x",
        "1_0",
        "nan",
        "inf",
        "1e999",
        "-",
        "+",
        ".",
        "1.",
        "0x1",
        "1e",
        "e5",
        "1e+",
        "1.2.3",
        "٣",
        "1e99999",
    ]
    values, written = numbers([*strange, "1 2", "\t1", "1.5;"])
    assert np.isnan(values).all() and (written == OTHER).all()


def test_different_cells_are_numbered(way, rng):
    cells = [["a", "b", "", "ab", "é", "aa"][at] for at in rng.integers(6, size=200)]
    data, starts, ends = joined(cells)
    codes, where = np.empty(200, np.int32), np.empty(200, np.int32)
    count = different_cells(data, starts, ends, codes, where)
    known = list(dict.fromkeys(cells))
    assert count == len(known) and [known[code] for code in codes] == cells
    assert [cells[cell] for cell in where[:count]] == known
    doubled = np.array([5, -1 - 5], np.int32)  # the same bytes, once with doubled quotes
    assert different_cells(data, np.zeros(2, np.int32), doubled, codes[:2], where[:2]) == 2
