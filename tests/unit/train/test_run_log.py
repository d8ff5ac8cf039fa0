"""Lines that the leader keeps in memory while the disk is full, and when they are events."""

import errno
from types import SimpleNamespace

import pytest

from ddl.data import Order
from ddl.metrics import JobStarted, Warned, read_lines
from ddl.run.log import RunLog

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
def run_log(tmp_path):
    found = RunLog(SimpleNamespace(order=Order(12, 2, 4, 0)))
    found._say = found.warn
    found.folder, found.launch = tmp_path, "old"
    found.lead()
    return found


@pytest.mark.parametrize("then", [0, errno.ENOSPC, errno.EIO])
def test_a_leader_whose_folder_is_another_launchs_writes_nothing_that_waited(run_log, disk, tmp_path, then):
    run_log.warn("before")
    disk.room = 0
    run_log.started(START)
    run_log.warn("waits")
    disk.room, disk.code = (0, then) if then else (1 << 30, 0)
    run_log.fall_silent()
    assert not run_log.leads
    assert [line["message"] for line in read_lines(tmp_path / "metrics.jsonl")] == ["before"]
    assert (tmp_path / "ledger.jsonl").read_text() == ""


def test_a_start_line_that_waits_counts_as_started(run_log, disk):
    assert not run_log.has_started
    disk.room = 0
    run_log.started(START)
    assert run_log.has_started


@pytest.mark.parametrize("then", [0, errno.ENOSPC, errno.EIO])
def test_closing_writes_as_much_as_fits_and_raises_nothing(run_log, disk, tmp_path, then):
    disk.room = 0
    run_log.started(START)
    run_log.emit(Warned("waits"))
    disk.room, disk.code = (0, then) if then else (1 << 30, 0)
    run_log.close()
    events = [line["event"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert (
        (events[0] == "start" and "waits" in str(read_lines(tmp_path / "metrics.jsonl"))) if then == 0 else not events
    )
    assert ("old" in (tmp_path / "ledger.jsonl").read_text()) is (then == 0)
