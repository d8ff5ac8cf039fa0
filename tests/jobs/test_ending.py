"""A rank that ends without its peers' knowledge ends by a signal, however it ends."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from ddl.comm import ending
ending.report_every_exit(lambda: print("last words"))
{how}
"""


def end(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(how=how)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "how", ["os._exit(3)", "os._exit(0)", "sys.exit(2)", "raise ValueError", "pass", "ending.die()"]
)
def test_an_end_that_peers_do_not_know_of_is_a_death(how):
    status, said = end(how)
    assert status == -9 and said == ("" if "die" in how else "last words\n")


def test_an_agreed_end_has_its_status():
    assert end("print('bye'); ending.leave(75)") == (75, "bye\n")


def test_a_forked_child_ends_with_its_own_status():
    child = "pid = os.fork()\nif pid == 0: os._exit(5)\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    assert end(child) == (-9, "5\nlast words\n")
