"""Arguments of the commands: an error is one line and status 2, printed once under mpirun; help shows defaults."""

from __future__ import annotations

import importlib

import pytest

INVALID = [
    ("ddl.evaluate", [], "required: run"),
    ("ddl.evaluate", ["run", "--split", "tests"], "--split is tests: choose train, validation or test"),
    ("ddl.predict", [], "required: run"),
    ("ddl.predict", ["run", "--tokens", "many"], "--tokens: invalid int value: 'many'"),
    ("ddl.predict", ["run", "--inptu", "x.npy"], "unrecognized arguments: --inptu x.npy"),
    ("ddl.audit", [], "required: run"),
    ("ddl.launch", ["-n", "four"], "-n/-np: invalid int value: 'four'"),
    ("ddl.launch", ["--deadline", "soon"], "--deadline: invalid float value: 'soon'"),
]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("door", "words", "expected"), INVALID)
def test_invalid_arguments_print_one_line_on_one_rank_and_end_with_status_2(
    door, words, expected, rank, monkeypatch, capsys
):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    monkeypatch.setattr("ddl.environment.LINGER_S", 0)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(door).main(words)
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == ""
    assert said.err.count("\n") == (rank == 0)
    assert rank or (said.err.startswith(f"{door}: ") and expected in said.err)


@pytest.mark.parametrize("door", ["ddl.evaluate", "ddl.predict", "ddl.audit", "ddl.launch"])
def test_help_is_printed_by_one_rank(door, monkeypatch, capsys):
    said = []
    for rank in (0, 1):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
        with pytest.raises(SystemExit) as end:
            importlib.import_module(door).main(["--help"])
        assert end.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith(f"usage: python -m {door} ") and said[1] == ""


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("ddl.predict").main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 200)" in text and "among all (default: 0)" in text and "(default: None)" not in text
