"""The safetensors library reads our files, and damage to them is detected."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ddl.checkpoint.file import parse, pieces_of, read_file, write_file
from ddl.errors import CheckpointError

DTYPES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]
ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=5,
)


def bytes_of(arrays):
    return b"".join(bytes(piece) for piece in pieces_of(arrays))


def same(got, want):
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert got[name].shape == want[name].shape
        np.testing.assert_array_equal(got[name], want[name])


@given(ARRAYS)
def test_the_safetensors_library_reads_our_files(arrays):
    got = safetensors.numpy.load(bytes_of(arrays))
    same({name: got[name] for name in arrays}, arrays)


@given(ARRAYS)
def test_we_read_our_own_files(arrays):
    same(parse(bytes_of(arrays)), arrays)


@pytest.mark.parametrize(
    "strided",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10)[::3],
        np.arange(10)[::-1],
        np.broadcast_to(np.float32(7), (2, 2)),
        np.arange(4, dtype=">f4"),
    ],
    ids=["transposed", "fortran", "strided", "reversed", "broadcast", "big-endian"],
)
def test_an_array_is_restored_by_value_for_any_memory_layout(strided, tmp_path):
    meta = write_file(tmp_path / "f", pieces_of({"x": strided}))
    np.testing.assert_array_equal(read_file(tmp_path / "f", meta)["x"], strided)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "f")["x"], strided)


def test_loaded_arrays_are_writable(tmp_path):
    meta = write_file(tmp_path / "f", pieces_of({"half": np.ones(3, np.float16), "x": np.ones(3)}))
    for array in read_file(tmp_path / "f", meta).values():
        assert array.flags.aligned
        array += 1


def test_every_altered_byte_is_seen(tmp_path):
    path = tmp_path / "f"
    meta = write_file(path, pieces_of({"x": np.arange(3.0)}))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="altered"):
            read_file(path, meta)


def test_every_truncation_is_seen(tmp_path):
    path = tmp_path / "f"
    meta = write_file(path, pieces_of({"x": np.arange(3.0)}))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            read_file(path, meta)


def test_an_array_that_has_no_plain_bytes_is_refused():
    with pytest.raises(CheckpointError, match="'names' of type <U3"):
        bytes_of({"names": np.array(["abc"])})
