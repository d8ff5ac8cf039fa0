"""At the agreed end, exactly the shared memory files left by Open MPI's ranks are removed."""

import os
from pathlib import Path

import pytest

from ddl.comm import leftovers

MINE = os.geteuid()


@pytest.fixture
def machine(tmp_path):
    """(shared memory, processes): ours is 7, and has mapped two segments of its job; 8 is a stranger."""
    memory, processes = tmp_path / "shm", tmp_path / "proc"
    memory.mkdir()

    def maps(pid, *names):
        (processes / str(pid)).mkdir(parents=True)
        lines = [f"7f00-7f01 rw-s 00000000 00:19 42    {memory}/{name}\n" for name in names]
        (processes / str(pid) / "maps").write_text("".join(["7f02-7f03 r-xp 0 08:01 1 /usr/lib/libc.so\n", *lines]))

    maps("self", f"sm_segment.h.{MINE}.ab120001.0", f"sm_segment.h.{MINE}.ab120001.1")
    maps(7, f"sm_segment.h.{MINE}.ab120001.0", f"sm_segment.h.{MINE}.ab120001.1")
    maps(8, f"sm_segment.h.{MINE}.ab120003.0", f"sm_segment.h.{MINE}.77770001.0")
    return memory, processes


def left_of(machine, *names):
    memory, processes = machine
    for name in names:
        (memory / name).touch()
    leftovers.remove_segments(memory, processes)
    return sorted(path.name for path in memory.iterdir())


def test_files_that_this_job_has_mapped_are_removed(machine):
    assert left_of(machine, f"sm_segment.h.{MINE}.ab120001.0", f"sm_segment.h.{MINE}.ab120001.1") == []


def test_files_of_a_dead_rank_of_the_same_mpirun_are_removed(machine):
    assert left_of(machine, f"sm_segment.h.{MINE}.ab120002.4") == []


@pytest.mark.parametrize(
    "name",
    [
        f"sm_segment.h.{MINE}.ab120003.0",  # of the same mpirun, but somebody uses it
        f"sm_segment.h.{MINE}.77770001.0",  # another job's, in use
        f"sm_segment.h.{MINE}.77770001.1",  # another job's, which may be about to be mapped
        f"sm_segment.h.{MINE + 1}.ab120001.5",  # another user's
        "ddl-replica-9",
    ],
)
def test_files_of_other_jobs_stay(machine, name):
    assert left_of(machine, name) == [name]


def test_a_process_without_a_segment_removes_nothing(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "maps").write_text("")
    (tmp_path / f"sm_segment.h.{MINE}.ab120001.0").touch()
    assert leftovers.remove_segments(tmp_path, tmp_path) == []
    assert Path(tmp_path, f"sm_segment.h.{MINE}.ab120001.0").exists()
