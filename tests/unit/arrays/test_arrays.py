"""Flat buffers, keyed generators, partitions and the arena."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddl.arrays import Arena, FlatBuffer, Layout, aligned, generator, partition


@given(st.integers(0, 500), st.integers(1, 40))
def test_a_partition_covers_everything_evenly(count, parts):
    slices = partition(count, parts)
    lengths = [s.stop - s.start for s in slices]
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(count))
    assert len(slices) == parts and max(lengths) - min(lengths) <= 1


def test_views_share_the_flat_memory_and_never_overlap():
    layout = Layout.of({"a.weight": (3, 5), "a.bias": (5,), "b.weight": ()})
    buffer = FlatBuffer(layout)
    for number, view in enumerate(buffer.views.values(), 1):
        view[...] = number
    assert (buffer["a.weight"] == 1).all() and (buffer["a.bias"] == 2).all() and buffer["b.weight"] == 3
    assert buffer.flat.sum() == 15 + 10 + 3
    assert layout.size == 21
    assert all(s.start % 16 == 0 for s in layout.slices.values()) and layout.length % 16 == 0


def test_a_scope_holds_the_names_below_it():
    views = FlatBuffer(Layout.of({"a.b.w": (2,), "a.c": (3,), "ab.d": (1,)})).views
    assert set(views.at("a")) == {"b.w", "c"}
    assert set(views.at("a").at("b")) == {"w"}
    assert views.at("a") is views.at("a")
    assert len(views.at("nothing")) == 0


def test_a_longer_layout_begins_like_a_shorter_one():
    short = Layout.of({"w": (7,), "b": (3,)})
    longer = Layout.of({"w": (7,), "b": (3,), "mean": (5,)})
    assert all(longer.slices[name] == place for name, place in short.slices.items())
    assert longer.slices["mean"].start == short.length


def test_assigning_other_names_or_shapes_is_refused():
    buffer = FlatBuffer(Layout.of({"w": (2, 3)}))
    with pytest.raises(ValueError, match="missing w; unexpected"):
        buffer.assign({})
    with pytest.raises(ValueError, match="w: shape"):
        buffer.assign({"w": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="need 16 x float32"):
        buffer.layout.views(np.zeros(7, np.float32))


def test_a_generator_depends_only_on_its_key():
    first = generator(1, "shuffle", 2, 3).random(5)
    assert (generator(1, "shuffle", 2, 3).random(5) == first).all()
    for other in [(2, "shuffle", 2, 3), (1, "dropout", 2, 3), (1, "shuffle", 3, 2), (1, "shuffle", 23)]:
        assert not (generator(*other).random(5) == first).any()


def test_memory_of_a_closed_arena_frame_is_reused():
    arena = Arena()
    with arena.frame():
        inner = arena.empty((4,), "float32")
        with arena.frame():
            innermost = arena.empty((6,), "float64")
        assert np.shares_memory(innermost, arena.empty((6,), "float64"))
    assert np.shares_memory(inner, arena.empty((4,), "float32")) and arena.grown == 2


def test_the_arena_serves_the_second_round_from_the_first():
    arena = Arena()
    first = [arena.empty((4, 5), "float32"), arena.empty((3,), "float64")]
    assert first[0].shape == (4, 5) and first[1].dtype == np.float64
    assert not np.shares_memory(*first)
    arena.rewind()
    again = [arena.empty((2, 5), "float32"), arena.empty((3,), "float64")]
    assert arena.grown == 2
    assert all(np.shares_memory(a, b) for a, b in zip(first, again, strict=True))


def place_in_page(x):
    return x.ctypes.data % aligned.PAGE_BYTES


@pytest.mark.parametrize("length", [0, 1, 5, 4096, 100_003])
def test_flat_memory_begins_on_a_cache_line_and_is_zero(length):
    for dtype in ("float16", "float32", "float64"):
        x = aligned.zeros(length, dtype)
        assert x.shape == (length,) and x.dtype == dtype and x.flags.c_contiguous and x.flags.writeable
        assert not length or place_in_page(x) % aligned.LINE_BYTES == 0
        assert not x.any()


def test_large_arrays_in_a_row_begin_at_different_places_of_their_pages():
    assert len({place_in_page(aligned.zeros(100_000, "float32")) for _ in range(8)}) == 8


def test_a_copy_holds_the_same_elsewhere(rng):
    x = rng.normal(size=50_001)
    y = aligned.copy(x)
    assert np.array_equal(x, y) and not np.shares_memory(x, y)


@pytest.mark.parametrize("sizes", [(7, 20_000, 3, 20_000, 16_384), (100_000, 64, 100_000)])
def test_places_in_common_memory_do_not_overlap(sizes):
    used = 0
    for turn, nbytes in enumerate(sizes):
        start = aligned.place(used, nbytes, turn)
        assert start >= used and start % aligned.LINE_BYTES == 0
        used = start + nbytes
