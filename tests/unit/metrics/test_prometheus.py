"""The node exporter's file: Prometheus' text format, replaced atomically, with the newest values."""

from __future__ import annotations

import math
import re

import pytest

from ddl.metrics import EpochDone, Finished, RankFailed, Recovered, StepDone
from ddl.metrics.prometheus import Prometheus

SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)+)\} (\S+)')


def step(number: int, loss: float = 0.5) -> StepDone:
    return StepDone(number, 1, loss, 0.1, samples=64, seconds=0.5, metrics={"accuracy": 0.75})


def read(path) -> dict[tuple[str, str], float]:
    """(name, labels other than run) -> value; every line is a comment of the format or a sample."""
    found, typed = {}, set()
    for line in path.read_text().splitlines():
        if line.startswith("# TYPE"):
            typed.add(line.split()[2])
        if line.startswith("#"):
            continue
        name, labels, value = SAMPLE.fullmatch(line).groups()
        assert name in typed and 'run="my \\"run\\""' in labels
        found[name, labels.partition(",")[2]] = float(value)
    return found


@pytest.fixture
def sink(tmp_path):
    now = [0.0]
    made = Prometheus(tmp_path / "ddl.prom", 'my "run"', ranks=4, clock=lambda: now[0])
    made.now = now
    return made


def test_the_file_has_the_newest_values(sink):
    for event in (
        *(step(7), EpochDone(1, 7, {"loss": 1.5}, {"loss": 1.25, "confusion": [[1]]})),
        *(RankFailed(7, 2, "here", "crash"), Recovered(7, 1, [0, 1, 3], 0.125)),
        Finished("finished", {"test": {"accuracy": 0.875, "samples": 9}}),
    ):
        sink.write(event)
    found = read(sink.path)
    assert found["ddl_step", ""] == 7 and found["ddl_samples_per_second", ""] == 128
    assert found["ddl_step_metric", 'metric="accuracy"'] == 0.75
    assert found["ddl_validation_metric", 'metric="loss"'] == 1.25
    assert (found["ddl_ranks", ""], found["ddl_rank_failures_total", ""]) == (3, 1)
    assert found["ddl_recovery_seconds", ""] == 0.125 and found["ddl_test_metric", 'metric="accuracy"'] == 0.875
    statuses = {labels: value for (name, labels), value in found.items() if name == "ddl_status"}
    assert [labels for labels, value in statuses.items() if value] == ['status="finished"']


def test_steps_rewrite_the_file_only_every_few_seconds(sink):
    sink.write(step(1))
    sink.write(step(2))
    assert read(sink.path)["ddl_step", ""] == 1
    sink.now[0] += 6
    sink.write(step(3, math.nan))
    found = read(sink.path)
    assert found["ddl_step", ""] == 3 and math.isnan(found["ddl_step_metric", 'metric="loss"'])


def test_other_users_can_read_it_and_nothing_else_is_left(sink):
    sink.write(step(1))
    assert [path.name for path in sink.path.parent.iterdir()] == ["ddl.prom"]
    assert sink.path.stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_written_raises_oserror_and_the_hub_drops_the_sink(tmp_path):
    sink = Prometheus(tmp_path / "gone" / "ddl.prom", "run")
    with pytest.raises(OSError, match="gone"):
        sink.write(step(1))
