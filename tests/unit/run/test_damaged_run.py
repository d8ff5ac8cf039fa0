"""Every file of a run folder damaged in every way, opened by every command: one line, or the next older checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from ddl import audit, evaluate, predict
from ddl.train.__main__ import main as train

QUIET = ("--metrics.console_every_s=0", "--fault.tolerance=off", "--data.prefetch=0", "--train.compiled=off")
SMALL = ("--model.name=mlp", "--model.options.hidden=[4]", "--data.validation=0", "--data.test=0.9")
STEPS = 3
NEWEST = "step_00000003"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that keeps the checkpoints of its three steps."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train([*QUIET, *SMALL, "--run.dir=run", f"--train.steps={STEPS}", "--checkpoint.every_steps=1"]) == 0
    return folder / "run"


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    """A copy of it in the current folder. Reading what never ends fails instead of hanging."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "run")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still reading after 20 s"))
    signal.alarm(20)
    yield tmp_path / "run"
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_the_three_newest_checkpoints_are_of_three_steps(whole):
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [
        f"step_{step:08d}" for step in range(1, STEPS + 1)
    ]


# Damage to any file: what replaces it.

ANYTHING = {
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "a number": lambda path: path.write_text("7\n"),
    "nested without end": lambda path: path.write_text("[" * 100_000 + "\n"),
    "a key twice": lambda path: path.write_text('{"step": 1, "step": 2}\n'),
}

# Damages of the newest checkpoint's state.json under a checksum that fits: (field, value); GONE leaves it out.

GONE = object()
WRONG_STATES = [
    *(("format", value) for value in (GONE, 2, "1", None)),
    *(("step", value) for value in (GONE, -1, 3.0, "3", True, 10**30)),
    *(("serial", value) for value in (GONE, -1, None)),
    *(("score", value) for value in (GONE, "best", float("nan"))),
    *(("files", value) for value in (GONE, [], {}, {"arrays.safetensors": 3})),
    *(("files.arrays.safetensors", value) for value in ({}, {"bytes": -1, "sha256": ""}, {"bytes": 1, "sha256": 2})),
    *(("meta", value) for value in (GONE, [], {})),
    *(("meta.progress", value) for value in (GONE, None, {}, {"step": 3, "else": 1}, {"step": -3})),
    *((f"meta.progress.{name}", -2) for name in ("step", "stage", "samples", "skipped", "stale", "evaluated_at")),
    *(("meta.progress.schedule_span", value) for value in (3, [1], [1, "a"], [-1, 2], [3, 3])),
    *(("meta.progress.results", value) for value in ([], {"train": 3})),
    *(("meta.progress.normalise", value) for value in ([], {}, {"mean": 1, "scale": 2}, {"mean": ["a"], "scale": [1]})),
    *(("meta.knowledge", value) for value in ([], {}, {"data": {}}, {"data": {"fields": 3}})),
    *(("meta.knowledge.data.fields.x", value) for value in (3, {}, {"shape": ["a"], "dtype": "<f4", "size": None})),
    ("meta.knowledge.data.fields.x.dtype", "nonsense"),
    ("meta.knowledge.data.fields.y.size", 2**31),
    ("meta.knowledge.data.target.labels", None),
    ("meta.shards", "many"),
]


def resign(path: Path, field: str, value: object) -> None:
    """Change a field of a state.json, which may be deep inside, and sign it again."""
    state = json.loads(path.read_text())
    del state["sha256"]
    *outer, last = field.replace("arrays.safetensors", "arrays~").split(".")
    table = state
    for name in outer:
        table = table[name]
    table.pop(last.replace("~", ".safetensors"), None)
    if value is not GONE:
        table[last.replace("~", ".safetensors")] = value
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**state, "sha256": digest}))


def opened(command: str, capfd) -> tuple[int, list[str]]:
    """(exit status, lines about the run folder that the user was shown) of a command on the run folder."""
    capfd.readouterr()
    resume = ["--run.dir=run", f"--train.steps={STEPS + 1}", "--optim.schedule=constant"]
    words = {
        "evaluate": ["run", "--split=train"],
        "predict": ["run", "--input=x.npy", "--output=y.npy"],
        "audit": ["run"],
        "resume": [*QUIET, *SMALL, *resume],
        "start from": [*QUIET, *SMALL, "--run.dir=other", "--train.steps=1", "--model.from=run"],
    }[command]
    if command == "predict":
        np.save("x.npy", np.zeros((3, 8, 8, 1), np.float32))
    status = {"evaluate": evaluate.main, "predict": predict.main, "audit": audit.main}.get(command, train)(words)
    lines = capfd.readouterr().err.splitlines()
    metrics = Path("other" if command == "start from" else "run", "metrics.jsonl")
    if command in ("resume", "start from") and metrics.is_file():
        texts = metrics.read_bytes().decode(errors="replace").splitlines()
        events = [json.loads(text) for text in texts if text.startswith('{"event":"warning"')]
        lines += [event["message"] for event in events]
    return status, lines


@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("predict", "state.json"),
        ("predict", "arrays.safetensors"),
        ("resume", "state.json"),
        ("start from", "arrays.safetensors"),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over_with_its_reason(run, capfd, what, file, command):
    ANYTHING[what](run / "checkpoints" / NEWEST / file)
    status, lines = opened(command, capfd)
    assert status == 0
    (line,) = lines
    assert f"{NEWEST} skipped: {file} " in line


@pytest.mark.parametrize(("field", "value"), WRONG_STATES)
def test_a_state_that_is_signed_and_wrong_is_passed_over(run, capfd, field, value):
    resign(run / "checkpoints" / NEWEST / "state.json", field, value)
    status, (line,) = opened("predict", capfd)
    assert status == 0 and f"{NEWEST} skipped" in line and "cannot be understood" in line


@pytest.mark.parametrize(("field", "value"), [("format", 2), ("meta.progress.step", -2), ("meta.knowledge", {})])
def test_training_resumes_from_the_previous_checkpoint(run, capfd, field, value):
    resign(run / "checkpoints" / NEWEST / "state.json", field, value)
    status, (line,) = opened("resume", capfd)
    assert status == 0 and f"{NEWEST} skipped" in line and "cannot be understood" in line
    starts = [json.loads(text) for text in (run / "ledger.jsonl").read_text().splitlines() if "start" in text]
    assert [start["start"] for start in starts] == [0, STEPS - 1]


def test_of_several_checkpoints_of_one_step_the_broken_one_is_named(run, capfd):
    folder = run / "checkpoints"
    shutil.copytree(folder / NEWEST, folder / f"{NEWEST}-2")
    os.truncate(folder / f"{NEWEST}-2" / "state.json", 10)
    status, (line,) = opened("predict", capfd)
    assert status == 0 and f"{NEWEST}-2 skipped" in line


@pytest.mark.parametrize("command", ["evaluate", "predict", "resume", "start from"])
def test_without_a_checkpoint_that_can_be_used_one_line_names_them_all(run, capfd, command):
    for path in (run / "checkpoints").iterdir():
        os.truncate(path / "arrays.safetensors", 9)
    status, lines = opened(command, capfd)
    assert status == 2
    assert all(f"step_0000000{step}" in lines[-1] for step in (1, 2, 3))


@pytest.mark.parametrize("length", [3, 2**31, 2**60])
def test_samples_of_another_size_are_one_line(run, capfd, length):
    resign(run / "checkpoints" / NEWEST / "state.json", "meta.knowledge.data.fields.x.shape", [length])
    status, (line,) = opened("evaluate", capfd)
    assert status == 2 and "dense1.weight was saved as of shape (64, 4), its model needs" in line


@pytest.mark.parametrize("what", ["a file", "a link to itself"])
@pytest.mark.parametrize("command", ["evaluate", "predict", "resume", "start from"])
def test_a_checkpoints_path_that_is_not_a_folder_is_one_line(run, capfd, what, command):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").touch()
    ANYTHING.get(what, lambda path: None)(run / "checkpoints")
    status, lines = opened(command, capfd)
    assert status == 2 and len(lines) == 1


@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_damaged_config_is_one_line(run, capfd, what, command):
    text = (run / "config.toml").read_text()
    ANYTHING[what](run / "config.toml")
    if what == "cut in half":  # before a value, because half of a number is a number
        (run / "config.toml").write_text(text[: text.rindex(" = ", 0, len(text) // 2) + 3])
    if what == "empty":  # a job of defaults, whose model the checkpoint does not fit
        assert opened(command, capfd)[0] == 2
        return
    status, lines = opened(command, capfd)
    assert status == 2 and len(lines) == 1 and "config.toml" in lines[0]


# The ledger: (number of the line, field, value).

WRONG_LEDGERS = [
    *((0, "start", value) for value in (-1, "0", None, 0.5, 10**30)),
    *((0, name, value) for name in ("samples", "shards", "global_batch") for value in (0, -3, "x", GONE, 1.5, 2**62)),
    *((0, "seed", value) for value in (-1, "x", GONE)),
    *((0, "shuffle", value) for value in (1, GONE)),
    *((1, "step", value) for value in (GONE, -1, 1.0, "1", float("nan"), True, 10**30)),
    *((1, "plan", value) for value in (GONE, 3, ["a"], [0.5], {"a": 1})),
    *((1, "launch", value) for value in (GONE, 3, [1])),
    *((1, "generation", value) for value in (GONE, -1, "x")),
    *((1, "skipped", value) for value in (GONE, 0)),
    *((1, "samples", value) for value in (GONE, -1, "x")),
]


@pytest.mark.parametrize(("number", "field", "value"), WRONG_LEDGERS)
def test_a_wrong_line_of_the_ledger_is_one_line(run, capfd, number, field, value):
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    lines[number].pop(field)
    if value is not GONE:
        lines[number][field] = value
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, said = opened("audit", capfd)
    if (field, value) == ("global_batch", 2**62):
        assert status == 1  # a possible order, with which the steps do not agree
    else:
        assert status == 2 and len(said) == 1 and "ledger" in said[0], said


@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize("file", ["ledger.jsonl", "summary.json"])
def test_an_audit_of_a_damaged_file_is_one_line(run, capfd, what, file):
    ANYTHING[what](run / file)
    status, lines = opened("audit", capfd)
    if (file, what) == ("ledger.jsonl", "cut in half"):
        assert status == 1  # as a killed writer may leave it: the summary says that steps are missing
    else:
        assert status == 2 and len(lines) == 1 and ("ledger" in lines[0] or file in lines[0])


@pytest.mark.parametrize("step", [10**9, 10**18])
def test_a_step_of_any_size_is_audited_at_once(run, capfd, step):
    path = run / "ledger.jsonl"
    *_, last = (json.loads(line) for line in path.read_text().splitlines())
    for damaged in (last | {"step": step}, last, last | {"step": step}):  # also where a later line goes back
        path.write_text(path.read_text() + json.dumps(damaged) + "\n")
    assert audit.main(["run"]) == 1
    out = capfd.readouterr().out
    assert f"records of steps {step}, but the job ended after 3" in out
    (run / "summary.json").unlink()
    assert audit.main(["run"]) == 1
    assert "no record of epochs 1, 2, 3, 4, 5, 6, 7, 8 and" in capfd.readouterr().out


@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize("file", ["ledger.jsonl", "metrics.jsonl", "owner.json"])
def test_a_damaged_record_of_the_run_does_not_keep_it_from_going_on(run, capfd, what, file):
    """What the checkpoint says counts; a record that cannot be read or continued costs a line at most."""
    ANYTHING[what](run / file)
    status, lines = opened("resume", capfd)
    if status == 2:
        assert what == "a folder" and file == "owner.json" and len(lines) == 1
    else:
        assert status == 0 and all(file in line or "ledger" in line for line in lines)
