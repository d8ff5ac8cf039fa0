"""A large table is converted once on each node, by all processes that open it; later runs read what they wrote."""

import fcntl
import os
import re
import shutil
import time

import numpy as np
import pytest

from ddl.data import labels_of, open_dataset
from ddl.data.tables import convert, store, text

from .filewriters import write_csv

ROWS = [[i * i, "ab"[i % 2]] for i in range(40)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "CACHED_FROM", 0)
    return tmp_path / "cache" / "ddl" / "tables"


def tables(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def opened(path):
    source = open_dataset("files", path=str(path), validation=0.0, test=0.0).train
    source.hold([range(len(source))])
    return source


def test_a_table_is_converted_once_and_again_when_its_file_changes(tmp_path, cache):
    path = write_csv(tmp_path / "a.csv", ROWS, ["x", "y"])
    assert re.search(r"converted in \d+ s, once, into", " ".join(opened(path).notes))
    (first,) = tables(cache)
    rows = cache / first / "0-0.rows"
    written = rows.stat().st_mtime_ns
    assert {path.name for path in (cache / first).iterdir()} == {"0-0.rows", "schema.json"}
    opened(path)
    assert tables(cache) == [first] and rows.stat().st_mtime_ns == written
    write_csv(path, [*ROWS, [7, "a"]], ["x", "y"])
    assert len(opened(path)) == 41 and len(tables(cache)) == 2


def test_a_file_with_errors_leaves_nothing_behind(tmp_path, cache):
    path = write_csv(tmp_path / "a.csv", [*ROWS, ["seven", "a"]], ["x", "y"])
    with pytest.raises(Exception, match="'seven' in column 'x' is no number"):
        opened(path)
    assert tables(cache) == []


def test_tables_that_were_not_used_for_long_are_removed(tmp_path, cache):
    opened(write_csv(tmp_path / "a.csv", ROWS, ["x", "y"]))
    (old,) = tables(cache)
    long_ago = time.time() - store.KEPT_S - 9
    os.utime(cache / old, (long_ago, long_ago))
    opened(write_csv(tmp_path / "b.csv", ROWS, ["x", "y"]))
    assert len(tables(cache)) == 1 and old not in tables(cache)


def messy(tmp_path):
    """A table in whose later rows other categories come first, and a column turns out to be of texts."""
    rows = [
        [i, f"k{i * 7 % 13}", i / 7 if i < 60 else f"text {i % 5}", "" if i % 9 == 0 else i, "ab"[i % 2]]
        for i in range(400)
    ]
    return write_csv(tmp_path / "m.csv", rows, ["p", "q", "r", "s", "y"])


def content(source):
    return source.gather(np.arange(len(source)))


def test_a_table_converted_in_parts_is_the_same_table(tmp_path, cache, monkeypatch):
    whole = opened(messy(tmp_path))
    monkeypatch.setattr(store, "VERSION", "other")
    monkeypatch.setattr(text, "PIECE_BYTES", 100)
    monkeypatch.setattr(convert, "PART_CELLS", 50)
    parts = opened(messy(tmp_path))
    (folder,) = {path.parent for path in cache.glob("*/1-9.rows")}  # in the second pass, with texts
    assert len(list(folder.glob("*.rows"))) > 10
    for name, values in content(whole).items():
        assert np.array_equal(values, content(parts)[name])
    assert whole.learned() == parts.learned() and labels_of(whole).tolist() == labels_of(parts).tolist()


def test_parts_of_a_process_that_ends_or_stops_are_converted_by_the_others(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(store, "STILL_S", 0.05)
    monkeypatch.setattr(store, "POLL_S", 0.01)
    monkeypatch.setattr(text, "PIECE_BYTES", 100)
    monkeypatch.setattr(convert, "PART_CELLS", 50)
    path = messy(tmp_path)
    wanted = content(opened(path))
    (name,) = tables(cache)
    shutil.rmtree(cache / name)
    folder = cache / f"{name}.part"
    folder.mkdir()
    (folder / "0-1.lock").touch()  # of a process that has ended
    (folder / "0-1.99").write_bytes(b"half a row")
    with open(folder / "0-2.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = content(opened(path))
    assert all(np.array_equal(values, found[field]) for field, values in wanted.items())
    assert tables(cache) == [name]


def test_a_cache_that_others_can_write_is_not_used(tmp_path, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert len(opened(write_csv(tmp_path / "a.csv", ROWS, ["x", "y"]))) == 40
    assert tables(cache) == []
