"""The supervisor's decisions, its command line and its requirements; tests/jobs and tests/fault run it on real jobs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ddl.launch import from_words, main
from ddl.launcher.replica import MemoryFolder, remove_stale_replicas
from ddl.launcher.supervisor import Ended, decide, last_step


def test_the_folder_of_a_memory_checkpoint_is_private_and_cannot_be_guessed(tmp_path):
    one, two = MemoryFolder(tmp_path), MemoryFolder(tmp_path)
    for made in (one, two):
        assert made.path.stat().st_mode & 0o777 == 0o700
    parts = {made.path.name.rpartition("-")[2] for made in (one, two)}
    assert len(parts) == 2 and all(len(part) == 32 for part in parts)  # 128 random bits
    one.remove()
    assert [path.name for path in tmp_path.iterdir()] == [two.path.name]


def test_only_folders_that_no_living_supervisor_has_locked_are_removed(tmp_path):
    code = "import sys, pathlib; from ddl.launcher.replica import MemoryFolder; MemoryFolder(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    (stale,) = tmp_path.iterdir()
    held = MemoryFolder(tmp_path)
    os.utime(held.path, (0, 0))  # age alone removes nothing
    prefix = held.path.name.removesuffix(held.path.name.rpartition("-")[2])
    kept = {held.path.name, "ddl-replica-elsewhere-1", f"{prefix}link"}
    (tmp_path / "ddl-replica-elsewhere-1").mkdir()  # a supervisor on another host has locked it there
    (tmp_path / f"{prefix}link").symlink_to(tmp_path / "ddl-replica-elsewhere-1")
    if os.geteuid() == 0:
        (tmp_path / f"{prefix}other").mkdir()
        os.chown(tmp_path / f"{prefix}other", 12345, -1)
        kept.add(f"{prefix}other")
    remove_stale_replicas(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept and stale.name not in kept


def test_a_sweep_takes_the_replica_along_and_nothing_else(tmp_path, capfd):
    for name in ("ddl-replica-h-1", "precious"):
        (tmp_path / name).mkdir()
        assert main(["--sweep", "no-such-launch", str(tmp_path / name)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-n", "0"], "at least one rank"),
        (["--restarts", "-1"], "at least 0"),
        (["--host", "a", "--hostfile", "b"], "exclude each other"),
        (["--host", "a:x"], "not a number"),
        (["--hostfile", "/nowhere"], "cannot be read"),
        (["--optim.lrr", "1"], "no setting 'lrr'"),
        (["nosuch.toml"], "no job file"),
        (["-n", "4", "--data.shards", "2"], "shards"),
    ],
)
def test_invalid_arguments_print_one_line_and_exit_with_status_2(words, said, capfd):
    assert main(words) == 2
    printed = capfd.readouterr().err
    assert said in printed and printed.count("\n") == 1


def test_settings_keep_their_order_and_their_values():
    made = from_words(
        ["-n", "2", "--optim.lr", "0.5", "--optim.min_lr=0.1", "--restarts", "3", "--chaos", "kill rank 1 at step 2"]
    )
    assert made.words == ["--optim.lr", "0.5", "--optim.min_lr=0.1", "--fault.chaos", "kill rank 1 at step 2"]
    assert (made.ranks, made.restarts) == (2, 3)


def test_settings_are_checked_against_the_ranks_that_will_be_started():
    made = from_words(["-n", "4", "--fault.min_ranks", "2", "--fault.spares", "1"])
    assert (made.job.fault.min_ranks, made.job.fault.spares) == (2, 1)


# The decision itself.


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (Ended(0, {"status": "finished"}), 0),
        (Ended(-9, {"status": "finished"}, asked="SIGUSR1"), 0),
        (Ended(0, {"status": "stopped"}, asked="SIGUSR1"), 75),
        (Ended(1, restarts_left=3), 1),  # code that fails on every start
        (Ended(1, {"status": "stopped"}, restarts_left=3), None),  # ranks were lost before the first step
        (Ended(1, overdue_s=600.0, restarts_left=3), None),  # the job stood still, and mpirun was killed for it
        (Ended(-15, asked="SIGTERM"), 75),
        (Ended(0, {"status": "failed"}, restarts_left=9), 1),
        (Ended(2), 2),
        (Ended(2, step=4, progressed=True, restarts_left=9), None),
        (Ended(1, restarts_left=9), 1),
        (Ended(1, restarts_left=9, hosts=2), None),
        (Ended(0, restarts_left=9), None),
        (Ended(0, {"status": "stopped"}, step=4, restarts_left=9), None),
        (Ended(0, {"status": "stopped"}, step=4), 75),
        (Ended(0, step=4), 1),
        (Ended(0, step=4, failed_at=(4, 4), restarts_left=9), 1),
        (Ended(0, step=4, failed_at=(4, 4, 5), restarts_left=9), None),
        (Ended(0, step=5, failed_at=(4, 4), restarts_left=9, overdue_s=600.0), None),
    ],
)
def test_decision(ended, status):
    assert decide(ended).status == status


def test_the_last_step_is_found_behind_half_a_line(tmp_path):
    assert last_step(tmp_path) == -1
    (tmp_path / "ledger.jsonl").write_text('{"start": 0}\n{"step": 4, "launch": "a"}\n')
    assert last_step(tmp_path) == 5
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "step": 7}\n{"event": "epoch", "step": 9}\n{"eve')
    assert last_step(tmp_path) == 7


@pytest.mark.parametrize("step", ["1e999", "-1", '"7"', "NaN", "[" * 9999, "1" * 5000, "null"])
def test_a_step_that_cannot_be_is_passed_over(tmp_path, step):
    right, wrong = '{"event": "step", "step": 7}', f'{{"event": "step", "step": {step}}}'
    (tmp_path / "metrics.jsonl").write_text(f"{right}\n{wrong}\n")
    assert last_step(tmp_path) == 7


def test_both_sides_of_the_environment_use_the_same_names(monkeypatch):
    """The supervisor may not import the rooms that read what it sets."""
    from ddl.checkpoint.memory import FOLDER_VARIABLE
    from ddl.launcher.mpirun import LAUNCH_VARIABLE
    from ddl.launcher.supervisor import REPLICA_VARIABLE
    from ddl.run.folder import new_launch

    monkeypatch.setenv(LAUNCH_VARIABLE, "mine")
    assert new_launch() == "mine"
    assert REPLICA_VARIABLE == FOLDER_VARIABLE
