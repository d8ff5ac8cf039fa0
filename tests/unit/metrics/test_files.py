"""Files that a run leaves: metrics.jsonl, summary.json, the timeline; and the hub that feeds them."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest

from ddl.metrics import (
    EpochDone,
    Failure,
    Hub,
    JsonLines,
    Samples,
    StepDone,
    Summary,
    Trace,
    Warned,
    merge,
    read_lines,
    versions,
    write_summary,
)

STEP = StepDone(step=7, epoch=1, loss=0.31, lr=0.1, samples=256, seconds=0.08, metrics={"accuracy": 0.5, "step": -1})


def test_a_steps_line_has_the_names_that_scripts_read(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl", clock=lambda: 1234.5)
    sink.write(STEP)
    (line,) = read_lines(tmp_path / "metrics.jsonl")  # readable before the file is closed
    sink.close()
    wanted = {"event": "step", "time": 1234.5, "step": 7, "epoch": 1, "loss": 0.31, "lr": 0.1, "samples": 256}
    assert {name: line[name] for name in wanted} == wanted
    assert line["seconds"] == 0.08 and line["accuracy"] == 0.5


def test_values_unknown_to_json_are_written_as_text(tmp_path):
    with Hub([JsonLines(tmp_path / "m")]) as hub:
        hub.emit(EpochDone(1, 7, {"loss": math.nan, "confusion": np.eye(2)}, {"loss": np.float32(0.5)}))
    (line,) = read_lines(tmp_path / "m")
    assert line["train"] == {"loss": None, "confusion": [[1.0, 0.0], [0.0, 1.0]]}
    assert line["validation"] == {"loss": 0.5}


def test_a_line_torn_by_a_kill_spoils_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event":"step","step":1}\n{"event":"st')
    sink = JsonLines(path)
    sink.write(Warned("next"))
    sink.close()
    assert [line["event"] for line in read_lines(path)] == ["step", "warning"]


def test_a_sink_whose_disk_is_full_is_dropped_and_the_others_continue(tmp_path):
    class Full:
        def write(self, event):
            raise OSError(28, "No space left on device")

        def close(self):
            closed.append(self)

    said, closed = [], []
    with Hub([Full(), JsonLines(tmp_path / "m")], said.append) as hub:
        hub.emit(STEP)
        hub.emit(STEP)
    assert len(read_lines(tmp_path / "m")) == 2
    assert said == ["Full writes no more: [Errno 28] No space left on device"] and len(closed) == 1


def test_two_sinks_that_fail_at_once_are_both_dropped():
    """What is said of the first comes back as an event, at which the second fails; then it is its turn."""

    class Broken:
        def write(self, event):
            raise OSError(5, "Input/output error")

        def close(self):
            raise OSError(5, "Input/output error")

    said = []

    def say(message):
        said.append(message)
        hub.emit(Warned(message))

    hub = Hub([Broken(), Broken(), Broken()], say)
    hub.emit(STEP)
    assert len(said) == 3 and not hub.sinks
    hub.sinks = [Broken(), Broken()]
    hub.close()
    assert "could not be closed" in said[3] and len(said) == 5 and not hub.sinks


def test_no_sink_is_closed_while_another_thread_writes_to_it():
    """The checkpoint writer warns from its own thread, whatever the training does meanwhile."""
    order, closing = [], []

    class Slow:
        def write(self, event):
            closing.append(threading.Thread(target=hub.close))
            closing[0].start()
            closing[0].join(0.05)
            order.append("written")

        def close(self):
            order.append("closed")

    hub = Hub([Slow()])
    hub.emit(STEP)
    closing[0].join()
    hub.emit(STEP)
    assert order == ["written", "closed"]


def test_a_summary_has_the_names_that_scripts_read(tmp_path):
    summary = Summary(
        status="finished",
        launch="a1",
        steps=40,
        epochs=2.0,
        global_batch=64,
        shards=24,
        ranks_started=4,
        ranks_finished=3,
        test={"loss": 0.1, "accuracy": 0.98},
        samples=Samples(expected=80, used=80),
        failures=[Failure(7, 2, "here", "crash", 0.01, 0.05)],
        versions=versions("Open MPI"),
    )
    path = write_summary(tmp_path, summary)
    found = json.loads(path.read_text())
    names = (
        "status launch steps epochs global_batch shards ranks_started ranks_finished train validation test samples "
        "failures parameters_sha256 samples_per_s wall_s versions"
    )
    assert set(names.split()) <= set(found)
    assert found["samples"] == {"expected": 80, "used": 80, "missing": 0, "repeated": 0, "skipped": 0}
    lost = {"step": 7, "rank": 2, "host": "here", "kind": "crash", "detect_s": 0.01, "recover_s": 0.05}
    assert found["failures"] == [{**lost, "phase": "", "note": ""}]
    assert {"ddl", "python", "numpy", "mpi"} <= set(found["versions"])
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written is left beside it


def test_a_summary_replaces_an_earlier_one(tmp_path):
    (tmp_path / "summary.json").write_text("old")
    write_summary(tmp_path, Summary("stopped", "b", 1, 0.1, 2, 1, 1, 1))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "stopped"


def test_the_ranks_timelines_become_one_file(tmp_path):
    path = tmp_path / "trace.json"
    times = iter([1.0, 1.5, 2.0, 2.25])
    for rank in (0, 1):
        trace = Trace(path, rank, host="here", clock=lambda: next(times))
        with trace.span("forward"):
            pass
        trace.close()
    assert merge(path) == 2
    records = json.loads(path.read_text())["traceEvents"]
    spans = [(r["pid"], r["name"], r["ts"], r["dur"]) for r in records if r["ph"] == "X"]
    assert spans == [(0, "forward", 1e6, 0.5e6), (1, "forward", 2e6, 0.25e6)]
    assert {r["args"]["name"] for r in records if r["ph"] == "M"} == {"rank 0 on here", "rank 1 on here"}
    assert list(tmp_path.iterdir()) == [path]


def test_spans_of_a_killed_rank_are_kept_up_to_its_last_flush(tmp_path):
    path = tmp_path / "trace.json"
    trace = Trace(path, 3)
    trace.mark("begin")
    trace.flush()
    with open(trace.path, "ab") as torn:
        torn.write(b'{"name":"forw')
    assert merge(path) == 1
    assert [r["name"] for r in json.loads(path.read_text())["traceEvents"]] == ["process_name", "begin"]
    trace.close()


def test_a_summary_that_a_full_disk_does_not_take_leaves_no_file(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_summary(tmp_path / "run", Summary("stopped", "b", 1, 0.1, 2, 1, 1, 1))
    assert list((tmp_path / "run").iterdir()) == []
