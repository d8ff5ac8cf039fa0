"""The writer copies the state at once and writes the copy while training continues."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from ddl.checkpoint import RunFolderLease, Store, Writer, newer_of, open_memory_checkpoint
from ddl.checkpoint.memory import FOLDER_VARIABLE
from ddl.errors import CheckpointError, LeaseLost


class Gate:
    """A probe that holds the writer at its first write until it is opened."""

    def __init__(self):
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, point):
        if point == "checkpoint.write":
            self.reached.set()
            assert self.open.wait(20)


def test_the_written_state_is_the_one_at_submission(tmp_path):
    gate, x = Gate(), np.arange(4.0)
    store = Store(tmp_path, probe=gate)
    with Writer(store) as writer:
        writer.submit(1, {"x": x, "t": x.reshape(2, 2).T}, {"at": 1})
        assert gate.reached.wait(20)
        x += 100  # training continues
        gate.open.set()
        writer.wait()
    arrays, meta = store.load()
    np.testing.assert_array_equal(arrays["x"], [0, 1, 2, 3])
    np.testing.assert_array_equal(arrays["t"], [[0, 2], [1, 3]])
    assert meta == {"at": 1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_thread_that_dies_in_its_callback_blocks_no_one(tmp_path, monkeypatch):
    monkeypatch.setattr("ddl.checkpoint.writer.LAST_S", 2.0)

    def probe(point):
        raise CheckpointError("the disk is full")

    def say(message):
        raise ValueError("I/O operation on closed file")

    writer = Writer(Store(tmp_path, probe=probe), say=say)
    writer.submit(1, {"x": np.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="the disk is full"):
        writer.wait()
    writer.close()


def test_the_staging_buffer_is_used_again(tmp_path):
    with Writer(Store(tmp_path)) as writer:
        writer.submit(1, {"x": np.arange(1000.0)}, {})
        writer.wait()
        first = writer._staging
        writer.submit(2, {"x": np.arange(999.0)}, {})
        writer.wait()
        assert writer._staging is first


def test_saved_is_called_after_each_checkpoint(tmp_path):
    saved_steps = []
    with Writer(Store(tmp_path), saved=lambda step, path: saved_steps.append((step, path.name))) as writer:
        for step in (1, 2):
            writer.submit(step, {"x": np.zeros(1)}, {})
    assert saved_steps == [(1, "step_00000001"), (2, "step_00000002")]


def test_a_failed_write_is_reported_and_training_continues(tmp_path):
    said, full = [], True

    def probe(point):
        if full and point == "checkpoint.write":
            raise OSError(28, "No space left on device")

    store = Store(tmp_path, probe=probe)
    with Writer(store, say=said.append) as writer:
        writer.submit(1, {"x": np.zeros(1)}, {})
        with pytest.raises(CheckpointError, match="disk is full"):
            writer.wait()
        writer.submit(2, {"x": np.zeros(1)}, {})
        assert writer._is_idle_within(60.0)
        full = False
        writer.submit(3, {"x": np.zeros(1)}, {})
        writer.wait()
    assert len(said) == 2
    assert store.load()[1] == {} and store.newest_step() == 3


def test_a_fenced_writer_stops_at_the_next_checkpoint(tmp_path):
    fence = RunFolderLease(tmp_path, "old")
    with Writer(Store(tmp_path / "c", lease=fence)) as writer:
        RunFolderLease(tmp_path, "new")
        writer.submit(1, {"x": np.zeros(1)}, {})
        assert writer._is_idle_within(60.0)
        with pytest.raises(LeaseLost):
            writer.submit(2, {"x": np.zeros(1)}, {})
    assert Store(tmp_path / "c").newest() is None


def test_a_file_system_that_hangs_costs_checkpoints_and_not_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr("ddl.checkpoint.writer.PATIENCE_S", 0.1)
    monkeypatch.setattr("ddl.checkpoint.writer.TICK_S", 0.01)
    goes_on, said, beats = threading.Event(), [], []
    store = Store(tmp_path, probe=lambda point: goes_on.wait(60.0))
    writer = Writer(store, say=said.append)
    writer.beat = lambda: beats.append(1)
    for step in (1, 2, 3):
        writer.submit(step, {"x": np.zeros(1)}, {})
    assert len(said) == 1 and "no checkpoint of step 2 and later" in said[0] and beats
    with pytest.raises(CheckpointError, match="seems to hang"):
        writer.wait()
    goes_on.set()
    assert writer._is_idle_within(60.0)
    writer.submit(4, {"x": np.zeros(1)}, {})
    writer.wait()
    writer.close()
    assert [entry.step for entry in store.entries()] == [1, 4]


def test_a_closed_writer_takes_nothing(tmp_path):
    writer = Writer(Store(tmp_path))
    writer.close()
    with pytest.raises(CheckpointError, match="closed"):
        writer.submit(1, {}, {})


def test_without_a_supervisor_there_is_no_replica():
    assert open_memory_checkpoint("run", {}) is None


def test_the_newer_of_disk_and_replica_is_continued(tmp_path):
    disk = Store(tmp_path / "disk")
    replica = open_memory_checkpoint("run", {FOLDER_VARIABLE: str(tmp_path / "memory")})
    assert newer_of(disk, None) is newer_of(disk, replica) is disk
    with Writer(disk, replica) as writer:
        writer.submit(1, {"x": np.zeros(1)}, {})
        for step in (2, 3):
            writer.wait()
            writer.submit(step, {"x": np.zeros(1)}, {}, to_disk=False)
    assert newer_of(disk, replica) is replica
    assert (disk.newest_step(), replica.newest_step()) == (1, 3)
    assert len(replica.entries()) == 1


def test_a_copy_for_memory_alone_never_waits_for_a_slow_disk(tmp_path):
    replica = open_memory_checkpoint("run", {FOLDER_VARIABLE: str(tmp_path / "memory")})
    entered, go_on = threading.Event(), threading.Event()

    class SlowDisk(Store):
        def save(self, *arguments):
            entered.set()
            assert go_on.wait(60)
            return super().save(*arguments)

    disk = SlowDisk(tmp_path / "disk")
    with Writer(disk, replica) as writer:
        writer.submit(1, {"x": np.zeros(1)}, {})
        assert entered.wait(60)
        writer.submit(2, {"x": np.zeros(1)}, {}, to_disk=False)  # skipped, and returns at once
        go_on.set()
        writer.wait()
    assert (disk.newest_step(), replica.newest_step()) == (1, 1)


def test_only_the_user_can_read_a_memory_checkpoint(tmp_path):
    memory = open_memory_checkpoint("run", {FOLDER_VARIABLE: str(tmp_path / "memory")})
    path = memory.save(1, {"x": np.zeros(1)}, {})
    modes = {one.name: one.stat().st_mode & 0o777 for one in (memory.folder, path, *path.iterdir())}
    assert modes == {"memory": 0o700, path.name: 0o700, "arrays.safetensors": 0o600, "state.json": 0o600}


def test_a_memory_checkpoint_of_another_run_does_not_count(tmp_path):
    environ = {FOLDER_VARIABLE: str(tmp_path / "memory")}
    open_memory_checkpoint("theirs", environ).save(9, {"x": np.zeros(1)}, {})
    memory = open_memory_checkpoint("mine", environ)
    assert memory.newest_step() == -1
    with pytest.raises(CheckpointError, match="it is of another run"):
        memory.load()


def open_to_all(folder):
    folder.mkdir()
    folder.chmod(0o750)


def of_another_user(folder):
    folder.mkdir(0o700)
    os.chown(folder, 12345, -1)


STRANGE = {
    "open to others": open_to_all,
    "another user's": of_another_user,
    "a link": lambda folder: folder.symlink_to(folder.parent),
    "a file": lambda folder: folder.touch(),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_memory_folder_that_other_users_can_access_is_not_used(tmp_path, what):
    if what == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    STRANGE[what](tmp_path / "memory")
    said = []
    assert open_memory_checkpoint("run", {FOLDER_VARIABLE: str(tmp_path / "memory")}, say=said.append) is None
    assert len(said) == 1 and "this user alone" in said[0]
