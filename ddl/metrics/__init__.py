"""Metrics: events that training emits, and the sinks that receive them: console, files, timeline.

Rooms below train never import this; they are passed a callable."""

from ddl.metrics.console import Console
from ddl.metrics.events import (
    CheckpointSaved,
    EpochDone,
    Event,
    Finished,
    FirstStep,
    JobStarted,
    Noted,
    RankFailed,
    Recovered,
    ShardsMoved,
    StepDone,
    Warned,
)
from ddl.metrics.hub import Hub, Sink
from ddl.metrics.jsonl import JsonLines, read_lines
from ddl.metrics.summary import (
    EARLY_STOPS,
    TOO_EARLY,
    Failure,
    Samples,
    Summary,
    early_stops,
    read_summary,
    versions,
    write_summary,
)
from ddl.metrics.trace import Trace, merge

__all__ = [
    "EARLY_STOPS",
    "TOO_EARLY",
    "CheckpointSaved",
    "Console",
    "EpochDone",
    "Event",
    "Failure",
    "Finished",
    "FirstStep",
    "Hub",
    "JobStarted",
    "JsonLines",
    "Noted",
    "RankFailed",
    "Recovered",
    "Samples",
    "ShardsMoved",
    "Sink",
    "StepDone",
    "Summary",
    "Trace",
    "Warned",
    "early_stops",
    "merge",
    "read_lines",
    "read_summary",
    "versions",
    "write_summary",
]
