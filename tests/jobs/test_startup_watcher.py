"""The process that watches a rank start ends the launch, and says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddl.fault import startup

WATCHER = startup.__file__


@pytest.fixture
def rank(tmp_path):
    """rank(number, code): starts a stand-in for a rank, which starts its watcher as ``announce`` does."""
    started = []

    def start(number, code="time.sleep(60)", size=2, timeout_s=0.4):
        words = [str(tmp_path / "announcements"), str(number), str(size), str(timeout_s), str(tmp_path / "run"), "one"]
        text = (
            "import subprocess, sys, time\n"
            f"watcher = subprocess.Popen([sys.executable, '-I', '-S', {WATCHER!r}, *{words}], stdin=subprocess.PIPE)\n"
            "def send(line):\n    watcher.stdin.write(f'{line}\\n'.encode())\n    watcher.stdin.flush()\n"
            f"{code}\n"
        )
        started.append(subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_rank_that_waits_for_a_missing_one_is_ended_with_a_line_a_note_and_a_summary(rank, tmp_path):
    waiting = rank(0, "send('joining')\ntime.sleep(60)")
    assert "rank 1 did not start within 0.4 s" in waiting.communicate(timeout=30)[1]
    assert waiting.returncode == -startup.END_SIGNAL
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["launch"], summary["exit_status"]) == ("stopped", "one", 75)
    assert json.loads((tmp_path / "run" / "notes" / "one" / "rank-0.json").read_text())["kind"] == "startup"
    assert not (tmp_path / "announcements").exists()


def test_a_rank_that_takes_no_signal_is_ended_all_the_same(rank):
    code = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))\n"
    waiting = rank(0, f"{code}send('joining')\ntime.sleep(60)")
    waiting.communicate(timeout=30)
    assert waiting.returncode == -9


def test_a_rank_that_has_ended_meanwhile_is_left_alone(rank):
    waiting = rank(0, "send('joining')\ntime.sleep(60)")
    assert "rank 1 did not start" in waiting.stderr.readline()
    waiting.kill()
    waiting.wait()
    assert waiting.stderr.read() == ""


def test_what_a_rank_does_is_announced_before_it_makes_progress(rank, tmp_path):
    rank(0, "time.sleep(0.6)\nsend('opening its data')\ntime.sleep(60)", timeout_s=60)
    path, end = tmp_path / "announcements" / "rank-0.json", time.monotonic() + 20
    while "opening its data" not in (path.read_text() if path.exists() else ""):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_summary_of_a_finished_run_is_kept(rank, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"status": "finished"}')
    rank(0, "send('joining')\ntime.sleep(60)").communicate(timeout=30)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"status": "finished"}


def test_a_rank_that_still_computes_before_it_joins_keeps_the_others_waiting(rank, tmp_path):
    code = f"end = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nopen({str(tmp_path / 'done')!r}, 'w')\n"
    waiting, _ = rank(0, "send('joining')\ntime.sleep(60)", size=3), rank(1, code + "time.sleep(60)", size=3)
    assert "rank 2 did not start" in waiting.communicate(timeout=30)[1]
    assert (tmp_path / "done").exists()  # rank 2 is missing all the time, but rank 1 made progress


@pytest.mark.parametrize(("code", "how"), [("time.sleep(60)", "made no progress for 0.4 s"), ("", "ended")])
def test_a_rank_that_hangs_or_ends_before_mpi_ends_the_launch_and_is_named_with_what_it_did(rank, tmp_path, code, how):
    both = [rank(0, "send('joining')\ntime.sleep(60)"), rank(1, f"send('opening its data')\n{code}")]
    assert f"rank 1 on {os.uname().nodename} {how} while opening its data" in both[0].communicate(timeout=30)[1]
    assert both[1].wait(30) == (-startup.END_SIGNAL if code else 0)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"


@pytest.mark.parametrize(
    "code",
    [
        "sum(range(10_000_000))",
        "open('/dev/zero', 'rb').read(1 << 24)",
        "subprocess.run([sys.executable, '-c', 'sum(range(10_000_000))'])",
        "child = subprocess.Popen([sys.executable, '-c', 'while True: pass']); time.sleep(0.5)",
    ],
)
def test_computing_and_reading_count_as_progress_in_a_rank_and_its_children(code):
    text = f"import subprocess, sys, time; input(); {code}; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        before = startup.progress_of(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline()
        after = startup.progress_of(process.pid)
        for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(word), 9)
        process.kill()
    assert after > before


def test_a_rank_that_ends_before_the_others_come_is_known_to_have_ended(rank):
    assert rank(1, "watcher.stdin.close()\nwatcher.wait()").wait(30) == 0
    waiting = rank(0, "send('joining')\ntime.sleep(60)")
    assert "ended while starting" in waiting.communicate(timeout=30)[1]


def test_nothing_is_left_once_all_ranks_have_joined(rank, tmp_path):
    both = [rank(number, "send('started')\nraise SystemExit(watcher.wait())") for number in range(2)]
    assert [one.wait(30) for one in both] == [0, 0]
    assert not (tmp_path / "announcements").exists()
