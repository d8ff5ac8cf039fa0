"""Start-up without MPI: which missing ranks end a launch, after how long, and that the watcher process acts on it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddl.fault import startup

WATCHER = startup.__file__


def announced(states):
    return {rank: {"state": state, "host": "a"} for rank, state in states.items()}


@pytest.mark.parametrize(
    ("states", "still_s", "lost"),
    [
        ({0: "joining", 2: "joining"}, 59.0, []),
        ({0: "joining", 2: "joining"}, 61.0, [1]),
        ({0: "joining"}, 61.0, [1, 2]),
        # A rank that still imports is present, however long it takes.
        ({0: "joining", 1: "starting", 2: "joining"}, 1e6, []),
        # A rank that ended cannot join any more.
        ({0: "joining", 1: "ended", 2: "joining"}, 4.0, []),
        ({0: "joining", 1: "ended", 2: "joining"}, 6.0, [1]),
        # A rank that has joined no longer takes part in start-up: its death is for the recovery.
        ({0: "started", 1: "started", 2: "joining"}, 1e6, []),
    ],
)
def test_only_the_absence_of_a_rank_ends_a_launch(states, still_s, lost):
    assert startup.lost_ranks(announced(states), 3, still_s, 60.0) == lost


def test_the_reason_names_missing_ranks_and_the_hosts_of_ended_ones():
    states = announced({0: "joining", 3: "ended"})
    assert startup.reason_of([1, 2, 3], states, 60.0) == (
        "ranks 1, 2 did not start within 60 s; rank 3 on a ended during start-up"
    )


@pytest.fixture
def rank(tmp_path):
    """rank(number, code): starts a stand-in for a rank, which starts its watcher as ``announce`` does."""
    started = []

    def start(number, code="time.sleep(60)", size=2, timeout_s=1.0):
        words = [str(tmp_path / "announcements"), str(number), str(size), str(timeout_s), str(tmp_path / "run"), "one"]
        text = (
            "import subprocess, sys, time\n"
            f"watcher = subprocess.Popen([sys.executable, '-I', '-S', {WATCHER!r}, *{words}], stdin=subprocess.PIPE)\n"
            "def send(state):\n    watcher.stdin.write(state)\n    watcher.stdin.flush()\n"
            f"{code}\n"
        )
        started.append(subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_rank_that_waits_for_a_missing_one_is_ended_with_a_line_a_note_and_a_summary(rank, tmp_path):
    waiting = rank(0, "send(b'j')\ntime.sleep(60)")
    assert "rank 1 did not start within 1 s" in waiting.communicate(timeout=30)[1]
    assert waiting.returncode == -9
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["launch"], summary["exit_status"]) == ("stopped", "one", 75)
    assert json.loads((tmp_path / "run" / "notes" / "one" / "rank-0.json").read_text())["kind"] == "startup"
    assert not (tmp_path / "announcements").exists()


def test_the_summary_of_a_finished_run_is_kept(rank, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"status": "finished"}')
    rank(0, "send(b'j')\ntime.sleep(60)").communicate(timeout=30)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"status": "finished"}


def test_a_rank_that_still_computes_before_it_joins_keeps_the_others_waiting(rank):
    waiting = rank(0, "send(b'j')\ntime.sleep(60)", size=3)
    rank(1, "end = time.monotonic() + 4\nwhile time.monotonic() < end: pass\ntime.sleep(60)", size=3)
    time.sleep(3)
    assert waiting.poll() is None  # rank 2 is missing, but rank 1 makes progress
    assert "rank 2 did not start" in waiting.communicate(timeout=30)[1]


def test_nothing_is_left_once_all_ranks_have_joined(rank, tmp_path):
    both = [rank(number, "send(b's')\nraise SystemExit(watcher.wait())") for number in range(2)]
    assert [one.wait(30) for one in both] == [0, 0]
    assert not (tmp_path / "announcements").exists()


def test_a_folder_prepared_as_a_link_is_not_used(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "announcements").symlink_to(tmp_path / "elsewhere")
    assert not startup.make_private(str(tmp_path / "announcements"))
    assert startup.make_private(str(tmp_path / "own"))
    assert Path(tmp_path / "own").stat().st_mode & 0o077 == 0


def test_ranks_announce_themselves_where_all_of_them_look(tmp_path):
    one_node = {"PMIX_NAMESPACE": "prterun-a-1@1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    several = {**one_node, "OMPI_COMM_WORLD_SIZE": "4"}
    run_dir = str(tmp_path / "runs" / "x")
    assert startup.announcements_folder(run_dir, {}) is None
    assert Path(startup.announcements_folder(run_dir, several)).parent == tmp_path / "runs"
    assert Path(startup.announcements_folder(run_dir, one_node)).parent != tmp_path / "runs"
