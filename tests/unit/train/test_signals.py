"""Signals ask the job to stop, in the process that installed the handlers and in no other."""

import multiprocessing
import os
import signal
import time

import pytest

from ddl.train.signals import Signals, StepRequest


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_next_step_to_stop(number):
    request = StepRequest()
    with Signals(request):
        os.kill(os.getpid(), number)
        assert request.stop


def test_a_forked_child_can_be_terminated():
    """It inherits the handlers, which would only set a flag that the parent reads, and never end the child."""
    with Signals(StepRequest()):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM


def test_the_parent_keeps_its_handlers_after_a_fork():
    request = StepRequest()
    with Signals(request):
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.stop
