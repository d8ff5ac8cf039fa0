"""The supervisor, against a stub that plays mpirun: what it believes, when it starts again, what it leaves.

Its decision alone is tested in tests/unit/launch, with a real mpirun in tests/fault."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from ddl.launch import from_words
from ddl.launcher.hosts import Hosts
from ddl.launcher.mpirun import members
from ddl.launcher.supervisor import Supervisor

DEADLINE_S = 60

STUB = """\
#!{python}
import json, os, pathlib, signal, subprocess, sys, time
words = sys.argv[1:]
if "--sweep" in words:  # a host is asked whether it answers
    host = words[words.index("--host") + 1].split(":")[0]
    print("swept 0") if host != "dead" else sys.exit(1)
    sys.exit(0)
folder = pathlib.Path(words[len(words) - 1 - words[::-1].index("--run.dir") + 1])
launch = os.environ["DDL_LAUNCH"]
attempt = int(launch.rpartition("-")[2])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps({{"words": words, "launch": launch, "replica": os.environ.get("DDL_REPLICA")}}) + "\\n")

def step(number):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({{"event": "step", "step": number}}) + "\\n")

def summary(status, **more):
    (folder / "summary.json").write_text(json.dumps({{"status": status, "launch": launch, **more}}))

"""


@pytest.fixture
def play(tmp_path):
    """play(code) -> (supervisor, calls): a supervisor whose mpirun runs ``code``."""

    def make(code, *, open_mpi=False, hosts=(), words=(), **options):
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir(exist_ok=True)
        stub = bin_folder / "mpirun"
        stub.write_text(STUB.format(python=sys.executable) + textwrap.dedent(code))
        stub.chmod(0o755)
        if open_mpi or hosts:
            (bin_folder / "prterun").touch()
        made = from_words(["-n", "4", "--run.dir", str(tmp_path / "run"), *words])
        made = Supervisor(made.job, made.words, 4, Hosts(str(stub), hosts), **options)

        def calls():
            return [json.loads(line) for line in (tmp_path / "run" / "calls.jsonl").read_text().splitlines()]

        return made, calls

    return make


def run_dir(call):
    return call["words"][call["words"].index("--run.dir") + 1]


def test_a_finished_job_is_done_regardless_of_mpiruns_status(play):
    made, calls = play("summary('finished'); sys.exit(134)")
    assert made.run() == 0
    assert len(calls()) == 1


def test_status_0_of_mpirun_proves_nothing(play, capfd):
    made, calls = play("step(5 + attempt)\nif attempt: summary('finished')")
    assert made.run() == 0
    assert len(calls()) == 2
    assert "lost after step 5; starting again on 4 ranks (9 restarts left)" in capfd.readouterr().err


def test_the_summary_of_another_launch_does_not_count(play):
    made, calls = play("step(attempt)\nlaunch = launch if attempt else 'before'\nsummary('finished')")
    assert made.run() == 0
    assert len(calls()) == 2


def test_a_job_that_fails_on_user_error_is_not_restarted(play):
    made, calls = play("sys.exit(2)")
    assert made.run() == 2
    assert len(calls()) == 1


def test_a_failed_job_is_not_repeated(play, capfd):
    made, calls = play("step(3); summary('failed', error='ten steps in a row'); sys.exit(1)")
    assert made.run() == 1
    assert "failed after step 3: ten steps in a row" in capfd.readouterr().err
    assert len(calls()) == 1


def test_the_same_step_failing_three_times_stops_it_and_the_notes_are_named(play, capfd):
    made, calls = play(
        """
        step(7)
        notes = folder / "notes" / launch
        notes.mkdir(parents=True)
        note = dict(rank=2, host="h", step=7, time=1, kind="exception", error="ZeroDivisionError: x at m.py:3")
        (notes / "rank-2.json").write_text(json.dumps({**note, "traceback": "Traceback in user code"}))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert made.run() == 1
    assert len(calls()) == 3
    printed = capfd.readouterr().err
    assert "the 3rd time at the same step" in printed
    assert "rank 2 on h, step 7: ZeroDivisionError: x at m.py:3" in printed and "Traceback in user code" in printed


def test_failures_at_different_steps_use_up_the_restarts(play, capfd):
    made, calls = play("step(attempt)", restarts=4)
    assert made.run() == 1
    assert len(calls()) == 5
    assert "no restart is left" in capfd.readouterr().err


def test_a_restart_resumes_from_the_newest_checkpoint_and_without_the_drill(play):
    made, calls = play(
        """
        step(attempt)
        (folder / "checkpoints" / "step_00000001").mkdir(parents=True, exist_ok=True)
        if attempt: summary('finished')
        """,
        words=["--fault.chaos", "kill rank 1 at step 3"],
    )
    assert made.run() == 0
    first, second = (call["words"] for call in calls())
    assert "--checkpoint.resume" not in first
    assert second[-4:] == ["--fault.chaos", "", "--checkpoint.resume", "auto"]
    assert run_dir(calls()[0]) == run_dir(calls()[1])


def test_a_named_checkpoint_is_taken_again_until_there_is_a_newer_one(play, tmp_path):
    (tmp_path / "other").mkdir()
    words = ["--checkpoint.resume", str(tmp_path / "other")]
    made, calls = play("step(attempt)\nif attempt: summary('finished')", words=words)
    assert made.run() == 0
    assert "auto" not in calls()[1]["words"]


def test_a_run_without_a_folder_of_its_own_keeps_the_one_it_got(play, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/job").mkdir(parents=True)
    Path("runs/job/config.toml").touch()
    made, _ = play("")
    made = Supervisor(from_words(["--run.name", "job"]).job, [], 1, made.hosts)
    assert made.folder == tmp_path / "runs" / "job-2"


def test_a_job_without_progress_is_killed_and_restarted(play, capfd):
    made, _ = play(
        """
        step(attempt)
        if attempt:
            summary("finished")
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            time.sleep(1000)
        """,
        deadline_s=0.5,
    )
    assert made.run() == 0
    assert members(f"{made.name}-0") == []
    assert "made no progress" in capfd.readouterr().err


def test_what_dead_jobs_have_left_goes_before_the_first_start(play, tmp_path, monkeypatch):
    """mpirun fails where a dead one with the same process number has left its session folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f"ompi.{gone.pid}").mkdir()
    made, _ = play("summary('finished')")
    assert made.run() == 0
    assert not (tmp_path / f"ompi.{gone.pid}").exists()


def test_orphans_of_a_launch_are_gone_before_the_next(play):
    made, _ = play(
        """
        step(attempt)
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        if attempt: summary("finished")
        else: os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert made.run() == 0
    assert [members(f"{made.name}-{attempt}") for attempt in (0, 1)] == [[], []]


def test_a_lost_host_is_left_out(play, capfd):
    from ddl.launcher.mpirun import Host

    made, calls = play(
        "step(attempt)\nif attempt: summary('finished')", hosts=[Host("alive", 2), Host("dead", 2)], restarts=1
    )
    assert made.run() == 0
    first, second = (call["words"] for call in calls())
    assert first[first.index("--host") + 1] == "alive:2,dead:2" and first[first.index("-n") + 1] == "4"
    assert second[second.index("--host") + 1] == "alive:2" and second[second.index("-n") + 1] == "2"
    assert "no answer from dead: continuing without" in capfd.readouterr().err


def test_too_few_hosts_for_the_job_end_it_until_there_are_more(play, capfd):
    from ddl.launcher.mpirun import Host

    hosts = [Host("alive", 2), Host("dead", 2)]
    made, calls = play("step(attempt)", hosts=hosts, words=["--fault.min_ranks", "3"], restarts=5)
    assert made.run() == 75
    assert len(calls()) == 1
    assert "2 ranks are too few to continue: [fault] min_ranks is 3" in capfd.readouterr().err


def test_ranks_on_other_hosts_know_their_launch_and_their_replica(play):
    from ddl.launcher.mpirun import Host

    made, calls = play(
        "summary('finished')", hosts=[Host("one", 2), Host("two", 2)], words=["--checkpoint.replica", "true"]
    )
    assert made.run() == 0
    words = calls()[0]["words"]
    exported = [words[place + 1] for place, word in enumerate(words) if word == "-x"]
    assert {"DDL_LAUNCH", "DDL_REPLICA"} <= set(exported)


def test_pictures_may_be_drawn_long_after_the_summary(play, monkeypatch, tmp_path):
    monkeypatch.setattr("ddl.launcher.supervisor.GRACE_S", 0.3)
    made, _ = play(
        """
        summary("finished")
        time.sleep(2)
        (folder / "drawn").touch()
        """,
        words=["--metrics.plots", "true"],
    )
    assert made.run() == 0 and (tmp_path / "run" / "drawn").exists()


def test_the_memory_checkpoint_is_removed_with_its_supervisor(play):
    made, calls = play(
        """
        pathlib.Path(os.environ["DDL_REPLICA"], "step_00000009").mkdir(parents=True)
        summary("finished")
        """,
        words=["--checkpoint.replica", "true"],
    )
    assert made.run() == 0
    assert calls()[0]["replica"].startswith("/dev/shm/ddl-replica-")
    assert not Path(calls()[0]["replica"]).exists()


def test_without_replicas_none_is_named(play):
    made, calls = play("summary('finished')")
    made.run()
    assert calls()[0]["replica"] is None


def test_noise_is_left_out_and_the_rest_passes(play, capfd):
    made, _ = play("print('loss 0.5\\0'); print('[warn] Epoll MOD(1) on fd 3'); summary('finished')")
    made.run()
    assert capfd.readouterr().out == "loss 0.5\n"


def started(tmp_path, code, *words):
    """The door itself, as a process, on a PATH where mpirun is the stub; returns when the stub runs."""
    stub = tmp_path / "mpirun"
    stub.write_text(STUB.format(python=sys.executable) + textwrap.dedent(code))
    stub.chmod(0o755)
    text = f"import ddl.launch; from ddl.launcher import mpirun as m; m.find_mpirun = lambda: {str(stub)!r};"
    text += "exit(ddl.launch.main())"
    door = subprocess.Popen([sys.executable, "-c", text, "--run.dir", str(tmp_path / "run"), *words])
    ready = tmp_path / "run" / "ready"
    deadline = time.monotonic() + DEADLINE_S
    while not ready.exists():
        assert time.monotonic() < deadline and door.poll() is None
        time.sleep(0.01)
    return door, json.loads((tmp_path / "run" / "calls.jsonl").read_text())["launch"]


WAITS = """
def stop(number, frame):
    summary("stopped")
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
subprocess.Popen(["sleep", "1000"], start_new_session=True)
step(1)
(folder / "ready").touch()
time.sleep(1000)
"""


def test_usr1_reaches_the_ranks_and_ends_with_75(tmp_path):
    door, launch = started(tmp_path, WAITS)
    door.send_signal(signal.SIGUSR1)
    assert door.wait(DEADLINE_S) == 75
    assert members(launch) == []


def test_usr1_waits_until_the_ranks_can_handle_it(tmp_path):
    """Until config.toml is written the ranks may have no handler, and USR1 would kill them."""
    code = """
    (folder / "ready").touch()
    time.sleep(2)
    def stop(number, frame):
        summary("stopped")
        sys.exit(75)
    signal.signal(signal.SIGUSR1, stop)
    (folder / "config.toml").touch()
    time.sleep(1000)
    """
    door, launch = started(tmp_path, textwrap.dedent(code))
    door.send_signal(signal.SIGUSR1)
    assert door.wait(DEADLINE_S) == 75
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    assert members(launch) == []


@pytest.mark.parametrize("ask", ["ask_to_stop", "end"])
@pytest.mark.parametrize("when", ["before the first", "between two", "while one is made"])
def test_a_signal_that_meets_no_mpirun_is_not_lost(play, monkeypatch, capfd, ask, when):
    """A second launch would train to the end."""
    code = "time.sleep(1000)" if when == "while one is made" else "step(attempt)\nif attempt: summary('finished')"
    made, calls = play(code)
    number = signal.SIGUSR1 if ask == "ask_to_stop" else signal.SIGTERM
    if when == "before the first":
        getattr(made, ask)(number)
    else:
        name = "_choose_hosts" if when == "between two" else "_command"
        before = getattr(made, name)
        monkeypatch.setattr(made, name, lambda argument: (getattr(made, ask)(number), before(argument))[1])
    assert made.run() == 75
    assert f"ended by {number.name}" in capfd.readouterr().err
    if when == "between two":
        assert len(calls()) == 1


def test_a_signal_ends_the_question_whether_a_host_answers(play, monkeypatch):
    from ddl.launcher.mpirun import Host

    made, _ = play("", hosts=[Host("one", 2), Host("other", 2)])
    Path(made.hosts.mpirun).write_text("#!/bin/sh\nexec sleep 1000\n")
    threading.Timer(0.2, made.ask_to_stop, [signal.SIGUSR1]).start()
    made._choose_hosts("x")
    assert len(made.hosts.chosen) == 2


def test_the_third_launch_in_a_row_that_a_signal_ends_before_it_trains_fails(play, tmp_path, capfd):
    """Each of them leaves a summary, though no rank has written one."""

    def status(code):
        made, _ = play(code)
        command = made._command
        made._command = lambda attempt: (made.end(signal.SIGTERM), command(attempt))[1]
        return made.run(), json.loads((tmp_path / "run" / "summary.json").read_text())["status"]

    assert [status("time.sleep(1000)") for _ in range(2)] == [(75, "stopped")] * 2
    assert [status("time.sleep(1000)") for _ in range(2)] == [(1, "failed")] * 2
    assert "raise the job's time limit (sbatch --time)" in capfd.readouterr().err


def test_a_supervisor_whose_folder_another_launch_has_taken_ends_and_starts_nothing(play, capfd):
    made, calls = play("step(5); (folder / 'owner.json').write_text(json.dumps({'launch': 'newer-0'})); sys.exit(75)")
    assert made.run() == 75
    assert len(calls()) == 1
    assert capfd.readouterr().err == "ddl.launch: launch newer-0 has taken over the run folder, so this one ends\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_and_ctrl_c_let_the_ranks_save_their_state_and_leave_no_process(tmp_path, number):
    door, launch = started(tmp_path, WAITS)
    door.send_signal(number)
    assert door.wait(DEADLINE_S) == 75
    assert members(launch) == []
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"


def test_a_second_signal_ends_at_once_a_job_that_does_not_end(play):
    made, _ = play("(folder / 'config.toml').touch(); time.sleep(1000)")

    def twice():
        while not made._is_under_way:
            time.sleep(0.01)
        made.end(signal.SIGTERM)
        assert not made.must_end
        made.end(signal.SIGTERM)

    thread = threading.Thread(target=twice)
    thread.start()
    assert made.run() == 75
    thread.join()
    assert made.must_end


def test_mpirun_does_not_outlive_a_killed_supervisor(tmp_path):
    door, launch = started(tmp_path, WAITS.replace('subprocess.Popen(["sleep", "1000"], start_new_session=True)\n', ""))
    door.kill()
    door.wait()
    deadline = time.monotonic() + DEADLINE_S
    while members(launch):
        assert time.monotonic() < deadline
        time.sleep(0.01)
