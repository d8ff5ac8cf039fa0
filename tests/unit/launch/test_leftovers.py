"""Leftovers of dead mpiruns go; what may be in use, or may be another user's or host's, stays."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from ddl.launcher.leftovers import HOST, remove_leftovers, remove_segments, segments

UID = os.geteuid()


@pytest.fixture
def machine(tmp_path):
    """(temporary, memory, the number of a dead process)"""
    for name in ("tmp", "shm"):
        (tmp_path / name).mkdir()
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    return tmp_path / "tmp", tmp_path / "shm", gone.pid


def make(folder, host=HOST):
    folder.mkdir()
    (folder / f"pmix.{host}.tool").touch()
    (folder / f"pmix.{host}.tool.1").touch()


def test_session_folders_and_announcements_of_dead_mpiruns_go(machine):
    temporary, memory, dead = machine
    make(temporary / f"ompi.{dead}")
    make(temporary / f".ddl-startup-{UID}-a-0-prterun-{HOST}-{dead}@1")
    assert len(remove_leftovers(temporary, memory)) == 2
    assert not any(temporary.iterdir())


def test_what_is_in_use_or_anybody_elses_stays(machine):
    temporary, memory, dead = machine
    make(temporary / f"ompi.{os.getpid()}")
    make(temporary / f"ompi.{dead}", host="elsewhere")
    make(temporary / f"ompi.{HOST}.0")
    make(temporary / f".ddl-startup-{UID + 1}--prterun-{HOST}-{dead}@1")
    make(temporary / "target")
    (temporary / "ompi.999999999").symlink_to(temporary / "target")
    before = sorted(temporary.rglob("*"))
    assert remove_leftovers(temporary, memory) == []
    assert sorted(temporary.rglob("*")) == before


def test_segments_go_that_are_old_and_that_no_process_has_mapped(machine):
    temporary, memory, _ = machine
    names = {name: memory / f"sm_segment.{HOST}.{UID}.{name}.0" for name in ("old", "mapped", "young")}
    names["foreign"] = memory / f"sm_segment.{HOST}.{UID + 1}.old.0"
    for name, path in names.items():
        path.write_bytes(bytes(4096))
        os.utime(path, (1, 1) if name != "young" else None)
    with open(names["mapped"], "r+b") as file, mmap.mmap(file.fileno(), 0):
        assert remove_leftovers(temporary, memory) == [names["old"]]


def test_after_a_launch_its_own_segments_go_however_young(machine):
    _, memory, _ = machine
    (memory / f"sm_segment.{HOST}.{UID}.before.0").touch()
    before = segments(memory)
    (memory / f"sm_segment.{HOST}.{UID}.new.0").touch()
    remove_segments(before, memory)
    assert segments(memory) == before
