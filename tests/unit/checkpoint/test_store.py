"""A checkpoint is complete or absent, and the loader finds the newest complete one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from ddl.checkpoint import RunFolderLease, Store
from ddl.checkpoint.lease import owner_of
from ddl.checkpoint.store import ARRAYS, STATE
from ddl.errors import CheckpointError, LeaseLost


def arrays_of(step):
    return {"w": np.full((3, 2), float(step)).T, "n": np.array(step)}


def save(store, step, score=None):
    return store.save(step, arrays_of(step), {"step": step}, score)


def loaded_step(store):
    arrays, meta = store.load()
    np.testing.assert_array_equal(arrays["w"], arrays_of(meta["step"])["w"])
    assert arrays["n"] == meta["step"]
    return meta["step"]


def steps_in(folder):
    return sorted(int(path.name[5:13]) for path in folder.iterdir())


def test_a_saved_checkpoint_loads_unchanged(tmp_path):
    store = Store(tmp_path / "checkpoints")
    path = save(store, 40)
    assert path == store.newest() == tmp_path / "checkpoints" / "step_00000040"
    assert loaded_step(store) == store.newest_step() == 40
    assert store.load(path)[1] == {"step": 40}


def test_an_empty_folder_has_no_newest(tmp_path):
    store = Store(tmp_path / "none")
    assert store.newest() is None
    assert store.newest_step() == -1
    with pytest.raises(CheckpointError, match="there is none"):
        store.load()
    assert not (tmp_path / "none").exists()  # reading leaves no trace


def test_the_newest_and_the_best_are_kept(tmp_path):
    store = Store(tmp_path, keep=2)
    for step, score in enumerate([0.1, 0.9, 0.3, 0.4, None]):
        save(store, step, score)
    assert steps_in(tmp_path) == [1, 3, 4]
    assert store.best().name == "step_00000001"


def test_without_keep_best_only_the_newest_are_kept(tmp_path):
    store = Store(tmp_path, keep=2, keep_best=False)
    for step, score in enumerate([0.9, 0.1, 0.2]):
        save(store, step, score)
    assert steps_in(tmp_path) == [1, 2]


def test_a_run_that_went_back_keeps_the_checkpoint_it_wrote_last(tmp_path):
    for step in (80, 90, 100):
        save(Store(tmp_path, keep=3), step)
    again = Store(tmp_path, keep=1)
    save(again, 50)
    assert steps_in(tmp_path) == [50]
    assert loaded_step(again) == 50


def test_the_same_step_again_replaces_nothing_before_it_is_whole(tmp_path):
    store = Store(tmp_path, keep=2)
    first, second = save(store, 5), save(store, 5)
    assert first != second
    assert store.newest() == second
    assert loaded_step(store) == 5


def test_the_same_arrays_of_the_same_step_are_linked_and_written_only_once(tmp_path):
    points = []
    store = Store(tmp_path, probe=points.append)
    written = (save(store, 5) / ARRAYS).stat().st_ino
    points.clear()
    again = save(store, 5, score=0.25)
    assert (again / ARRAYS).stat().st_ino == written and points.count("checkpoint.open") == 1  # of state.json
    assert [entry.score for entry in store.entries()] == [0.25] and loaded_step(store) == 5


def test_only_what_frees_space_is_deleted_to_make_room(tmp_path):
    store = Store(tmp_path, keep=2)
    save(store, 3), save(store, 5, score=0.9), save(store, 5)
    assert [store.make_room(), store.make_room()] == [True, False]
    assert steps_in(tmp_path) == [5, 5] and [entry.score for entry in store.entries()] == [0.9, None]


def alter(store, path):
    (path / ARRAYS).write_bytes(b"\0" * (path / ARRAYS).stat().st_size)


NOT_LINKED = {
    "other arrays": lambda store, path: None,
    "another store": lambda store, path: None,
    "an altered file": alter,
    "a deleted file": lambda store, path: shutil.rmtree(path),
    "no hard links": lambda store, path: None,
}


@pytest.mark.parametrize("why", NOT_LINKED)
def test_arrays_that_cannot_be_linked_are_written(tmp_path, monkeypatch, why):
    def refuse(*args):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    store = Store(tmp_path)
    first = save(store, 5)
    NOT_LINKED[why](store, first)
    if why == "no hard links":
        monkeypatch.setattr(os, "link", refuse)
    arrays = {**arrays_of(5), "more": np.ones(2)} if why == "other arrays" else arrays_of(5)
    second = (Store(tmp_path) if why == "another store" else store).save(5, arrays, {"step": 5}, 0.5)
    assert (second / ARRAYS).stat().st_nlink == 1 and loaded_step(store) == 5
    assert set(store.load(second)[0]) == set(arrays)


def test_a_kill_at_any_point_of_saving_a_step_again_loses_nothing(tmp_path):
    for point in range(1, 100):

        def save_twice(probe, folder=tmp_path / str(point)):
            store = Store(folder)
            save(store, 5)
            store.probe = probe
            save(store, 5, score=0.5)

        ended = killed_at(point, save_twice)
        assert loaded_step(Store(tmp_path / str(point))) == 5
        if ended:
            break
    assert ended and point > 15


DAMAGES = {
    "truncated": lambda path: os.truncate(path / ARRAYS, 100),
    "altered": lambda path: (path / ARRAYS).write_bytes((path / ARRAYS).read_bytes()[:-1] + b"\xff"),
    f"{ARRAYS} is missing": lambda path: (path / ARRAYS).unlink(),
    f"{STATE} is missing": lambda path: (path / STATE).unlink(),
    f"{STATE} is altered": lambda path: (path / STATE).write_text((path / STATE).read_text().replace("40", "41")),
    f"{STATE} is truncated": lambda path: os.truncate(path / STATE, 30),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_reported(tmp_path, reason):
    said = []
    store = Store(tmp_path, say=said.append)
    save(store, 20)
    save(store, 30)
    damaged = save(store, 40)
    DAMAGES[reason](damaged)
    assert loaded_step(store) == 30
    assert len(said) == 1 and reason in said[0] and "step_00000040" in said[0]
    with pytest.raises(CheckpointError, match=reason):
        store.load(damaged)
    save(store, 35)  # training resumed from 30: its next checkpoint is the newest
    assert loaded_step(store) == 35


def test_when_all_are_damaged_the_error_names_each(tmp_path):
    store = Store(tmp_path)
    for step in (1, 2):
        DAMAGES["truncated"](save(store, step))
    with pytest.raises(CheckpointError, match=r"step_00000002.*truncated.*step_00000001.*truncated"):
        store.load()


def test_the_first_save_removes_unfinished_files_of_an_earlier_writer(tmp_path):
    leftover = tmp_path / "step_00000007.tmp-123"
    leftover.mkdir()
    (leftover / ARRAYS).write_bytes(b"half")
    store = Store(tmp_path)
    assert store.newest() is None
    assert leftover.exists()
    save(store, 8)
    assert not leftover.exists()


@pytest.mark.parametrize("failing_call", range(8))
def test_a_full_disk_keeps_the_checkpoints_before(tmp_path, monkeypatch, failing_call):
    store = Store(tmp_path, keep=1)
    save(store, 1)
    write, calls = os.write, 0

    def full(fd, data):
        nonlocal calls
        calls += 1
        if calls > failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, bytes(data)[:50])  # a disk may also take less than it is given

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match="the disk is full; earlier ones are untouched"):
        save(store, 2)
    monkeypatch.undo()
    assert steps_in(tmp_path) == [1]
    assert loaded_step(store) == 1


def test_a_limit_on_file_size_keeps_the_checkpoints_before(tmp_path):
    save(Store(tmp_path), 1)
    script = (
        "import resource, sys, numpy as np; from ddl.checkpoint import Store; from ddl.errors import CheckpointError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: Store(sys.argv[1]).save(2, {'w': np.zeros(10_000)}, {})\n"
        "except CheckpointError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert steps_in(tmp_path) == [1]


def killed_at(point, act):
    """Run ``act(probe)`` in a process that dies at its ``point``-th kill point; True if it got to the end."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def probe(name):
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            act(probe)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_kill_at_any_point_of_a_write_leaves_the_old_or_the_new_checkpoint(tmp_path):
    store = Store(tmp_path, keep=1)
    save(store, 1)
    point, found = 0, []
    while True:
        point += 1
        ended = killed_at(point, lambda probe: save(Store(tmp_path, keep=1, probe=probe), 2))
        found.append(loaded_step(store))
        if ended:
            break
        if found[-1] == 2:  # back to the start for the next point
            save(Store(tmp_path, keep=1), 1)
            assert steps_in(tmp_path) == [1]
    assert point > 20
    assert found == sorted(found), "once the new one is there it stays"
    assert set(found) == {1, 2}


def test_the_first_checkpoint_is_never_seen_half(tmp_path):
    for point in range(1, 100):
        folder = tmp_path / str(point)
        ended = killed_at(point, lambda probe, folder=folder: save(Store(folder, probe=probe), 1))
        store = Store(folder)
        assert store.newest() is None or loaded_step(store) == 1
        if ended:
            break
    assert ended and loaded_step(store) == 1


def test_an_older_launch_is_refused(tmp_path):
    old = Store(tmp_path / "c", lease=RunFolderLease(tmp_path, "first"))
    save(old, 1)
    new = Store(tmp_path / "c", lease=RunFolderLease(tmp_path, "second"))
    with pytest.raises(LeaseLost, match="belongs to generation 0 of launch second"):
        save(old, 2)
    save(new, 3)
    assert steps_in(tmp_path / "c") == [1, 3]


def test_an_older_generation_is_refused(tmp_path):
    old, new = RunFolderLease(tmp_path, "job"), RunFolderLease(tmp_path, "job", 0)
    new.advance(1, leader=2)
    with pytest.raises(LeaseLost):
        old.check()
    with pytest.raises(LeaseLost):
        RunFolderLease(tmp_path, "job", 0)
    with pytest.raises(LeaseLost):
        old.advance(1, leader=0)  # the other side of a partition, too late
    new.check()
    new.advance(2, leader=3)
    new.check()


def test_two_launches_at_once_end_with_one_owner(tmp_path):
    """Both read the same file before either wrote: the last writer owns the folder."""
    first = RunFolderLease(tmp_path, "first")
    second = RunFolderLease(tmp_path / "elsewhere", "second")
    second.folder = tmp_path
    second._write()
    second.check()
    with pytest.raises(LeaseLost):
        first.check()


def test_a_new_leader_of_an_older_launch_cannot_claim_the_folder_back(tmp_path):
    older = RunFolderLease(tmp_path, "older")
    RunFolderLease(tmp_path, "newer")
    with pytest.raises(LeaseLost):
        RunFolderLease(tmp_path, "older", 1, 2, older.owner.serial)
    assert owner_of(tmp_path).launch == "newer"


def test_a_folder_below_a_file_holds_no_checkpoints_and_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert Store(tmp_path / "file" / "checkpoints").newest() is None
    with pytest.raises(CheckpointError, match="cannot be read"):
        Store(tmp_path / "file").newest()
