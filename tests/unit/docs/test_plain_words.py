"""The number of phrases that tests/plain_words.py lists never rises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PATHS = ("ddl", "launch", "slurm", "tests", "README.md", "CONTRIBUTING.md", "docs")
CEILING = 12  # never raise it; each of these places was looked at


def test_the_number_of_phrases_to_reread_does_not_rise():
    command = [sys.executable, "tests/plain_words.py", *PATHS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    count = int(listed[-1].split()[0])
    assert count <= CEILING, f"{count} places to reread, {CEILING} allowed; run: python tests/plain_words.py"
