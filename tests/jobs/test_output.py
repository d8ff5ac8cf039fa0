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


LATIN = {"PYTHONIOENCODING": "latin-1"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # the name's bytes reach Python as surrogates


@pytest.mark.parametrize(("variables", "shown"), [(LATIN, "\\u6570\\u5b57"), (ASCII, "\\udce6\\udc95\\udcb0")])
def test_a_terminal_without_utf_8_shows_escapes(variables, shown, tmp_path):
    done = shell(f"$PYTHON {JOB} --run.name=数字", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(shown)
    assert 'name = "数字"' in (tmp_path / "runs" / "数字" / "config.toml").read_text(encoding="utf-8")


def test_commands_whose_reader_has_gone_print_no_traceback(tmp_path):
    for words in ("-m ddl.train --help", "-m ddl.doctor --help", "-m ddl.audit --help"):
        assert shell(f"$PYTHON {words} | head -1", tmp_path).returncode in (0, 141)
