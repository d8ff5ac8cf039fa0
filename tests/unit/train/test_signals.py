"""Signals ask the job to stop, in the process that installed the handlers and in no other."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from ddl.train.signals import Due, Signals, StepRequest


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_next_step_to_stop(number):
    request = StepRequest()
    with Signals(request):
        os.kill(os.getpid(), number)
        assert request.stop


def test_a_copy_in_memory_is_due_more_often_than_a_checkpoint_but_not_if_copying_takes_long(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    request = StepRequest(checkpoint_every_s=60, in_memory=True, copy_every_s=1, last_checkpoint=50, last_copy=98)
    assert request.checkpoint_due(is_leader=True) is Due.COPY
    assert request.checkpoint_due(is_leader=False) is Due.NO
    request.copy_s = 0.03  # of which a hundred times as much must pass in between
    assert request.checkpoint_due(is_leader=True) is Due.NO
    request.last_copy = 96
    assert request.checkpoint_due(is_leader=True) is Due.COPY
    request.last_checkpoint = 30
    assert request.checkpoint_due(is_leader=True) is Due.DISK
    assert StepRequest(in_memory=True, last_copy=0, last_checkpoint=0).checkpoint_due(is_leader=True) is Due.NO
    assert StepRequest(copy_every_s=1, last_copy=0).checkpoint_due(is_leader=True) is Due.NO


def test_a_forked_child_can_be_terminated():
    """It inherits the handlers, which would only set a flag that the parent reads, and never end the child."""
    with Signals(StepRequest()):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM


SIGNALLED_CHILD = """
import os, signal
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))  # runs before the hooks of ddl
import ddl.early_signals, ddl.train.signals
ddl.early_signals.install()
child = os.fork()
if not child:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_that_is_forked_while_data_are_opened_is_ended_by_a_signal_at_its_birth():
    script = [sys.executable, "-c", SIGNALLED_CHILD]
    printed = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True)
    assert int(printed.stdout) == -signal.SIGTERM


def test_the_parent_keeps_its_handlers_after_a_fork():
    request = StepRequest()
    with Signals(request):
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.stop
