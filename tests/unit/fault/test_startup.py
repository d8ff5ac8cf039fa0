"""Start-up without MPI: which missing ranks end a launch, after how long, and that the watcher process acts on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddl.fault import startup


def announced(states):
    return {rank: {"state": state, "host": "a", "doing": "opening its data"} for rank, state in states.items()}


@pytest.mark.parametrize(
    ("states", "still_s", "lost"),
    [
        ({0: "joining", 2: "joining"}, 59.0, []),
        ({0: "joining", 2: "joining"}, 61.0, [1]),
        ({0: "joining"}, 61.0, [1, 2]),
        # A rank that makes progress changes its announcement; if none does, the ranks that have not reached MPI hang.
        ({0: "joining", 1: "starting", 2: "joining"}, 59.0, []),
        ({0: "joining", 1: "starting", 2: "joining"}, 61.0, [1]),
        ({0: "starting", 1: "starting", 2: "starting"}, 61.0, [0, 1, 2]),
        # MPI itself may take its time, but only so long.
        ({0: "joining", 1: "joining", 2: "joining"}, 599.0, []),
        ({0: "started", 1: "joining", 2: "joining"}, 601.0, [1, 2]),
        # A rank that ended cannot join any more.
        ({0: "joining", 1: "ended", 2: "joining"}, 4.0, []),
        ({0: "joining", 1: "ended", 2: "joining"}, 6.0, [1]),
        # A rank that has joined no longer takes part in start-up: its death is for the recovery.
        ({0: "started", 1: "started", 2: "joining"}, 61.0, []),
    ],
)
def test_a_launch_ends_for_ranks_that_are_absent_or_that_hang(states, still_s, lost):
    assert startup.lost_ranks(announced(states), 3, still_s, 60.0) == lost


def test_a_rank_that_ended_before_its_announcement_is_not_waited_for():
    states = announced({0: "joining", 2: "joining"})
    assert startup.lost_ranks(states, 3, 4.0, 600.0, {1}) == []
    assert startup.lost_ranks(states, 3, 6.0, 600.0, {1}) == [1]
    assert startup.reason_of([1], states, 600.0, {1}) == "rank 1 ended while starting"


def test_the_reason_names_absent_ranks_and_what_the_others_did():
    states = announced({0: "joining", 3: "ended", 4: "starting"})
    assert startup.reason_of([1, 2, 3, 4], states, 60.0) == (
        "ranks 1, 2 did not start within 60 s; rank 3 on a ended while opening its data; "
        "rank 4 on a made no progress for 60 s while opening its data"
    )


def test_a_folder_prepared_as_a_link_is_not_used(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "announcements").symlink_to(tmp_path / "elsewhere")
    assert not startup.make_private(str(tmp_path / "announcements"))
    assert startup.make_private(str(tmp_path / "own"))
    assert Path(tmp_path / "own").stat().st_mode & 0o077 == 0


def test_ranks_announce_themselves_in_a_common_folder(tmp_path):
    one_node = {"PMIX_NAMESPACE": "prterun-a-1@1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    several = {**one_node, "OMPI_COMM_WORLD_SIZE": "4"}
    run_dir = str(tmp_path / "runs" / "x")
    assert startup.announcements_folder(run_dir, {}) is None
    assert Path(startup.announcements_folder(run_dir, several)).parent == tmp_path / "runs"
    assert Path(startup.announcements_folder(run_dir, one_node)).parent != tmp_path / "runs"
