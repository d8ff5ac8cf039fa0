"""A fault of a script ends or stops its process as it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("act", "status"),
    [
        *(("kill", -signal.SIGKILL), ("segv", -signal.SIGSEGV), ("abort", -signal.SIGABRT)),
        *(("exit", 0), ("quit", 0), ("raise", 1)),
    ],
)
def test_each_act_ends_a_process_as_its_name_says(act, status):
    script = f"parse('{act} rank 0 at point step.load')"
    code = f"from ddl.fault.inject import *; {script}.probe(0)('step.load'); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status
    assert "lives" not in done.stdout
    assert ("InjectedError" in done.stderr) == (act == "raise")


def test_a_fault_is_recorded_even_when_it_kills_the_rank(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ddl.fault.inject import *\n"
        "act = recorded_in(Path(sys.argv[1]) / 'notes')\n"
        "script = parse('raise rank 0 at point step.load; raise rank 0 at step 5; kill rank 0 at point step.sum:2')\n"
        "probe = script.probe(0, act=act)\n"
        "try: probe('step.load')\n"
        "except InjectedError: pass\n"
        "while True: probe('step.sum')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    recorded = (tmp_path / "notes" / "faults").read_text().splitlines()
    assert recorded == ["raise rank 0 at point step.load:1", "kill rank 0 at point step.sum:2"]


@pytest.mark.parametrize("act", ["kill", "segv", "abort", "exit"])
def test_a_fault_ends_the_process_from_any_thread(act):
    code = (
        "import threading, time; from ddl.fault.inject import *\n"
        f"probe = parse('{act} rank 0 at point checkpoint.write').probe(0)\n"
        "threading.Thread(target=probe, args=['checkpoint.write']).start()\n"
        "time.sleep(60); print('lives')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    wanted = {"kill": -signal.SIGKILL, "segv": -signal.SIGSEGV, "abort": -signal.SIGABRT, "exit": 0}[act]
    assert done.returncode == wanted and "lives" not in done.stdout, done.stderr


def test_stop_stops_and_can_be_continued():
    code = "from ddl.fault.inject import *; parse('stop rank 0 at point step.load').probe(0)('step.load')"
    child = subprocess.Popen([sys.executable, "-c", code])
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    child.send_signal(signal.SIGCONT)
    assert child.wait(30) == 0
