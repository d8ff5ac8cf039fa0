"""A large table is converted once on each node; other processes and later runs read what the first one wrote."""

import fcntl
import os
import time

import pytest

from ddl.data import open_dataset
from ddl.data.tables import store

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
    assert "converted in 0 s, once, into" in " ".join(opened(path).notes)
    (first,) = tables(cache)
    written = (cache / first / "rows").stat().st_mtime_ns
    opened(path)
    assert tables(cache) == [first] and (cache / first / "rows").stat().st_mtime_ns == written
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


def test_a_process_that_stops_while_it_converts_does_not_stop_the_others(tmp_path, cache, monkeypatch):
    path = write_csv(tmp_path / "a.csv", ROWS, ["x", "y"])
    opened(path)
    (name,) = tables(cache)
    (cache / name / "schema.json").unlink()
    monkeypatch.setattr(store, "STILL_S", 0.01)
    monkeypatch.setattr(store, "POLL_S", 0.01)
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert len(opened(path)) == 40
    assert not (cache / name / "schema.json").exists()


def test_a_cache_that_others_can_write_is_not_used(tmp_path, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert len(opened(write_csv(tmp_path / "a.csv", ROWS, ["x", "y"]))) == 40
    assert tables(cache) == []
