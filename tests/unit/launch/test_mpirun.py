"""mpirun's command line, and how its output is parsed."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest

from ddl.errors import ConfigError
from ddl.launcher.mpirun import (
    Filter,
    Host,
    command_line,
    find_mpirun,
    home,
    members,
    parse_hosts,
    ranks,
    read_hostfile,
)

RULE = "-" * 74 + "\n"


@pytest.fixture
def open_mpi(tmp_path):
    (tmp_path / "prterun").touch()
    return str(tmp_path / "mpirun")


def after(words, flag):
    return words[words.index(flag) + 1]


def test_the_command_has_every_option_needed_to_survive(open_mpi):
    words = command_line(open_mpi, ["python", "x.py"], 4, environ={})
    assert after(words, "--with-ft") == "ulfm"
    assert after(words, "coll") == "^han,adapt"
    assert after(words, "state_base_recoverable") == "1"
    assert words[-2:] == ["python", "x.py"] and after(words, "-n") == "4"
    assert ("--allow-run-as-root" in words) == (os.geteuid() == 0)
    assert "plm_slurm_args" not in words


def test_without_tolerance_a_death_ends_the_job(open_mpi):
    assert "--with-ft" not in command_line(open_mpi, ["x"], 4, tolerant=False, environ={})


def test_inside_slurm_a_second_step_may_start_beside_a_dead_one(open_mpi):
    assert (
        after(command_line(open_mpi, ["x"], 4, environ={"SLURM_JOB_ID": "1"}), "plm_slurm_args") == "--overlap --mem=0"
    )


def test_only_variables_that_are_set_are_exported(open_mpi):
    words = command_line(open_mpi, ["x"], 4, exported=["A", "B"], environ={"A": "1"})
    assert after(words, "-x") == "A" and words.count("-x") == 1


def test_a_silent_host_is_noticed_when_there_are_several(open_mpi):
    assert "oob_tcp_keepalive_time" in command_line(open_mpi, ["x"], 4, [Host("a", 2), Host("b", 2)], environ={})
    assert "oob_tcp_keepalive_time" not in command_line(open_mpi, ["x"], 4, [Host("a", 2)], environ={})


def test_another_mpi_gets_no_flag_it_does_not_know(tmp_path):
    assert command_line(str(tmp_path / "mpirun"), ["x"], 4, environ={}) == [str(tmp_path / "mpirun"), "-n", "4", "x"]


def test_hosts_share_the_ranks_unless_slots_are_given():
    assert parse_hosts("a,b", 5) == [Host("a", 3), Host("b", 3)]
    assert parse_hosts("a:1, b:4", 5) == [Host("a", 1), Host("b", 4)]
    with pytest.raises(ConfigError):
        parse_hosts(" , ", 5)


def test_a_hostfile_is_read_as_mpirun_reads_it(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\na slots=2 # the fast one\n\nb slots=1\n")
    assert read_hostfile(path, 3) == [Host("a", 2), Host("b", 1)]
    path.write_text("# no host\n")
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(path, 3)


def shown(text, verbose=False):
    quiet = Filter(verbose)
    lines = [line for given in text.splitlines(keepends=True) for line in quiet.feed(given)]
    return "".join([*lines, *quiet.flush()])


def test_ordinary_lines_pass_as_they_are():
    text = "epoch 1  loss 0.5\nTraceback (most recent call last):\n  File x\n"
    assert shown(text) == text


def test_known_noise_is_silent_unless_asked_for():
    noise = "[warn] Epoll MOD(1) on fd 27 failed: Bad file descriptor\n[h:1] NBC_Progress: an error 75 was found\n"
    noise += "[h:3] pmix_ptl_base: send_msg: write failed: Broken pipe (32) [sd = 25]\n"
    assert shown(noise) == ""
    assert shown(noise, verbose=True) == noise


def test_a_known_block_becomes_one_line():
    block = RULE + "PRTE has lost communication with a remote daemon.\0\n\n  HNP daemon : [x]\n" + RULE
    assert shown(block) == "ddl.launch: mpirun lost a host, or its daemon there, and ends\n"


def test_the_obituary_of_a_survived_rank_is_silent():
    block = RULE + "prterun noticed that process rank 2 with PID 7 on node h exited on\nsignal 9 (Killed).\n" + RULE
    assert shown("a\n" + block + "b\n") == "a\nb\n"


def test_an_unknown_block_passes_whole():
    block = RULE + "There are not enough slots available in the system\n" + RULE
    assert shown(block) == block
    assert shown(RULE + "cut off here\n") == RULE + "cut off here\n"


def test_a_table_with_one_rule_is_not_held_back_for_ever():
    text = RULE + "row\n" * 100
    quiet = Filter()
    lines = [line for given in text.splitlines(keepends=True) for line in quiet.feed(given)]
    assert len(lines) == 101


def test_ranks_of_a_launch_are_distinguished_from_companions_and_other_launches():
    mark, started = f"unit-{os.getpid()}", []

    def start(*words, **variables):
        environ = {**os.environ, **variables}
        started.append(subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE, env=environ))
        return started[-1].pid

    try:
        of_rank = {rank: start("-m", "ddl.train", DDL_LAUNCH=mark, OMPI_COMM_WORLD_RANK=str(rank)) for rank in (0, 1)}
        start("ddl/fault/companion.py", DDL_LAUNCH=mark, OMPI_COMM_WORLD_RANK="1")
        launcher = start("mpirun", DDL_LAUNCH=mark)
        start(DDL_LAUNCH=f"{mark}-other", OMPI_COMM_WORLD_RANK="2")
        assert ranks(mark) == of_rank and launcher in members(mark)
    finally:
        for process in started:
            process.communicate(b"\n")


def test_mpirun_gets_a_home_for_a_user_without_one(monkeypatch):
    assert home({"HOME": "/home/me"}) == "/home/me"
    assert home({}) == home({"HOME": ""}) == pwd.getpwuid(os.getuid()).pw_dir
    monkeypatch.setattr("os.getuid", lambda: 3_999_999_999)
    assert home({}) == "/"


def test_the_sites_library_takes_the_sites_mpirun_and_is_refused_without_one(tmp_path):
    for folder in ("own/bin", "site/bin"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mpirun").write_text("#!/bin/sh\n")
        (tmp_path / folder / "mpirun").chmod(0o755)
    own, site = (str(tmp_path / name) for name in ("own", "site"))
    site_library = {"MPI4PY_LIBMPI": f"{site}/lib/libmpi.so"}
    assert find_mpirun({"PATH": f"{site}/bin"}, own) == f"{own}/bin/mpirun"
    assert find_mpirun({"PATH": f"{own}/bin:{site}/bin", **site_library}, own) == f"{site}/bin/mpirun"
    with pytest.raises(ConfigError, match="load the module of that MPI"):
        find_mpirun({"PATH": f"{own}/bin", **site_library}, own)
