"""The console: progress in place or as lines, the banner, failures, the end, and streams that fail."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from ddl.metrics import (
    Console,
    EpochDone,
    Finished,
    FirstStep,
    JobStarted,
    Noted,
    RankFailed,
    Recovered,
    StepDone,
    Warned,
)
from ddl.metrics.console import duration, figures, is_live

JOB = JobStarted(
    name="digits",
    folder="runs/digits",
    launch="x",
    ranks=4,
    spares=1,
    hosts={"here": 4},
    device="cpu",
    model="cnn",
    parameters=12345,
    samples=1258,
    shards=24,
    global_batch=64,
    steps=40,
    steps_per_epoch=20,
    versions={"ddl": "0.1.0"},
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def step(number: int, **more) -> StepDone:
    return StepDone(
        step=number,
        epoch=(number - 1) // 20 + 1,
        loss=0.5,
        lr=0.1,
        samples=64,
        seconds=0.1,
        metrics={"accuracy": 0.9},
        **more,
    )


def run(console: Console, clock: Clock, steps: int, seconds: float) -> None:
    for number in range(1, steps + 1):
        clock.now += seconds
        console.write(step(number))


def test_progress_says_epoch_step_loss_accuracy_rate_and_time_left(clock):
    out = io.StringIO()
    console = Console(every_s=1.0, out=out, live=True, clock=clock)
    console.write(JOB)
    run(console, clock, 10, 0.5)
    last = out.getvalue().split("\r")[-1].split("  ")
    # 9 steps of 64 samples since the first, in 4.5 s; 30 steps to go at half a second each
    assert last[:3] == ["epoch 1/2", "step 10/40", "loss 0.5, accuracy 90.00 %"]
    assert last[3:] == ["128 samples/s", "15.0 s left"]


@pytest.mark.parametrize(
    ("columns", "metrics"),
    [
        (0, "loss 0.5, accuracy 90.00 %, perplexity 1.649"),
        (94, "loss 0.5, accuracy 90.00 %, perplexity 1.649"),
        (80, "loss 0.5, accuracy 90.00 %"),
        (20, "loss 0.5"),
    ],
)
def test_progress_fits_the_terminal(columns, metrics, clock):
    out = io.StringIO()
    console = Console(every_s=1.0, out=out, live=True, columns=columns, clock=clock)
    console.write(JOB)
    for number in (1, 5):
        clock.now += 2.0
        console.write(replace(step(number), metrics={"accuracy": 0.9, "perplexity": 1.6487}))
    last = out.getvalue().split("\r")[-1]
    assert last == f"epoch 1/2  step 5/40  {metrics}  32 samples/s  17.5 s left"


def test_a_leader_that_takes_over_knows_the_progress(clock):
    out = io.StringIO()
    console = Console(every_s=1.0, out=out, live=True, clock=clock, steps=40, steps_per_epoch=20)
    run(console, clock, 10, 0.5)
    assert out.getvalue().split("\r")[-1].split("  ")[:2] == ["epoch 1/2", "step 10/40"]


def test_in_place_a_shorter_line_leaves_nothing_of_a_longer_one(clock):
    out = io.StringIO()
    console = Console(every_s=1.0, out=out, live=True, clock=clock)
    console.write(JOB)
    run(console, clock, 4, 1.0)
    console.write(Warned("look"))
    console.close()
    assert "\n" not in out.getvalue().split("\r", 1)[1].split("warning")[0]
    assert out.getvalue().endswith("\rwarning: look\n")


def test_elsewhere_lines_are_plain_and_rare(clock):
    out = io.StringIO()
    console = Console(every_s=1.0, out=out, live=False, clock=clock)
    console.write(JOB)
    run(console, clock, 40, 1.0)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("epoch")]
    shown = [int(line.split("step ")[1].split("/")[0]) for line in lines]
    assert shown[:3] == [1, 3, 6] and len(shown) < 10 and "\r" not in out.getvalue()
    gaps = [b - a for a, b in pairwise(shown)]
    assert gaps == sorted(gaps)


def test_no_progress_lines_when_none_are_wanted(clock):
    out = io.StringIO()
    console = Console(every_s=0, out=out, live=True, clock=clock)
    run(console, clock, 40, 1.0)
    console.write(EpochDone(1, 20, {"loss": 1.0}, {"loss": 1.0}))
    assert out.getvalue() == ""


def test_the_banner_describes_the_job_and_where_it_runs(clock):
    out = io.StringIO()
    Console(out=out, live=False, clock=clock).write(JOB)
    for part in ("digits: cnn, 12,345 parameters, on cpu", "4 ranks and 1 spare (here: 4)", "24 shards", "40 steps"):
        assert part in out.getvalue()


def test_a_failure_and_its_recovery_are_a_line_each_on_a_terminal(clock):
    out = io.StringIO()
    console = Console(out=out, live=True, clock=clock)
    console.write(RankFailed(step=7, rank=2, host="here", how="crash"))
    phases = {"detect": 0.06, "shrink": 0.04}  # the time to detect is none of the recovery's
    console.write(Recovered(7, 1, [0, 1, 3], 0.0421, phases, {0: [4, 5, 6], 3: [8]}))
    console.write(FirstStep(8, 1, 0.0123))
    console.write(RankFailed(9, 1, "here", "hang", phase="compute", note="run/notes/a/rank-1.json"))
    first, second, third, fourth = out.getvalue().splitlines()
    assert first == "lost rank 2 on here at step 7 (crash)"
    assert third == "first step after the recovery: 12 ms"
    assert fourth == "lost rank 1 on here at step 9 (hang in compute); see run/notes/a/rank-1.json"
    assert second == (
        "detected after 60 ms, recovered in 42 ms (shrink 40): 3 ranks continue after step 7; shards 4-6 to rank 0; "
        "shard 8 to rank 3"
    )


def test_the_end_sums_up(clock):
    out = io.StringIO()
    summary = {
        "steps": 40,
        "epochs": 2.0,
        "wall_s": 3725.0,
        "samples_per_s": 1234.5,
        "test": {"loss": 0.1, "accuracy": 0.975, "samples": 360},
        "failures": [{}],
        "ranks_finished": 3,
    }
    Console(out=out, live=False, clock=clock).write(Finished("finished", summary, "runs/digits"))
    assert out.getvalue().splitlines() == [
        "finished after 40 steps, 2 epochs, in 1:02:05 (1,234 samples/s)",
        "  test       loss 0.1, accuracy 97.50 %",
        "  1 rank lost, 3 finished",
        "  runs/digits",
    ]


def test_only_scalar_metrics_are_shown():
    metrics = {"loss": 0.25, "accuracy": 1.0, "confusion": [[1, 0], [0, 1]], "samples": 2}
    assert figures(metrics) == "loss 0.25, accuracy 100.00 %"
    assert figures({}) == ""


def test_shares_of_one_are_percents():
    shares = {"accuracy": 0.5, "top3": 1.0, "top10": 0.25, "precision": 0.125, "recall": 0.0, "f1": 0.75}
    assert figures(shares) == (
        "accuracy 50.00 %, top3 100.00 %, top10 25.00 %, precision 12.50 %, recall 0.00 %, f1 75.00 %"
    )
    assert figures({"loss": 0.5, "r2": 0.5, "stop5x": 2.0}) == "loss 0.5, r2 0.5, stop5x 2"


def test_a_count_of_one_is_singular(clock):
    out = io.StringIO()
    console = Console(out=out, live=False, clock=clock)
    console.write(replace(JOB, ranks=1, spares=0, shards=1, samples=1, steps=1, steps_per_epoch=1, parameters=1))
    console.write(Finished("finished", {"steps": 1, "epochs": 1.0}))
    text = out.getvalue()
    assert "1 rank (here: 4)\n1 sample in 1 shard, 64 per step; 1 step, 1 epoch\n" in text
    assert "1 parameter," in text and "finished after 1 step, 1 epoch, in" in text


def test_without_a_terminal_every_line_fits_80_columns(clock):
    out = io.StringIO()
    console = Console(out=out, live=False, clock=clock)
    hosts = {f"node{number:02}": 4 for number in range(40)}
    console.write(replace(JOB, hosts=hosts, tolerance="training survives " + "this and that, " * 10, folder="x" * 90))
    clock.now += 100
    metrics = {f"metric{number}": 0.5 for number in range(20)}
    console.write(step(1))
    clock.now += 100
    console.write(replace(step(2), metrics=metrics))
    clock.now += 100
    console.write(EpochDone(1, 2, {"loss": 0.056611, "accuracy": 0.9881}, {"loss": 0.08066, "accuracy": 0.97781}))
    console.write(Warned("this and that " * 20))
    console.write(RankFailed(9, 1, "here", "hang", phase="compute", note="run/notes/a-long-launch-name/rank-1.json"))
    console.write(Recovered(7, 1, [0, 1, 3], 0.0421, {"shrink": 0.04}, {rank: [rank] for rank in range(30)}))
    console.write(Finished("failed", {"error": "something went wrong " * 20}))
    told = out.getvalue()
    epoch = "epoch 1/2: train loss 0.05661, accuracy 98.81 %; validation loss 0.08066, accuracy 97.78 %"
    assert f"{epoch}\n" in told  # one line, which grep finds
    assert all(len(line) <= 80 for line in told.splitlines() if not line.startswith(("folder: ", "epoch 1/2: train")))
    assert "folder: " + "x" * 90 in out.getvalue()


class Failing(io.StringIO):
    """A stream that raises ``error`` from every write and flush."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("closed file")])
def test_a_stream_that_fails_never_raises(error, clock):
    console = Console(out=Failing(error), live=True, clock=clock)
    console.write(JOB)
    run(console, clock, 3, 1.0)
    console.close()


def test_characters_that_the_terminal_lacks_are_escaped(clock):
    raw = io.BytesIO()
    console = Console(out=io.TextIOWrapper(raw, encoding="latin-1"), live=False, clock=clock)
    console.write(replace(JOB, name="数字 é"))
    console.close()
    assert raw.getvalue().startswith(b"\\u6570\\u5b57 \xe9: cnn")


def test_a_closed_stdout_is_not_an_error(clock, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    console = Console(clock=clock)
    console.write(JOB)
    console.close()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (187, "3:07"), (3599.6, "1:00:00"), (3765, "1:02:45")]
)
def test_times_are_as_short_as_people_write_them(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("name", "target", "live"),
    [
        ("prterun", "/dev/pts/3", True),
        ("prterun", "/tmp/log", False),
        ("prterun", "pipe:[1]", False),
        ("bash", "/dev/pts/3", False),
    ],
)
def test_under_mpirun_its_stdout_decides_whether_the_console_is_live(name, target, live, tmp_path, monkeypatch):
    parent = tmp_path / str(os.getppid())
    (parent / "fd").mkdir(parents=True)
    (parent / "comm").write_text(f"{name}\n")
    (parent / "fd" / "1").symlink_to(target)

    class Out(io.StringIO):
        def __init__(self, terminal: bool):
            super().__init__()
            self.terminal = terminal

        def isatty(self) -> bool:
            return self.terminal

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Out(True))  # mpirun gives each rank its own terminal
    monkeypatch.setattr(sys, "stderr", Out(False))
    assert is_live(tmp_path) is live
    monkeypatch.setattr(sys, "stdout", Out(False))
    assert is_live(tmp_path) is False


def epochs_of(console: Console, clock: Clock, count: int) -> None:
    console.write(replace(JOB, steps=20 * count))
    for number in range(1, count + 1):
        clock.now += 0.001
        console.write(EpochDone(number, 20 * number, {"loss": 2.0}, {"loss": 1.5}, best=number == 3))


@pytest.mark.parametrize("live", [False, True])
def test_every_epoch_is_a_line_and_a_new_best_is_marked(live, clock):
    out = io.StringIO()
    epochs_of(Console(out=out, live=live, columns=80 * live, clock=clock), clock, 60)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("epoch ")]
    assert [int(line.split()[1].split("/")[0]) for line in lines] == list(range(1, 61))
    assert lines[3] == "epoch 4/60: train loss 2; validation loss 1.5"
    assert [number for number, line in enumerate(lines, 1) if line.endswith("(best so far)")] == [3]
    assert out.getvalue().count("(train: running mean while the epoch trains; validation: after it)\n") == 1


def test_of_very_many_epochs_only_some_are_lines(clock):
    out = io.StringIO()
    epochs_of(Console(out=out, live=False, clock=clock), clock, 5000)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("epoch ")]
    assert 2 < len(lines) < 20 and "epoch 1/" in lines[0] and "epoch 5000/" in lines[-1]


def test_a_note_is_shown_without_waiting_for_a_progress_line(clock):
    out = io.StringIO()
    Console(every_s=60, out=out, live=False, clock=clock).write(Noted("compiling kernels (once, about 20 s)"))
    assert out.getvalue() == "compiling kernels (once, about 20 s)\n"


def test_the_end_says_why_it_came_early_and_which_epoch_was_best(clock):
    out = io.StringIO()
    summary = {
        "steps": 100,
        "epochs": 5.0,
        "train": {"loss": 0.5},
        "validation": {"loss": 0.25},
        "best": {"step": 60, "epoch": 3.0, "loss": 0.25},
        "final": {"checkpoint": "best", "step": 60},
        "stopped_early": "no lower validation loss in 2 evaluations (train.patience)",
    }
    Console(out=out, live=False, clock=clock).write(Finished("finished", summary))
    assert out.getvalue().splitlines()[1:] == [
        "  stopped early: no lower validation loss in 2 evaluations (train.patience)",
        "  best       epoch 3, validation loss 0.25: its state is restored",
        "  train      loss 0.5 (running mean of the last epoch)",
        "  validation loss 0.25",
    ]
