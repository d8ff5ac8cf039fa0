"""The line about ranks that wait for each other in a script without fault tolerance."""

from __future__ import annotations

import threading

from ddl.comm.threads import run_ranks
from ddl.fault.call_watch import SLOT_BYTES, CallWatch


def test_the_line_says_in_which_call_each_rank_waits_or_what_it_did_before():
    meeting = threading.Barrier(4)

    def script(group):
        watch = CallWatch(group, timeout_s=1000)
        if group.rank < 3:
            with watch.waiting("allreduce(mean)"):
                pass
        if group.rank < 2:
            with watch.waiting("broadcast(from 0)" + "." * SLOT_BYTES):
                meeting.wait(10)
                meeting.wait(10)
        else:
            meeting.wait(10)
            line = watch.line(7.4)
            meeting.wait(10)
            return line

    _, _, line, same = run_ranks(4, script)
    assert line == same
    assert line.startswith(
        "the ranks have waited 7 s for each other: ranks 0 and 1 wait in call 2, broadcast(from 0)..."
    )
    assert "; rank 2 is in its own code after call 1, allreduce(mean)" in line
    assert line.endswith("; rank 3 is in its own code after the start")
