"""Real jobs whose output goes nowhere or to a terminal without UTF-8: they train, and print no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOB = "-m ddl.train --train.epochs=1 --model.name=mlp --train.compiled=off"


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    names = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **variables}
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + command],
        cwd=folder,
        env=names,
        capture_output=True,
        encoding="latin-1",
        timeout=100,
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("command", ["{} >&-", "{} 2>&-", "{} >&- 2>&-", "{} | head -1", "{} >/dev/full"])
def test_a_job_whose_output_is_lost_trains_to_the_end(command, tmp_path):
    done = shell(command.format(f"$PYTHON {JOB} --run.dir=run"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"status": "finished"' in (tmp_path / "run" / "summary.json").read_text()


def test_a_terminal_without_utf_8_shows_escapes(tmp_path):
    done = shell(f"$PYTHON {JOB} --run.name=数字", tmp_path, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\u6570\\u5b57: mlp")


def test_a_name_that_the_locale_cannot_encode_is_refused_in_one_line(tmp_path):
    (tmp_path / "job.toml").write_text('[run]\nname = "数字"\n', encoding="utf-8")
    for words in ("--run.name=数字", "job.toml"):
        done = shell(f"$PYTHON {JOB} {words}", tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "set PYTHONUTF8=1" in done.stderr


def test_commands_whose_reader_has_gone_print_no_traceback(tmp_path):
    for words in ("-m ddl.train --help", "-m ddl.doctor --help", "-m ddl.audit --help"):
        assert shell(f"$PYTHON {words} | head -1", tmp_path).returncode in (0, 141)
