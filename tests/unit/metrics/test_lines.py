"""Files that grow by whole lines, on disks that take a part of a line, or none for a while."""

from __future__ import annotations

import errno
import os

import pytest

from ddl import lines
from ddl.lines import Lines
from ddl.metrics import Hub, JsonLines, Warned, read_lines


class Disk:
    """Stands before os.write: takes ``room`` bytes, the last of a line in part, and then refuses."""

    def __init__(self, monkeypatch):
        self.room, self.code, self.when_full = 1 << 30, errno.ENOSPC, lambda: None
        self._write = os.write
        monkeypatch.setattr(lines.os, "write", self.write)

    def write(self, file, bytes_):
        if not self.room:
            self.when_full()
            raise OSError(self.code, os.strerror(self.code))
        written = self._write(file, bytes_[: self.room])
        self.room -= written
        return written


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("room", range(13))
def test_a_full_disk_makes_whole_lines_wait_and_loses_none(tmp_path, disk, room, code):
    path, said = tmp_path / "metrics.jsonl", []
    file = Lines(path, said.append)
    file.write("before")
    disk.room, disk.code = room, code
    for line in ("first", "second", "third"):
        file.write(line)
        # What a reader sees while the disk is full ends with a whole line.
        assert path.read_text() in ("before\n", "before\nfirst\n")
    assert file.waits
    disk.room = 1 << 30
    file.write("after")
    file.close()
    assert path.read_text().split() == ["before", "first", "second", "third", "after"] and not file.waits
    assert said == [
        f"metrics.jsonl waits in memory for room on the disk: {os.strerror(code)}",
        "metrics.jsonl is written again, and lacks nothing",
    ]


def test_a_disk_that_stays_full_costs_the_lines_that_wait_and_says_how_many(tmp_path, disk):
    said = []
    file = Lines(tmp_path / "ledger.jsonl", said.append)
    file.write("before")
    disk.room = 3
    file.write("first")
    file.write("second")
    file.close()
    file.close()
    assert (tmp_path / "ledger.jsonl").read_text() == "before\n"
    assert said[1:] == ["ledger.jsonl lacks its last 2 line(s): No space left on device"]


def test_too_many_waiting_lines_and_a_broken_disk_are_errors(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(lines, "WAITING_BYTES", 20)
    file = Lines(tmp_path / "m")
    disk.room = 0
    file.write("0123456789")
    with pytest.raises(OSError, match="No space left"):
        file.write("0123456789")
    disk.code, disk.room = errno.EIO, 5
    with pytest.raises(OSError, match="Input/output"):
        file.write("x")
    assert (tmp_path / "m").read_text() == ""


def test_another_leaders_lines_behind_a_torn_one_are_not_cut_off(tmp_path, disk):
    path = tmp_path / "m"
    file = Lines(path)

    def overtake():
        disk.room, disk.when_full = 1 << 30, lambda: None
        with open(path, "ab") as other:
            other.write(b"\nother\n")

    disk.room, disk.when_full = 3, overtake
    file.write("first")
    disk.room = 1 << 30
    file.write("second")
    file.close()
    assert path.read_text().split() == ["fir", "other", "first", "second"]


def test_a_warning_about_the_full_disk_waits_in_the_file_that_it_is_about(tmp_path, disk):
    """What a file says of itself goes through the hub to the file itself, and to the console before it."""
    heard = []

    class Console:
        def write(self, event):
            heard.append(event.message)

        def close(self):
            heard.append("closed")

    hub = Hub([Console()])
    path = tmp_path / "metrics.jsonl"
    hub.sinks.append(JsonLines(path, say=lambda message: hub.emit(Warned(message))))
    disk.room = 10
    hub.emit(Warned("one"))
    disk.room = 1 << 30
    hub.emit(Warned("two"))
    told = [line["message"] for line in read_lines(path)]
    waits, again = (message for message in told if message.startswith("metrics.jsonl"))
    assert told == ["one", waits, "two", again]
    assert "waits" in waits and "lacks nothing" in again
    disk.room = 0
    hub.emit(Warned("three"))
    hub.close()
    assert heard[-2:] == ["metrics.jsonl lacks its last 2 line(s): No space left on device", "closed"]
    assert heard[:-2] == ["one", waits, "two", again, "three", waits]
