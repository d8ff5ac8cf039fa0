"""What the leader keeps in memory while the disk is full, and what becomes of it."""

import errno
from types import SimpleNamespace

import pytest

from ddl.data import Order
from ddl.metrics import JobStarted, Warned, read_lines
from ddl.run.log import Journal

START = JobStarted(
    name="n",
    folder="f",
    launch="old",
    ranks=1,
    spares=0,
    hosts={},
    device="cpu",
    model="m",
    parameters=1,
    samples=12,
    shards=2,
    global_batch=4,
    steps=9,
    steps_per_epoch=3,
)


@pytest.fixture
def journal(tmp_path):
    found = Journal(SimpleNamespace(order=Order(12, 2, 4, 0)))
    found._say = found.warn
    found.folder, found.launch = tmp_path, "old"
    found.lead()
    return found


@pytest.mark.parametrize("then", [0, errno.ENOSPC, errno.EIO])
def test_a_leader_whose_folder_is_another_launchs_writes_nothing_that_waited(journal, disk, tmp_path, then):
    journal.warn("before")
    disk.room = 0
    journal.started(START)
    journal.warn("waits")
    disk.room, disk.code = (0, then) if then else (1 << 30, 0)
    journal.fall_silent()
    assert not journal.leads
    assert [line["message"] for line in read_lines(tmp_path / "metrics.jsonl")] == ["before"]
    assert (tmp_path / "ledger.jsonl").read_text() == ""


def test_a_start_that_waits_has_been_told(journal, disk):
    assert not journal.has_started
    disk.room = 0
    journal.started(START)
    assert journal.has_started


@pytest.mark.parametrize("then", [0, errno.ENOSPC, errno.EIO])
def test_closing_writes_what_it_can_and_ends_no_job(journal, disk, tmp_path, then):
    disk.room = 0
    journal.started(START)
    journal.emit(Warned("waits"))
    disk.room, disk.code = (0, then) if then else (1 << 30, 0)
    journal.close()
    told = [line["event"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert (told[0] == "start" and "waits" in str(read_lines(tmp_path / "metrics.jsonl"))) if then == 0 else not told
    assert ("old" in (tmp_path / "ledger.jsonl").read_text()) is (then == 0)
