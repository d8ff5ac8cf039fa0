"""Files that grow by whole lines, on disks that write only part of a line, or temporarily nothing."""

from __future__ import annotations

import errno
import itertools
import os

import pytest

from ddl import jsonlines
from ddl.jsonlines import Lines
from ddl.metrics import Hub, JsonLines, Warned, read_lines


@pytest.fixture
def clock():
    """Each look at it is a retry later."""
    return itertools.count(0, jsonlines.RETRY_S).__next__


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("room", range(22))
def test_a_full_disk_makes_whole_lines_wait_and_loses_none(tmp_path, disk, clock, room, code):
    path, said = tmp_path / "metrics.jsonl", []
    file = Lines(path, said.append, clock)
    file.write("before")
    disk.room, disk.code = room, code
    lines = ""
    for line in ("first", "second", "third"):
        file.write(line)
        lines += line + "\n"
        # What a reader sees while the disk is full ends with a whole line.
        seen = path.read_text()
        assert seen.endswith("\n") and ("before\n" + lines).startswith(seen)
    disk.room = 1 << 30
    file.write("after")
    file.close()
    assert path.read_text().split() == ["before", "first", "second", "third", "after"]
    if room < len(lines):
        waits, again = said
        assert waits.startswith("metrics.jsonl waits in memory for room on the disk: ")
        assert again == "metrics.jsonl is written again, and lacks nothing"
    else:
        assert not said


def test_between_two_tries_lines_only_wait(tmp_path, disk):
    now = [0.0]
    file = Lines(tmp_path / "m", clock=lambda: now[0])
    disk.room = 0
    file.write("first")
    disk.room = 1 << 30
    file.write("second")
    assert (tmp_path / "m").read_text() == ""
    now[0] = jsonlines.RETRY_S
    file.write("third")
    assert (tmp_path / "m").read_text() == "first\nsecond\nthird\n"


def test_a_long_backlog_is_written_as_far_as_there_is_room(tmp_path, disk, clock, monkeypatch):
    monkeypatch.setattr(jsonlines, "PIECE_BYTES", 64)
    file = Lines(tmp_path / "m", clock=clock)
    disk.room = 0
    wanted = [str(number) * (1 + number % 30) for number in range(200)]
    for line in wanted[:-1]:
        file.write(line)
    for room in (100, 1000, 1 << 30):
        disk.room = room
        file.catch_up()
        found = (tmp_path / "m").read_text()
        assert found == "".join(f"{line}\n" for line in wanted)[: len(found)] and found.endswith("\n")
        assert len(found) > room - 200 or room == 1 << 30
    file.write(wanted[-1])
    assert (tmp_path / "m").read_text().split() == wanted


def test_a_file_that_could_not_be_made_waits_too(tmp_path, monkeypatch, clock):
    said, opened = [], os.open

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jsonlines.os, "open", full)
    file = Lines(tmp_path / "m", said.append, clock)
    file.write("first")
    monkeypatch.setattr(jsonlines.os, "open", opened)
    assert file.catch_up() and (tmp_path / "m").read_text() == "first\n"
    assert "waits" in said[0] and "lacks nothing" in said[1]
    with pytest.raises(FileNotFoundError):
        Lines(tmp_path / "none" / "m")


def test_a_disk_that_stays_full_loses_the_waiting_lines_and_reports_their_number(tmp_path, disk):
    said = []
    file = Lines(tmp_path / "ledger.jsonl", said.append)
    file.write("before")
    disk.room = 3
    file.write("first")
    file.write("second")
    file.close()
    file.close()
    assert (tmp_path / "ledger.jsonl").read_text() == "before\n"
    assert said[1:] == ["ledger.jsonl lacks its last 2 lines: there is no room on the disk"]


def test_a_disk_that_breaks_while_lines_wait_loses_only_these(tmp_path, disk):
    said = []
    file = Lines(tmp_path / "m", said.append)
    disk.room = 0
    file.write("first")
    disk.code = errno.EIO
    file.close()
    assert said[1:] == ["m lacks its last 1 line: Input/output error"]


def test_closing_does_not_write_discarded_lines(tmp_path, disk):
    said = []
    file = Lines(tmp_path / "m", said.append)
    disk.room = 0
    file.write("first")
    disk.room = 1 << 30
    file.forget()
    file.close()
    assert (tmp_path / "m").read_text() == "" and len(said) == 1


def test_too_many_waiting_lines_and_a_broken_disk_are_errors(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(jsonlines, "WAITING_BYTES", 20)
    file = Lines(tmp_path / "m")
    disk.room = 0
    file.write("0123456789")
    with pytest.raises(OSError, match="No space left"):
        file.write("0123456789")
    disk.code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        file.write("x")
    assert (tmp_path / "m").read_text() == ""


def test_a_file_system_that_cannot_truncate_gets_a_new_line(tmp_path, disk, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jsonlines.os, "ftruncate", refuse)
    file = Lines(tmp_path / "m")
    disk.room = 3
    file.write("first")
    disk.room = 1 << 30
    file.close()
    assert (tmp_path / "m").read_text() == "fir\nfirst\n"


def test_another_leaders_lines_behind_a_torn_one_are_not_cut_off(tmp_path, disk, monkeypatch):
    path = tmp_path / "m"
    file = Lines(path)
    seek = os.lseek

    def overtaken(*place):
        with open(path, "ab") as other:
            disk._write(other.fileno(), b"\nother\n")
        return seek(*place)

    monkeypatch.setattr(jsonlines.os, "lseek", overtaken)
    disk.room = 3
    file.write("first")
    disk.room = 1 << 30
    file.close()
    assert path.read_text().split() == ["fir", "other", "first"]


def test_a_warning_about_the_full_disk_waits_in_the_file_that_it_is_about(tmp_path, disk, monkeypatch):
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
    monkeypatch.setattr(jsonlines, "RETRY_S", 0.0)
    disk.room = 10
    hub.emit(Warned("one"))
    disk.room = 1 << 30
    hub.emit(Warned("two"))
    messages = [line["message"] for line in read_lines(path)]
    waits, again = (message for message in messages if message.startswith("metrics.jsonl"))
    assert messages == ["one", waits, "two", again]
    assert "waits" in waits and "lacks nothing" in again
    disk.room = 0
    hub.emit(Warned("three"))
    hub.close()
    assert heard[-2:] == ["metrics.jsonl lacks its last 2 lines: there is no room on the disk", "closed"]
    assert heard[:-2] == ["one", waits, "two", again, "three", waits]


def test_a_file_system_that_reports_no_space_only_at_close_is_reported(tmp_path, monkeypatch):
    said, close = [], os.close

    def late(file):
        close(file)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    file = Lines(tmp_path / "m", said.append)
    monkeypatch.setattr(jsonlines.os, "close", late)
    file.write("first")
    file.close()
    file.close()
    assert said == [f"m may lack its last lines: {os.strerror(errno.EDQUOT)}"]
