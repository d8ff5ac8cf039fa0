"""A line for the user reaches the terminal although the launcher no longer passes on what its ranks print."""

import subprocess
import sys

RANK = "from ddl.output import print_past_launcher as p; p('saved in runs/x')"
LAUNCHER = f"""
import subprocess, sys
print("before", file=sys.stderr, flush=True)
subprocess.run([sys.executable, "-c", {RANK!r}], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


def test_a_line_goes_to_the_stderr_of_the_launcher_behind_what_is_there(tmp_path):
    for target in (tmp_path / "log", None):
        with open(target or tmp_path / "unused", "wb") as log:
            done = subprocess.run(
                [sys.executable, "-c", LAUNCHER], stderr=log if target else subprocess.PIPE, text=True
            )
        assert (target.read_text() if target else done.stderr) == "before\nsaved in runs/x\n"
